"""SFT: only what the agent said is learnt, from episodes packed into trees; nothing is lost or learnt twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from closeup.agent.episode import run_episodes
from closeup.agent.models.adapter import Adapter
from closeup.agent.models.load import load_adapter
from closeup.agent.policies.transformers_policy import TransformersPolicy
from closeup.agent.preset import Preset
from closeup.agent.task import Task
from closeup.agent.trajectory import Outcome, StepRecord, Trajectory, write_trajectories
from closeup.rl.config import SFTConfig
from closeup.rl.configfile import checked
from closeup.rl.generation import longest_path, shortest_path
from closeup.rl.render import with_ids
from closeup.rl.rewards import is_correct
from closeup.rl.rows import RowError, rows_of
from closeup.rl.sft import NothingToLearn, SFTTrainer, learnable, new_tokens, packs_of, readable
from closeup.rl.sources import episodes_from

Make = Callable[..., SFTTrainer]


@pytest.fixture(scope="module")
def episodes(needle_tasks: list[Task], short_preset: Preset) -> list[Trajectory]:
    """Two greedy-but-different episodes of each of three tasks by the trained model (budget of three messages)."""
    found = []
    for name in ("tiny", "tiny-half"):
        found += run_episodes(needle_tasks[:3], TransformersPolicy(name), preset=short_preset, judge=is_correct)
    assert not any(t.outcome.failed for t in found)
    return [t.model_copy(update={"id": f"{t.id}-{i}"}) for i, t in enumerate(found)]


@pytest.fixture
def make_sft(tmp_path: Path, short_preset: Preset, episodes: list[Trajectory]) -> Make:
    """`make_sft(packing=False, …)`: a trainer of a fresh half-trained model on the episodes."""

    def make(trajectories: list[Trajectory] | None = None, **changes: Any) -> SFTTrainer:
        raw: dict[str, Any] = {
            "output_dir": str(tmp_path / f"run-{len(list(tmp_path.iterdir()))}"),
            "use_cpu": True,
            "trajectories": ["unused.jsonl"],
            "max_steps": 2,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "save_steps": 0,
        }
        config = checked(SFTConfig, raw | changes)
        return SFTTrainer(load_adapter("tiny-half", device="cpu"), config, short_preset, trajectories or episodes)

    return make


def gradients(trainer: SFTTrainer) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad(set_to_none=True)
    return found


def step(trainer: SFTTrainer) -> tuple[float, dict[str, torch.Tensor]]:
    loss = sum(float(trainer.training_step(trainer.model, trees)) for trees in trainer.next_batches(0))
    return loss, gradients(trainer)


def worst(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert set(found) == set(expected)
    return max(
        float((found[name] - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-8))
        for name in expected
    )


def test_the_loss_is_that_of_the_agents_words_row_by_row(
    make_sft: Make, episodes: list[Trajectory], stock_logits: Callable[..., torch.Tensor]
) -> None:
    trainer = make_sft(max_tree_tokens=100_000)
    loss, found = step(trainer)
    adapter = trainer.adapter
    rows = [(t, row) for t in episodes for row in rows_of(t, adapter)]
    count = sum(row.targets for _, row in rows)
    assert count == sum(len(s.ids or ()) for t in episodes for s in t.steps)
    expected_loss = 0.0
    for trajectory, row in rows:
        with trainer.frames_of({name: v.path for name, v in trajectory.videos.items()}) as frames:
            logits = stock_logits(adapter, row, frames)
        logits[:, list(adapter.suppressed_ids)] = -torch.inf
        logprobs = logits.log_softmax(-1)
        part = torch.zeros(())
        for span in row.spans:
            before = torch.arange(span.begin - 1, span.end - 1)
            part = part - logprobs[before, torch.from_numpy(row.ids[span.begin : span.end])].sum() / count
        part.backward()
        expected_loss += float(part.detach())
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert worst(found, gradients(trainer)) < 1e-3


def test_packing_changes_the_work_and_not_the_update(make_sft: Make) -> None:
    packed = make_sft(max_tree_tokens=100_000)
    single = make_sft(max_tree_tokens=1, per_device_train_batch_size=3, gradient_accumulation_steps=2)
    assert (len(packed.packs), len(single.packs)) == (1, 6)
    loss_one, grads_one = step(packed)
    loss_two, grads_two = step(single)
    assert loss_one == pytest.approx(loss_two, rel=1e-5)
    assert worst(grads_one, grads_two) < 1e-4
    tokens = [sum(len(item.tree) for trees in t.next_batches(0) for item in trees) for t in (packed, single)]
    assert tokens[0] < tokens[1]


def test_it_learns_and_says_so(make_sft: Make) -> None:
    trainer = make_sft(max_steps=6, max_tree_tokens=100_000)
    trainer.train()
    losses = [entry["nll"] for entry in trainer.state.log_history if "nll" in entry]
    assert len(losses) == 6
    assert losses[-1] < 0.7 * losses[0]
    assert (Path(trainer.args.output_dir) / "final" / "model.safetensors").is_file()


def test_epochs_become_updates(make_sft: Make) -> None:
    trainer = make_sft(max_tree_tokens=1, max_steps=None, num_train_epochs=1.5, per_device_train_batch_size=2)
    assert len(trainer.packs) == 6
    assert trainer.args.max_steps == 5  # 9 packs, 2 at a time
    assert trainer.epochs(3) == 1


def test_long_episodes_are_cut_after_a_message(make_sft: Make, episodes: list[Trajectory]) -> None:
    whole = make_sft(max_tree_tokens=100_000).next_batches(0)[0][0].tree
    longest = max(len(path) for path in whole.paths)
    cut = make_sft(max_tree_tokens=100_000, max_length=longest - 1).next_batches(0)[0][0].tree
    assert max(len(path) for path in cut.paths) < longest
    assert 0 < len(cut.targets) < len(whole.targets)


def test_what_does_not_fit_is_counted(make_sft: Make, episodes: list[Trajectory]) -> None:
    longest = max(longest_path(t) for t in episodes)
    firsts = sorted(shortest_path(t) for t in episodes)
    trainer = make_sft(max_tree_tokens=100_000, max_length=longest - 1)
    trainer.next_batches(0)
    log = trainer.tally.drain()
    assert log["episodes/cut"] == sum(longest_path(t) == longest for t in episodes)
    assert log["episodes/dropped"] == 0
    tight = make_sft(max_tree_tokens=100_000, max_length=firsts[0])
    tight.next_batches(0)
    fits = sum(length == firsts[0] for length in firsts)
    assert tight.tally.drain()["episodes/dropped"] == len(episodes) - fits > 0
    plain = make_sft(max_tree_tokens=100_000)
    plain.next_batches(0)
    assert "episodes/cut" not in plain.tally.drain()


def test_a_run_in_which_nothing_fits_does_not_begin(make_sft: Make, episodes: list[Trajectory]) -> None:
    needed = min(shortest_path(t) for t in episodes)
    wanted = f"no message of the 6 episodes fits in max_length {needed - 1}: the shortest takes {needed} tokens"
    with pytest.raises(NothingToLearn, match=wanted):
        make_sft(max_length=needed - 1)
    assert make_sft(max_length=needed).next_batches(0)[0]


@pytest.mark.parametrize("odd", [1_000_000, -1])
def test_ids_that_the_model_does_not_have_are_refused(make_sft: Make, episodes: list[Trajectory], odd: int) -> None:
    first = episodes[1].steps[0]
    broken = first.model_copy(update={"ids": (*(first.ids or ())[:-1], odd)})
    damaged = episodes[1].model_copy(update={"steps": (broken, *episodes[1].steps[1:])})
    with pytest.raises(RowError, match=f"step 0 of trajectory {damaged.id!r} holds the token id {odd}, and the model"):
        make_sft([episodes[0], damaged])


def test_episodes_without_ids_are_rendered(make_sft: Make, episodes: list[Trajectory]) -> None:
    bare = [
        t.model_copy(
            update={
                "steps": tuple(
                    s.model_copy(update={"ids": None, "prompt_ids": None, "logprobs": None}) for s in t.steps
                )
            }
        )
        for t in episodes
    ]
    one, _ = step(make_sft(max_tree_tokens=100_000))
    two, _ = step(make_sft(bare, max_tree_tokens=100_000))
    assert one == pytest.approx(two, rel=1e-2)  # the same words; a model may have spelt one in other tokens


def test_ids_of_another_tokenizer_are_not_believed(episodes: list[Trajectory], half: Adapter) -> None:
    ours = episodes[0]
    assert readable(ours, half) is ours
    policy = {**ours.settings["policy"], "tokenizer": "another"}
    foreign = ours.model_copy(
        update={
            "settings": {**ours.settings, "policy": policy},
            "steps": tuple(s.model_copy(update={"ids": (1, 2), "logprobs": None}) for s in ours.steps),
        }
    )
    read = with_ids(readable(foreign, half), half)
    assert [s.text for s in read.steps] == [s.text for s in ours.steps]
    assert all(s.ids is not None and s.ids != (1, 2) for s in read.steps)


def test_what_is_not_learnt_from(episodes: list[Trajectory], make_sft: Make) -> None:
    failed = episodes[0].model_copy(update={"outcome": Outcome(failed=True, reason="gone")})
    wrong = episodes[1].model_copy(update={"outcome": Outcome(terminated=True, correct=False)})
    right = episodes[2].model_copy(update={"outcome": Outcome(terminated=True, correct=True)})
    assert learnable([failed, wrong, right], only_correct=False) == [wrong, right]
    assert learnable([failed, wrong, right], only_correct=True) == [right]
    with pytest.raises(NothingToLearn, match="none of the 2 episodes .*: 1 failed or are empty, 1 did not answer"):
        make_sft([failed, wrong], only_correct=True)


def test_recorded_files_are_read(episodes: list[Trajectory], tmp_path: Path) -> None:
    write_trajectories(tmp_path / "a.jsonl", episodes[:2])
    write_trajectories(tmp_path / "b.jsonl", episodes[2:])
    paths = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    config = checked(SFTConfig, {"output_dir": "x", "max_steps": 1, "trajectories": paths})
    assert episodes_from(config, tmp_path) == episodes


# ---- packing -------------------------------------------------------------------------------------------------------


def episode(number: int, task: int, sizes: list[tuple[int, int]]) -> Trajectory:
    steps = tuple(
        StepRecord(parent=i - 1 if i else None, prompt_ids=(0,) * prompt, ids=(0,) * said, text="")
        for i, (prompt, said) in enumerate(sizes)
    )
    return Trajectory(id=f"e{number}", task=Task(id=f"t{task}", question="?"), steps=steps)


SIZES = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 10)), min_size=1, max_size=3)


@given(st.lists(st.tuples(st.integers(0, 3), SIZES), min_size=1, max_size=12), st.integers(1, 120), st.booleans())
def test_every_episode_is_in_one_pack_within_the_budget(
    given_: list[tuple[int, list[tuple[int, int]]]], budget: int, packing: bool
) -> None:
    all_of = [episode(i, task, sizes) for i, (task, sizes) in enumerate(given_)]
    packs = packs_of(all_of, budget=budget, packing=packing)
    assert Counter(t.id for pack in packs for t in pack) == Counter(t.id for t in all_of)
    for pack in packs:
        seen: set[str] = set()
        total = 0
        for t in pack:
            total += new_tokens(t, alone=t.task.id not in seen)
            seen.add(t.task.id)
        assert total <= budget or len(pack) == 1
        assert packing or len(seen) == 1
