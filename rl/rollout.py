"""Rollouts: tasks in, groups of finished and scored trajectories out; what a trainer learns from.

All rollouts of all tasks run together, one batched generation per turn for all that are alive; only LOVE-R1's grounding
samples, which run under rules of their own (`closeup.rl.starts`), come before or after the others. Which tasks a
generation has, and every token's seed, are pure functions of (seed, generation, attempt, task, rollout, step): a
resumed run draws what the run would have drawn, without a cursor to be saved, and two processes draw what one would
have.

Invariants
1. G trajectories per task come back, whatever happened: a failed episode is data, with its reason, and to be masked.
2. The same task twice in a call gives two groups, whose rollouts have seeds of their own.
3. Late rewards are added here, each scorer asked once for all trajectories. Where it raises it is asked for each one
   alone, and an episode that it raises for has failed: no score is made up, and its siblings keep theirs.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from closeup.agent.episode import run_episodes
from closeup.agent.events import OnEvent
from closeup.agent.policies.base import Policy, Sampling
from closeup.agent.preset import Preset
from closeup.agent.scoring import RewardFn, Scorer
from closeup.agent.start import Start
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory
from closeup.rl.rewards import is_correct
from closeup.rl.scorers import score_group
from closeup.rl.starts import opening
from closeup.tools.video import Video, VideoError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one task; `greedy` is one at temperature 0 beside them, where it was asked for."""

    task: Task
    trajectories: tuple[Trajectory, ...]
    greedy: Trajectory | None = None


def task_order(count: int, begin: int, number: int, *, seed: int, shuffle: bool = True) -> list[int]:
    """Indices at places begin .. begin + number - 1 of an endless sequence of epochs over `count` tasks.

    Each epoch holds every index once, shuffled by (seed, epoch) or in order.
    """
    found: list[int] = []
    while len(found) < number:
        epoch, place = divmod(begin + len(found), count)
        order = np.random.default_rng([seed, epoch]).permutation(count) if shuffle else np.arange(count)
        found += order[place : place + number - len(found)].tolist()
    return found


def draw_seed(*parts: int) -> int:
    """A 63-bit seed made of numbers: the same on every machine, unrelated for any two different sequences."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _scored(done: Sequence[Trajectory], scorer: Scorer) -> list[Trajectory]:
    """The trajectories with a scorer's stream added; failed, with the reason, where it raises."""
    name = getattr(scorer, "name", type(scorer).__name__)
    try:
        return score_group(done, [scorer])
    except Exception as error:  # a user's scorer may raise anything
        log.error(
            "the scorer %r cannot score %d episodes together; each is given alone", name, len(done), exc_info=error
        )
    found: list[Trajectory] = []
    for trajectory in done:
        try:
            found += score_group([trajectory], [scorer])
        except Exception as error:
            log.error("the scorer %r cannot score episode %s", name, trajectory.id, exc_info=error)
            reason = f"scoring failed: the scorer {name!r} raised {type(error).__name__}: {error}"
            outcome = trajectory.outcome.model_copy(update={"failed": True, "reason": reason})
            found.append(trajectory.model_copy(update={"outcome": outcome}))
    return found


class Rollouts:
    """Makes groups with one policy under one preset."""

    def __init__(
        self,
        policy: Policy,
        preset: Preset,
        *,
        num_generations: int,
        rewards: Mapping[str, RewardFn],
        scorers: Sequence[Scorer] = (),
        temperature: float = 1.0,
        max_completion_length: int | None = None,
        max_live: int = 64,
        cohorts: int = 1,
        greedy: bool = False,
    ) -> None:
        """Say how.

        Args:
            num_generations: G. rewards, scorers: immediate and late streams.
            temperature: above 0. max_completion_length: tokens of one message; None: the preset's.
            max_live: episodes that run together. cohorts: as `run_episodes`.
            greedy: one more rollout per task at temperature 0 (ReMax).

        Raises:
            ValueError: a temperature that is not above 0.
        """
        if not temperature > 0:
            raise ValueError(f"rollouts are sampled at a temperature above 0, got {temperature}")
        self.policy, self.preset = policy, preset
        self._count, self._max_live, self._cohorts, self._greedy = num_generations, max_live, cohorts, greedy
        self._rewards, self._scorers = dict(rewards), tuple(scorers)
        length = max_completion_length or preset.budget.max_new_tokens
        self._sampling = Sampling(temperature=temperature, max_new_tokens=length)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="closeup-prefetch")

    def groups(
        self, tasks: Sequence[Task], *, seed: int, earlier: Sequence[Task] = (), on_event: OnEvent | None = None
    ) -> list[Group]:
        """One group per task, in order.

        Args:
            seed: of this generation. earlier: tasks that another process runs under the same seed and that count as
                standing before these: a task that is among them gets rollouts of its own.
            on_event: as `run_episodes`; an exception it raises ends the run.
        """
        width = self._count + self._greedy
        seen = Counter(task.id for task in earlier)
        starts: list[tuple[Start, Preset]] = []
        for task in tasks:
            starts.append(opening(task, self.preset, rollout=seen[task.id] * width))
            seen[task.id] += 1

        def run(starts: Sequence[tuple[Start, Preset]], rollouts: int, sampling: Sampling) -> list[Trajectory]:
            of_place: dict[int, list[Trajectory]] = {}
            for preset in dict.fromkeys(preset for _, preset in starts):
                places = [place for place, (_, own) in enumerate(starts) if own == preset]
                found = run_episodes(
                    [starts[place][0] for place in places],
                    self.policy,
                    preset=preset,
                    rewards=self._rewards,
                    judge=is_correct,
                    rollouts=rollouts,
                    sampling=sampling,
                    seed=seed,
                    max_live=self._max_live,
                    cohorts=self._cohorts,
                    on_event=on_event,
                )
                of_place |= {place: found[i * rollouts : (i + 1) * rollouts] for i, place in enumerate(places)}
            done = [trajectory for place in sorted(of_place) for trajectory in of_place[place]]
            for scorer in self._scorers:
                done = _scored(done, scorer)
            return done

        sampled = run(starts, self._count, self._sampling)
        best: list[Trajectory | None] = [None] * len(tasks)
        if self._greedy:
            last = [(replace(start, rollout=start.rollout + self._count), preset) for start, preset in starts]
            best = list(run(last, 1, replace(self._sampling, temperature=0.0)))
        return [
            Group(task, tuple(sampled[i * self._count : (i + 1) * self._count]), best[i])
            for i, task in enumerate(tasks)
        ]

    def prefetch(self, tasks: Sequence[Task]) -> Future[None]:
        """Decode the overviews of tasks in the background, into the frame cache that every episode reads from.

        Meant for the next generation's tasks while this one is trained on. A video that cannot be read is left to the
        episode that will ask for it, and will record why.
        """
        return self._pool.submit(self._decode, tuple(dict.fromkeys(video for task in tasks for video in task.videos)))

    def _decode(self, videos: Sequence[object]) -> None:
        geometry, rule = self.policy.geometry, self.preset.overview
        for path in videos:
            try:
                with Video(str(path)) as video:
                    clip = rule.clip(video.identity, video.duration)
                    video.frames(clip, geometry.size(video.width, video.height, clip.pixels))
            except (VideoError, ValueError) as error:
                log.info("cannot prefetch %s: %s", path, error)

    def close(self) -> None:
        """End the background thread, after what it is doing."""
        self._pool.shutdown(wait=True, cancel_futures=True)
