"""`max_length`: what does not fit is counted, and a run in which nothing fits ends with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from closeup.agent.task import Task
from closeup.agent.trajectory import Outcome, StepRecord, Trajectory
from closeup.rl.generation import longest_path, shortest_path, too_long, train_group
from closeup.rl.grpo import GRPOTrainer, RolloutError

Make = Callable[..., GRPOTrainer]


def step(parent: int | None, prompt: int, said: int, **more: Any) -> StepRecord:
    return StepRecord(parent=parent, prompt_ids=(0,) * prompt, ids=(0,) * said, text="", **more)


def group(*episodes: list[StepRecord], failed: bool = False) -> Any:
    found = [
        Trajectory(id=f"e{i}", task=Task(question="?"), steps=tuple(steps), outcome=Outcome(failed=failed, reason="-"))
        for i, steps in enumerate(episodes)
    ]

    class Bare:
        trajectories = tuple(found)

    return Bare()


def test_the_shortest_path_ends_at_a_message_that_can_be_learnt() -> None:
    (growing,) = group([step(None, 10, 2), step(0, 3, 4)]).trajectories
    assert (shortest_path(growing), longest_path(growing)) == (12, 19)
    (rebuilt,) = group([step(None, 10, 2), step(None, 5, 4)]).trajectories
    assert (shortest_path(rebuilt), longest_path(rebuilt)) == (9, 12)
    (broken,) = group([step(None, 10, 2, finish="error"), step(None, 20, 4)]).trajectories
    assert shortest_path(broken) == 24
    assert shortest_path(group([]).trajectories[0]) == 0


def test_what_max_length_would_have_to_be() -> None:
    groups = [group([step(None, 10, 2), step(0, 3, 4)]), group([step(None, 13, 1)])]
    assert too_long(groups, 11, whole=False) == 12
    assert too_long(groups, 12, whole=False) is None
    assert too_long(groups, 13, whole=True) == 14  # the longest message of the shorter episode
    assert too_long(groups, 14, whole=True) is None
    assert too_long([group([step(None, 10, 2)], failed=True)], 2, whole=False) is None  # that is another fault


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "no message of any episode of 1 generations in a row fits in max_length 2, so there is nothing"),
        ({"overlength": "mask"}, "no episode of 1 generations in a row fits in max_length 2"),
    ],
)
def test_a_run_in_which_nothing_fits_says_so(make_grpo: Make, changes: dict[str, Any], message: str) -> None:
    trainer = make_grpo(max_steps=1, max_length=2, num_generations=2, per_device_train_batch_size=1, **changes)
    with pytest.raises(RolloutError, match=message + r".*the shortest takes \d+ tokens: raise max_length"):
        trainer.train()
    assert not (Path(trainer.args.output_dir) / "final").exists()


def test_a_long_generation_among_others_is_only_left_out(make_grpo: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_grpo(max_steps=9, max_length=2)
    found = [7, 7, None, 7, 7, None, 7, None, 7]  # never three in a row, and the last one is not the only one
    monkeypatch.setattr("closeup.rl.grpo.too_long", lambda *_, **__: found.pop(0))
    for number in range(9):
        trainer._check_lengths(number, [])
    found += [7, 7]
    trainer._check_lengths(3, [])
    with pytest.raises(RolloutError, match="of 3 generations in a row"):
        trainer._check_lengths(4, [])


def test_what_was_cut_is_counted(make_grpo: Make, needle_tasks: list[Task]) -> None:
    trainer = make_grpo(max_steps=1, num_generations=2, per_device_train_batch_size=1)
    (made,) = trainer._generate(0)
    limit = max(longest_path(t) for t in made.trajectories) - 1
    rewards = trainer._rewards(made.trajectories)
    cut = train_group(made.trajectories, rewards, made.advantages, trainer.adapter, max_length=limit)
    assert cut.cut == sum(longest_path(t) > limit for t in made.trajectories) > 0
