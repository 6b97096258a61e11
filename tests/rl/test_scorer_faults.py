"""A scorer that raises costs the episode it raises for, with its reason, and no other."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import Preset
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory
from closeup.rl.credit import group_rewards
from closeup.rl.rewards import DEFAULT_REWARDS
from closeup.rl.rollout import Group, Rollouts
from closeup.rl.scorers import Scores


class Brittle:
    """Raises for every episode whose id ends with /1."""

    name = "brittle"

    def score(self, trajectory: Trajectory) -> Scores:
        if trajectory.id.endswith("/1"):
            raise KeyError("no such frame")
        return [{"brittle": 0.5} for _ in trajectory.steps]


class BrittleTogether(Brittle):
    """The same, asked for many at once."""

    def score_many(self, trajectories: Sequence[Trajectory]) -> list[Scores]:
        return [self.score(trajectory) for trajectory in trajectories]


class Short(Brittle):
    """Scores too few steps of them."""

    def score(self, trajectory: Trajectory) -> Scores:
        return [] if trajectory.id.endswith("/1") else super().score(trajectory)


class After:
    """Comes after the others."""

    name = "after"

    def score(self, trajectory: Trajectory) -> Scores:
        return [{"after": 1.0} for _ in trajectory.steps]


@pytest.mark.parametrize(
    ("scorer", "reason"),
    [
        (Brittle(), "scoring failed: the scorer 'brittle' raised KeyError: 'no such frame'"),
        (BrittleTogether(), "scoring failed: the scorer 'brittle' raised KeyError: 'no such frame'"),
        (Short(), "scoring failed: the scorer 'brittle' raised ValueError: Short scored 0 steps"),
    ],
)
def test_only_the_episode_it_raises_for_has_failed(
    short_preset: Preset, needle_tasks: list[Task], scorer: Brittle, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    make = Rollouts(
        ScriptedPolicy(lambda _: "no call"),
        short_preset,
        num_generations=3,
        rewards=DEFAULT_REWARDS,
        scorers=[scorer, After()],
    )
    with caplog.at_level(logging.ERROR, logger="closeup.rl.rollout"):
        groups: list[Group] = make.groups(needle_tasks[:2], seed=0)
    make.close()
    for group in groups:
        assert [t.outcome.failed for t in group.trajectories] == [False, True, False]
        assert group.trajectories[1].outcome.reason.startswith(reason)
        assert group.trajectories[1].id in caplog.text
        rewards = group_rewards(group.trajectories, ("format", "brittle", "after"))
        assert rewards.reached.any(axis=1).tolist() == [True, False, True]  # masked, not scored with 0
        assert all(s.rewards["brittle"] == 0.5 for t in group.trajectories[::2] for s in t.steps)
        assert all(s.rewards["after"] == 1.0 for t in group.trajectories[::2] for s in t.steps)
