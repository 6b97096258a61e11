"""GRPO on real episodes of the half-trained model: what is trained on, with which numbers, and what is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import Preset
from closeup.agent.task import Task
from closeup.agent.trajectory import read_trajectories
from closeup.rl.advantages import has_signal
from closeup.rl.callbacks import SampleTable, as_text, sample_rows
from closeup.rl.generation import TrainGroup, load_groups, longest_path, save_groups
from closeup.rl.grpo import GRPOTrainer, RolloutError
from closeup.rl.losses import pair_weights
from closeup.rl.rows import rows_of

Make = Callable[..., GRPOTrainer]


def gradients(trainer: GRPOTrainer) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad(set_to_none=True)
    return found


def step(trainer: GRPOTrainer, number: int = 0) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of an update, without taking it."""
    loss = sum(float(trainer.training_step(trainer.model, trees)) for trees in trainer.next_batches(number))
    return loss, gradients(trainer)


def worst(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert set(found) == set(expected)
    return max(
        float((found[name] - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-8))
        for name in expected
    )


def groups_of(trainer: GRPOTrainer) -> list[TrainGroup]:
    assert trainer.generation is not None
    return trainer.generation[1]


def row_by_row(
    trainer: GRPOTrainer, stock_logits: Callable[..., torch.Tensor]
) -> tuple[float, dict[str, torch.Tensor]]:
    """The policy gradient of the trainer's generation, written without trees: the stock model, one row at a time.

    On the first update the ratio is 1, so the loss is minus the weighted advantages, and the gradient that of minus
    weight x advantage x log-probability, times the correction for the rollout's own rounding.
    """
    adapter, config = trainer.adapter, trainer.config
    rows = [
        (group, row, index)
        for group in groups_of(trainer)
        for index, t in enumerate(group.trajectories)
        if group.reached[index].any()
        for row in rows_of(t, adapter, rollout=index)
    ]
    weights = pair_weights([row.targets for _, row, _ in rows], config.loss_type)
    total = 0.0
    for (group, row, index), weight in zip(rows, weights.tolist(), strict=True):
        with trainer.frames_of(group.videos) as frames:
            logits = stock_logits(adapter, row, frames)
        logits[:, list(adapter.suppressed_ids)] = -torch.inf
        logprobs = (logits / config.temperature).log_softmax(-1)
        loss = torch.zeros(())
        for span in row.spans:
            said = logprobs[
                torch.arange(span.begin - 1, span.end - 1), torch.from_numpy(row.ids[span.begin : span.end])
            ]
            recorded = torch.from_numpy(span.logprobs)
            correction = (said.detach() - recorded).exp().clamp(max=3.0)
            advantage = float(group.advantages[index, span.step])
            ratio = (said - said.detach()).exp()
            loss = loss - (ratio * advantage * weight * correction).sum()
        loss.backward()
        total += float(loss.detach())
    return total, gradients(trainer)


def test_an_update_is_the_policy_gradient_of_separate_rows(
    make_grpo: Make, stock_logits: Callable[..., torch.Tensor]
) -> None:
    trainer = make_grpo(loss_type="grpo")
    loss, found = step(trainer)
    assert any(has_signal(group.advantages) for group in groups_of(trainer))
    expected_loss, expected = row_by_row(trainer, stock_logits)
    assert not any("visual" in name for name in found)
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert worst(found, expected) < 1e-3


def test_micro_batches_and_accumulation_are_one_update(make_grpo: Make) -> None:
    one = make_grpo(per_device_train_batch_size=2)
    two = make_grpo(per_device_train_batch_size=1, gradient_accumulation_steps=2)
    loss_one, grads_one = step(one)
    loss_two, grads_two = step(two)
    assert len(one.next_batches(0)) == 1
    assert len(two.next_batches(0)) == 2
    assert loss_one == pytest.approx(loss_two, abs=1e-6)
    assert worst(grads_one, grads_two) < 1e-4


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
def test_weights_are_of_the_whole_batch(make_grpo: Make, loss_type: str) -> None:
    trainer = make_grpo(loss_type=loss_type, beta=0.01)  # with a KL term groups without signal are forwarded too
    trainer.next_batches(0)
    seen: list[tuple[TrainGroup, Any]] = []
    trainer._loss = lambda group, weights: seen.append((group, weights))  # type: ignore[method-assign,assignment]
    trainer.next_batches(0)
    counts = np.concatenate([group.lengths for group, _ in seen])
    given = np.concatenate([weights for _, weights in seen])
    total = float((counts * given).sum())
    budget = trainer.preset.budget
    share = counts.sum() / (len(counts) * budget.max_new_tokens * budget.max_steps)
    assert total == pytest.approx(share if loss_type == "dr_grpo" else 1.0)


def test_the_first_update_is_on_policy_and_the_second_is_not(make_grpo: Make) -> None:
    trainer = make_grpo(num_iterations=2, max_steps=3, learning_rate=3e-4, epsilon=0.01)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logs] == [1, 2, 3]
    assert logs[0]["ratio/max"] == pytest.approx(1, abs=1e-4)
    assert logs[1]["ratio/max"] > 1.001
    assert logs[1]["clip_ratio/region_mean"] > 0
    assert "rollouts/correct" not in logs[1]  # no new rollouts
    assert "rollouts/correct" in logs[2]


