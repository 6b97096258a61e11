"""The rewards of a group as arrays: what `closeup.rl.advantages` turns into credit.

A group is the G rollouts of one task. `GroupRewards` holds, per stream, rollout and step, what was scored and whether
the step counts at all; it knows nothing of tokens, baselines or weights.

Invariants
1. NaN means "not scored" and is never turned into a number here; a scored 0 is a 0.
2. A step that does not count (a failed or cancelled episode, a masked step) has no scored reward in any stream. It
   takes no part in any statistic.
3. Steps are aligned by index: step t of every rollout is its t-th assistant message, whatever it did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from closeup.agent.dialects.love_r1 import ZOOM
from closeup.agent.live import CANCELLED
from closeup.agent.trajectory import StepRecord, Trajectory

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
MaskRule = Callable[[Trajectory], Collection[int]]
"""Indices of the steps of a trajectory that shall not count."""


@dataclass(frozen=True, eq=False)
class GroupRewards:
    """The rewards of G rollouts of one task, over K streams and at most T steps. The arrays are read-only copies.

    Attributes:
        streams: names of the K streams, each once.
        values: float64 (K, G, T); NaN where a stream was not scored, or the step does not count.
        reached: bool (G, T); True where the rollout took step t and it counts.

    Raises:
        ValueError: shapes that do not fit, a stream named twice, an infinite reward, or a reward of a step that does
            not count.
    """

    streams: tuple[str, ...]
    values: Array
    reached: Mask

    def __post_init__(self) -> None:
        values, reached = np.array(self.values, np.float64), np.array(self.reached, np.bool_)
        if reached.ndim != 2 or not len(reached) or values.shape != (len(self.streams), *reached.shape):
            raise ValueError(
                "values are (streams, rollouts, steps) and reached is (rollouts, steps), at least one rollout; got"
                f" {values.shape} and {reached.shape} for the {len(self.streams)} streams {list(self.streams)}"
            )
        if len(set(self.streams)) != len(self.streams):
            raise ValueError(f"each stream is named once, got {list(self.streams)}")
        if np.isinf(values).any():
            raise ValueError("a reward is a finite number, or NaN where it was not scored; got an infinite one")
        if (~np.isnan(values) & ~reached).any():
            k, i, t = np.argwhere(~np.isnan(values) & ~reached)[0]
            raise ValueError(
                f"stream {self.streams[k]!r} has a reward for step {t} of rollout {i}, which does not count; use NaN"
            )
        values.setflags(write=False)
        reached.setflags(write=False)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "reached", reached)

    def index(self, stream: str) -> int:
        """Row of a stream in `values`. Raises `ValueError` with the streams there are when it is none of them."""
        if stream not in self.streams:
            raise ValueError(
                f"the group has no reward stream {stream!r}; it has {sorted(self.streams)}. Name one of these, or score"
                f" {stream!r} in the environment or by a scorer"
            )
        return self.streams.index(stream)

    def stream(self, name: str) -> Array:
        """Rewards of one stream, float64 (G, T). Raises as `index`."""
        return np.asarray(self.values[self.index(name)])


def group_rewards(
    trajectories: Sequence[Trajectory],
    streams: Sequence[str] | None = None,
    *,
    masked: MaskRule | None = None,
) -> GroupRewards:
    """The rewards of one group.

    No step counts of an episode that failed (its reason is in its record) or that its caller cancelled: neither says
    anything about the policy.

    Args:
        trajectories: the G rollouts of one task, late streams already added.
        streams: which streams, in this order; default: every name that occurs, sorted. Trainers give them, so that a
            group in which everything failed has the same streams as any other.
        masked: names further steps that do not count (see `masked_second_zoom`).

    Returns:
        `GroupRewards` with G = len(trajectories) and T the most steps of any of them.

    Raises:
        ValueError: no trajectory; trajectories of different tasks or starts; one id twice; a stream that no step names,
            although some step counts; a masked step that is none.
    """
    _check_one_group(trajectories)
    named = {name for trajectory in trajectories for step in trajectory.steps for name in step.rewards}
    chosen = tuple(sorted(named) if streams is None else streams)
    length = max(len(trajectory.steps) for trajectory in trajectories)
    reached = np.zeros((len(trajectories), length), np.bool_)
    values = np.full((len(chosen), *reached.shape), np.nan)
    for i, trajectory in enumerate(trajectories):
        if not ran(trajectory):
            continue
        without = _masked_steps(trajectory, masked)
        for t, step in enumerate(trajectory.steps):
            if t in without:
                continue
            reached[i, t] = True
            for k, name in enumerate(chosen):
                reward = step.rewards.get(name)
                if reward is not None:
                    values[k, i, t] = reward
    unknown = sorted(set(chosen) - named)
    if unknown and reached.any():
        raise ValueError(
            f"no step of the group of task {trajectories[0].task.id!r} names the reward streams {unknown}; the steps"
            f" name {sorted(named)}. Score the missing streams in the environment or by a scorer (None where they say"
            " nothing), or leave them out of the configuration"
        )
    return GroupRewards(chosen, values, reached)


def ran(trajectory: Trajectory) -> bool:
    """Whether an episode says anything about the policy: it neither failed nor was cancelled."""
    return not (trajectory.outcome.failed or trajectory.outcome.reason == CANCELLED)


def without_truncated(group: GroupRewards, trajectories: Sequence[Trajectory]) -> GroupRewards:
    """What is learnt from under TRL's `mask_truncated_completions`: no step of a truncated episode.

    For after the advantages: as in TRL, what a truncated episode earned is part of what the others are compared with,
    or those who finished would be compared with each other alone.
    """
    out = np.array([trajectory.outcome.truncated for trajectory in trajectories], np.bool_)[:, None]
    return GroupRewards(group.streams, np.where(out, np.nan, group.values), group.reached & ~out)


def masked_second_zoom(trajectory: Trajectory) -> frozenset[int]:
    """LOVE-R1's masked steps: a second look where the answer was due masks that look and the one before it.

    Where a task has a gold answer, LOVE-R1's step 2 has to answer. A sample whose step 2 sets out to zoom once more is
    left out of the loss and of the group statistics of both steps, because nothing says how good its clips were
    (LOVE-R1, decoupled RFT; `mask_flag` in its trainer). What decides is how the last message begins: with the zoom
    sentence the two steps are masked, whether a window could be read in the rest or not. A last message that begins
    otherwise is wrong, not unknown, and stays. In dialects without these sentences a look that ran stands for one.
    """
    steps, last = trajectory.steps, len(trajectory.steps) - 1
    if trajectory.task.answer is None or trajectory.outcome.answer is not None or last < 1:
        return frozenset()
    return frozenset((last - 1, last)) if _sets_out_to_zoom(steps[last]) else frozenset()


def _sets_out_to_zoom(step: StepRecord) -> bool:
    looked = step.outcome == "ok" and step.call is not None and step.call.name != "answer"
    return looked or step.text.lstrip().startswith(ZOOM)


@dataclass(frozen=True, eq=False)
class StreamStatistics:
    """One stream over some groups, per step; float64 (T,) each, NaN where there was nothing to measure.

    Attributes:
        mean: mean of all scored rewards at the step.
        std: mean over groups of the standard deviation within the group (Bessel-corrected), groups with two scored
            rewards or more.
        zero_std: share of those groups in which all scored rewards are equal: they teach nothing in this stream.
        unscored: share of the counted steps that have no reward in this stream. Many streams speak of one step of an
            episode only, and are silent at the others by design; so see also
        silent: share of the counted episodes in which the stream scored no step at all (not per step; NaN for none).
    """

    mean: Array
    std: Array
    zero_std: Array
    unscored: Array
    silent: float


def stream_statistics(groups: Sequence[GroupRewards]) -> dict[str, StreamStatistics]:
    """Statistics of every stream over some groups, for logs. Groups may differ in streams, rollouts and steps."""
    length = max((group.reached.shape[1] for group in groups), default=0)
    names = sorted({name for group in groups for name in group.streams})
    return {name: _statistics([g for g in groups if name in g.streams], name, length) for name in names}


def as_metrics(statistics: Mapping[str, StreamStatistics]) -> dict[str, float]:
    """Flat numbers for a logger: `rewards/<stream>/step<t>/mean|std|frac_zero_std|frac_unscored`, steps from 0, and
    `rewards/<stream>/frac_episodes_unscored`. What was not measured is left out.
    """
    metrics: dict[str, float] = {}
    for name, of in statistics.items():
        columns = {"mean": of.mean, "std": of.std, "frac_zero_std": of.zero_std, "frac_unscored": of.unscored}
        for t in range(len(of.mean)):
            for what, column in columns.items():
                if not math.isnan(column[t]):
                    metrics[f"rewards/{name}/step{t}/{what}"] = float(column[t])
        if not math.isnan(of.silent):
            metrics[f"rewards/{name}/frac_episodes_unscored"] = of.silent
    return metrics


def _statistics(groups: Sequence[GroupRewards], name: str, length: int) -> StreamStatistics:
    counted, scored, total = np.zeros(length), np.zeros(length), np.zeros(length)
    measured, spread, zero = np.zeros(length), np.zeros(length), np.zeros(length)
    episodes, silent = 0, 0
    for group in groups:
        steps = slice(group.reached.shape[1])
        rewards = group.stream(name)
        have = ~np.isnan(rewards)
        episodes += int(group.reached.any(axis=1).sum())
        silent += int((group.reached.any(axis=1) & ~have.any(axis=1)).sum())
        n, number = have.sum(axis=0), np.where(have, rewards, 0.0)
        counted[steps] += group.reached.sum(axis=0)
        scored[steps] += n
        total[steps] += number.sum(axis=0)
        mean = number.sum(axis=0) / np.maximum(n, 1)
        variance = (np.where(have, rewards - mean, 0.0) ** 2).sum(axis=0) / np.maximum(n - 1, 1)
        low, high = np.where(have, rewards, np.inf).min(axis=0), np.where(have, rewards, -np.inf).max(axis=0)
        measured[steps] += n > 1
        spread[steps] += np.where(n > 1, np.sqrt(variance), 0.0)
        zero[steps] += (n > 1) & (low == high)
    return StreamStatistics(
        mean=_ratio(total, scored),
        std=_ratio(spread, measured),
        zero_std=_ratio(zero, measured),
        unscored=_ratio(counted - scored, counted),
        silent=silent / episodes if episodes else math.nan,
    )


def _ratio(above: Array, below: Array) -> Array:
    return np.where(below > 0, above / np.maximum(below, 1), np.nan)


def _masked_steps(trajectory: Trajectory, masked: MaskRule | None) -> Collection[int]:
    steps = frozenset() if masked is None else frozenset(masked(trajectory))
    wrong = sorted(steps - set(range(len(trajectory.steps))))
    if wrong:
        raise ValueError(
            f"the mask names the steps {wrong} of trajectory {trajectory.id!r}, which has {len(trajectory.steps)} steps"
            " (counted from 0)"
        )
    return steps


def _check_one_group(trajectories: Sequence[Trajectory]) -> None:
    if not trajectories:
        raise ValueError("a group has at least one trajectory, got none")
    first, seen = trajectories[0], set[str]()
    for trajectory in trajectories:
        if trajectory.task != first.task or trajectory.start != first.start:
            raise ValueError(
                f"trajectories {first.id!r} and {trajectory.id!r} are not of one group: a group is rollouts of one task"
                " from one start; give each task's rollouts in a call of their own"
            )
        if trajectory.id in seen:
            raise ValueError(f"trajectory {trajectory.id!r} is twice in the group; a rollout counts once")
        seen.add(trajectory.id)
