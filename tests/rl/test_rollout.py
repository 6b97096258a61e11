"""Rollouts: which tasks, which seeds, what a failed episode is, and what scorers are asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from closeup.agent.models.adapter import Adapter
from closeup.agent.policies.base import Request
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.policies.transformers_policy import TransformersPolicy
from closeup.agent.preset import Preset
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory
from closeup.rl.rewards import DEFAULT_REWARDS
from closeup.rl.rollout import Group, Rollouts, draw_seed, task_order
from closeup.tools.video.cache import cache_stats, clear_caches


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 30), st.integers(0, 3))
def test_every_epoch_holds_every_task_once(count: int, begin: int, number: int, seed: int) -> None:
    order = task_order(count, begin, number, seed=seed)
    assert order == task_order(count, 0, begin + number, seed=seed)[begin:]
    whole = task_order(count, 0, 3 * count, seed=seed)
    for epoch in range(3):
        assert sorted(whole[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_the_order_is_drawn_anew_for_every_epoch_and_seed() -> None:
    whole = task_order(50, 0, 100, seed=1)
    assert whole[:50] != whole[50:]
    assert whole != task_order(50, 0, 100, seed=2)
    assert task_order(50, 0, 50, seed=1, shuffle=False) == list(range(50))


def test_seeds_tell_sequences_apart() -> None:
    seeds = {draw_seed(1, 2), draw_seed(1, 2, 0), draw_seed(12), draw_seed(2, 1), draw_seed(1, 3)}
    assert len(seeds) == 5
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def rollouts(adapter: Adapter, preset: Preset, **changes: object) -> Rollouts:
    settings: dict[str, object] = {"num_generations": 3, "rewards": DEFAULT_REWARDS, "temperature": 1.0}
    return Rollouts(TransformersPolicy(adapter), preset, **(settings | changes))  # type: ignore[arg-type]


def said(group: Group) -> list[list[str]]:
    return [[step.text for step in t.steps] for t in group.trajectories]


def test_the_same_seed_gives_the_same_episodes_alone_or_with_others(
    half: Adapter, short_preset: Preset, needle_tasks: list[Task]
) -> None:
    make = rollouts(half, short_preset)
    together = make.groups(needle_tasks[:3], seed=5)
    alone = make.groups(needle_tasks[1:2], seed=5)
    other = make.groups(needle_tasks[1:2], seed=6)
    assert [len(group.trajectories) for group in together] == [3, 3, 3]
    assert said(together[1]) == said(alone[0])
    assert said(alone[0]) != said(other[0])
    steps = [step for t in alone[0].trajectories for step in t.steps]
    assert all(step.logprobs is not None and set(step.rewards) == set(DEFAULT_REWARDS) for step in steps)
    assert len({str(messages) for messages in said(together[0])}) > 1  # rollouts of one task differ


def test_a_task_that_comes_twice_has_rollouts_of_its_own(
    half: Adapter, short_preset: Preset, needle_tasks: list[Task]
) -> None:
    make = rollouts(half, short_preset)
    twice = make.groups([needle_tasks[0], needle_tasks[0]], seed=5)
    assert said(twice[0]) != said(twice[1])
    ids = Counter(t.id for group in twice for t in group.trajectories)
    assert max(ids.values()) == 1
    (second,) = make.groups([needle_tasks[0]], seed=5, earlier=[needle_tasks[0]])  # on another process
    assert said(second) == said(twice[1])


def test_a_greedy_rollout_comes_beside_the_others(
    half: Adapter, short_preset: Preset, needle_tasks: list[Task]
) -> None:
    (one,) = rollouts(half, short_preset, greedy=True).groups(needle_tasks[:1], seed=5)
    (two,) = rollouts(half, short_preset, greedy=True).groups(needle_tasks[:1], seed=77)
    assert one.greedy is not None
    assert two.greedy is not None
    assert [s.text for s in one.greedy.steps] == [s.text for s in two.greedy.steps]  # no seed in it
    assert one.greedy.settings["sampling"]["temperature"] == 0
    assert said(one) != said(two)


def test_messages_are_as_long_as_was_said(half: Adapter, short_preset: Preset, needle_tasks: list[Task]) -> None:
    (group,) = rollouts(half, short_preset, max_completion_length=5).groups(needle_tasks[:1], seed=5)
    assert max(len(step.ids or ()) for t in group.trajectories for step in t.steps) == 5


def test_a_failed_episode_is_data(short_preset: Preset, needle_tasks: list[Task], tmp_path: Path) -> None:
    def say(request: Request) -> str:
        if request.episode_id.endswith("/1"):
            raise RuntimeError("lost connection")
        return "no call at all"

    gone = needle_tasks[1].model_copy(update={"videos": (tmp_path / "gone.mp4",)})
    make = Rollouts(ScriptedPolicy(say), short_preset, num_generations=3, rewards=DEFAULT_REWARDS)
    sound, broken = make.groups([needle_tasks[0], gone], seed=0)
    assert [t.outcome.failed for t in sound.trajectories] == [False, True, False]
    assert "lost connection" in sound.trajectories[1].outcome.reason
    assert all(t.outcome.failed and "gone.mp4" in t.outcome.reason for t in broken.trajectories)


class Counting:
    """A scorer that is asked for many at once."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def score(self, trajectory: Trajectory) -> list[dict[str, float | None]]:
        raise AssertionError("it was to be asked for all at once")

    def score_many(self, trajectories: Sequence[Trajectory]) -> list[list[dict[str, float | None]]]:
        self.asked.append(len(trajectories))
        return [[{"late": 0.5} for _ in t.steps] for t in trajectories]


def test_late_scorers_are_asked_once_for_a_generation(short_preset: Preset, needle_tasks: list[Task]) -> None:
    scorer = Counting()
    make = Rollouts(
        ScriptedPolicy(lambda _: "no call"), short_preset, num_generations=2, rewards=DEFAULT_REWARDS, scorers=[scorer]
    )
    found = make.groups(needle_tasks[:2], seed=0)
    assert scorer.asked == [4]
    assert all(step.rewards["late"] == 0.5 for group in found for t in group.trajectories for step in t.steps)


def test_prefetched_overviews_are_not_decoded_again(
    half: Adapter, short_preset: Preset, needle_tasks: list[Task], tmp_path: Path
) -> None:
    overview_only = short_preset.model_copy(update={"tools": ("answer",)})  # nothing but the overview is looked at
    make = rollouts(half, overview_only, num_generations=1)
    gone = needle_tasks[0].model_copy(update={"videos": (tmp_path / "gone.mp4",)})
    clear_caches()
    make.prefetch([needle_tasks[0], gone]).result()  # what cannot be read is left to its episode
    fetched = cache_stats()["frames"].entries
    assert fetched > 0
    make.groups([needle_tasks[0]], seed=0)
    assert cache_stats()["frames"].entries == fetched
    make.groups([needle_tasks[1]], seed=0)
    assert cache_stats()["frames"].entries > fetched
    make.close()


def test_greedy_sampling_is_no_rollout(half: Adapter, short_preset: Preset) -> None:
    with pytest.raises(ValueError, match="temperature above 0, got 0"):
        rollouts(half, short_preset, temperature=0.0)