def test_a_generation_is_divided_over_updates(make_grpo: Make) -> None:
    trainer = make_grpo(per_device_train_batch_size=1, steps_per_generation=3, num_iterations=2)
    trees = [trainer.next_batches(number)[0] for number in range(6)]
    kept = trainer.generation
    assert kept is not None
    assert len(kept[1]) == 3
    assert [tree[0].tree for tree in trees[:3] if tree] == [tree[0].tree for tree in trees[3:] if tree]
    trainer.next_batches(6)
    assert trainer.generation is not None
    assert trainer.generation[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["frozen copy", "adapters off"])
def test_kl_to_the_reference_starts_at_zero(make_grpo: Make, lora: Any) -> None:
    trainer = make_grpo(beta=0.1, max_steps=2, learning_rate=1e-3, lora=lora)
    assert (trainer.reference is None) == (lora is not None)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "kl" in entry]
    assert logs[0]["kl"] == pytest.approx(0, abs=1e-7)
    assert logs[1]["kl"] > 1e-6


def test_without_beta_there_is_no_reference(make_grpo: Make) -> None:
    trainer = make_grpo()
    trainer.next_batches(0)
    assert trainer.reference is None
    assert all(group.reference is None and group.old is None for group in groups_of(trainer))


def test_failed_and_truncated_episodes_are_left_out(make_grpo: Make, needle_tasks: list[Task]) -> None:
    trainer = make_grpo(mask_truncated_completions=True, max_completion_length=24)
    trainer.next_batches(0)
    truncated = [t.outcome.truncated for group in groups_of(trainer) for t in group.trajectories]
    assert any(truncated)
    for group in groups_of(trainer):
        for index, trajectory in enumerate(group.trajectories):
            assert bool(group.reached[index].any()) == (not trajectory.outcome.truncated)
        if group.tree is not None:
            learnt = {int(index) for index in group.tree.targets.rollout}
            assert learnt == {i for i, t in enumerate(group.trajectories) if not t.outcome.truncated}


def test_a_video_that_is_gone_costs_its_group_and_no_other(
    make_grpo: Make, needle_tasks: list[Task], tmp_path: Path
) -> None:
    gone = needle_tasks[1].model_copy(update={"videos": (tmp_path / "gone.mp4",)})
    trainer = make_grpo(tasks=[needle_tasks[0], gone], shuffle_dataset=False, max_steps=1)
    trainer.train()
    first, second = groups_of(trainer)
    assert first.tree is not None
    assert second.tree is None
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert log["rollouts/failed"] == 4


def test_nothing_but_failures_ends_the_run_with_the_reason(
    make_grpo: Make, needle_tasks: list[Task], tmp_path: Path
) -> None:
    gone = [task.model_copy(update={"videos": (tmp_path / "gone.mp4",)}) for task in needle_tasks[:2]]
    trainer = make_grpo(tasks=gone, max_steps=9)
    with pytest.raises(RolloutError, match=r"3 generations in a row failed.*gone\.mp4"):
        trainer.train()
    assert trainer.state.global_step == 2


def test_long_episodes_are_cut_or_masked(make_grpo: Make) -> None:
    plain = make_grpo()
    plain.next_batches(0)
    lengths = sorted(longest_path(t) for group in groups_of(plain) for t in group.trajectories)
    limit = lengths[len(lengths) // 2] - 1
    cut = make_grpo(max_length=limit)
    cut.next_batches(0)
    assert sum(group.cut for group in groups_of(cut)) == sum(length > limit for length in lengths)
    trees = [group.tree for group in groups_of(cut) if group.tree is not None]
    assert max(len(path) for tree in trees for path in tree.paths) <= limit
    masked = make_grpo(max_length=limit, overlength="mask")
    masked.next_batches(0)
    for group in groups_of(masked):
        for index, trajectory in enumerate(group.trajectories):
            assert bool(group.reached[index].any()) == (longest_path(trajectory) <= limit)


REWARDS = '''
def same(facts):
    return 1.0

def of_some(facts):
    """Differs between rollouts only for tasks whose name ends in an even digit."""
    return float(len(facts.thought)) if int(facts.task.id[-1]) % 2 == 0 else 1.0
'''


def stream(tmp_path: Path, name: str) -> dict[str, Any]:
    (tmp_path / "own.py").write_text(REWARDS, encoding="utf-8")
    return {"streams": [{"name": "own", "function": f"{tmp_path / 'own.py'}:{name}"}]}


def test_groups_without_signal_are_replaced(make_grpo: Make, tmp_path: Path) -> None:
    rewards = stream(tmp_path, "of_some")
    settings: dict[str, Any] = {"rewards": rewards, "advantage_options": {"gamma": 0.0}, "max_steps": 1}
    without = make_grpo(per_device_train_batch_size=4, **settings)
    without.next_batches(0)
    signal = [has_signal(group.advantages) for group in groups_of(without)]
    assert not all(signal)
    trainer = make_grpo(per_device_train_batch_size=4, dynamic_sampling=True, dynamic_sampling_max_tries=6, **settings)
    trainer.train()
    assert all(has_signal(group.advantages) for group in groups_of(trainer))
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert log["dynamic_sampling/dropped"] >= signal.count(False)
    assert log["dynamic_sampling/unfilled"] == 4 - len(groups_of(trainer))


def test_when_nothing_teaches_nothing_changes(make_grpo: Make, tmp_path: Path) -> None:
    trainer = make_grpo(
        rewards=stream(tmp_path, "same"),
        advantage_options={"gamma": 0.0},
        dynamic_sampling=True,
        dynamic_sampling_max_tries=1,
        max_steps=1,
        weight_decay=0.1,
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert groups_of(trainer) == []
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert (log["loss"], log["dynamic_sampling/dropped"], log["dynamic_sampling/unfilled"]) == (0, 4, 2)


def test_remax_compares_with_the_greedy_rollout(make_grpo: Make) -> None:
    trainer = make_grpo(advantage="remax", rewards={"streams": [{"name": "format"}]})
    trainer.next_batches(0)
    baselines = set()
    for group in groups_of(trainer):
        for index, trajectory in enumerate(group.trajectories):
            own = sum(step.rewards["format"] or 0 for step in trajectory.steps)
            baselines.add((trajectory.task.id, round(own - group.advantages[index, 0], 6)))
    assert len(baselines) == 2  # one for each task, the same for all of its rollouts
    assert all(baseline == round(baseline) for _, baseline in baselines)  # a number of well-formed messages


def test_rollouts_are_kept_on_disk_up_to_a_number(make_grpo: Make) -> None:
    trainer = make_grpo(max_steps=3, keep_rollouts=2, learning_rate=1e-6)
    trainer.train()
    folder = Path(trainer.args.output_dir) / "rollouts"
    assert [path.name for path in sorted(folder.iterdir())] == ["generation-000001.jsonl", "generation-000002.jsonl"]
    kept = list(read_trajectories(folder / "generation-000002.jsonl"))
    assert [t.id for t in kept] == [t.id for group in groups_of(trainer) for t in group.trajectories]


def test_a_generation_comes_back_from_disk_as_it_was(make_grpo: Make, tmp_path: Path) -> None:
    trainer = make_grpo(num_iterations=2, beta=0.1)
    trainer.next_batches(0)
    save_groups(tmp_path, 0, 7, groups_of(trainer))
    loaded = load_groups(tmp_path, 0, trainer.adapter)
    assert loaded is not None
    assert loaded[0] == 7
    for old, new in zip(groups_of(trainer), loaded[1], strict=True):
        assert old.trajectories == new.trajectories
        assert np.array_equal(old.advantages, new.advantages)
        assert np.array_equal(old.reached, new.reached)
        assert (old.tree is None) == (new.tree is None)
        if old.tree is not None and new.tree is not None:
            assert old.old is not None
            assert new.old is not None
            assert torch.equal(old.old, new.old)
            assert np.array_equal(old.tree.ids, new.tree.ids)
            assert np.array_equal(old.tree.targets.logprob, new.tree.targets.logprob, equal_nan=True)
    assert load_groups(tmp_path, 1, trainer.adapter) is None


def test_any_policy_may_write_as_long_as_it_gives_ids(make_grpo: Make) -> None:
    trainer = make_grpo(policy=ScriptedPolicy(lambda _: "no call at all"))
    with pytest.raises(ValueError, match="has no token ids: its policy gave none"):
        trainer.next_batches(0)


def test_two_tasks_of_one_name_are_refused(make_grpo: Make, needle_tasks: list[Task]) -> None:
    with pytest.raises(ValueError, match="two tasks to train on have one id"):
        make_grpo(tasks=[needle_tasks[0], needle_tasks[0]])
    with pytest.raises(ValueError, match="no task to train on"):
        make_grpo(tasks=[])


def test_logs_tell_of_streams_steps_and_trees(make_grpo: Make) -> None:
    trainer = make_grpo(max_steps=1)
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    wanted = {"rewards/format/step0/mean", "rewards/format/step0/frac_zero_std", "rewards/zoom/step0/frac_unscored"}
    wanted |= {"rollouts/correct", "rollouts/hit_rate", "rollouts/steps", "tree/saved", "entropy", "lone_steps"}
    assert wanted <= set(log)
    assert 0 < log["tree/saved"] < 1
    assert log["entropy"] > 0
    assert log["sampling/sampling_logp_difference/max"] < 1e-3  # rollout and trainer agree on every token


def test_sample_rollouts_are_shown_as_a_table(make_grpo: Make, short_preset: Preset) -> None:
    said: list[str] = []
    trainer = make_grpo(max_steps=1, log_completions=True, num_completions_to_print=3)
    trainer.add_callback(SampleTable(trainer, said.append))
    trainer.train()
    (table,) = said
    groups = groups_of(trainer)
    rows = sample_rows(groups, 3)
    shown = [row["episode"] for row in rows if row["episode"]]
    assert shown == [groups[0].trajectories[0].id, groups[1].trajectories[0].id, groups[0].trajectories[1].id]
    assert rows[0]["message"] == groups[0].trajectories[0].steps[0].text
    assert as_text(rows, "generation 0") == table
    assert (Path(trainer.args.output_dir) / "samples" / "generation-000000.txt").read_text(encoding="utf-8") == table
