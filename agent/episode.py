"""Running episodes: tasks and a policy in, trajectories out.

`run_episodes` keeps many episodes live and asks the policy for all their next messages at once; `arun_episode` runs one
without blocking the event loop. Both tell what happens through events (`closeup.agent.events`).

Invariants
1. One trajectory per episode comes back, in the order of the tasks, whatever happened to it.
2. What one episode does never changes another: not its context, not its seeds, not its fate.
3. Cancelling ends every live episode within a token or so; each is recorded as truncated.
4. Which episodes are written together is fixed by their order and `cohorts`, never by what took how long.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from closeup.agent.contract import Environment
from closeup.agent.environment import VideoQAEnv
from closeup.agent.events import Event, OnEvent
from closeup.agent.live import LiveEpisode, RunSettings
from closeup.agent.policies.base import Completion, Policy, Sampling
from closeup.agent.preset import Preset
from closeup.agent.scoring import Judge, RewardFn, Scorer, exact_option, with_scores
from closeup.agent.start import Start, step_seed
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory
from closeup.tools.registry import registered_tools

__all__ = ["Judge", "Start", "arun_episode", "run_episodes", "step_seed", "with_scores"]
log = logging.getLogger(__name__)


def run_episodes(
    tasks: Sequence[Task | Start],
    policy: Policy,
    *,
    preset: Preset | None = None,
    environment: Callable[[], Environment] | None = None,
    rewards: Mapping[str, RewardFn] | None = None,
    judge: Judge = exact_option,
    scorers: Sequence[Scorer] = (),
    rollouts: int = 1,
    sampling: Sampling | None = None,
    seed: int = 0,
    max_live: int = 32,
    cohorts: int = 1,
    on_event: OnEvent | None = None,
    cancel: threading.Event | None = None,
) -> list[Trajectory]:
    """Run every task `rollouts` times and return the trajectories, task by task.

    Args:
        tasks: tasks, or starts in the middle of one.
        policy: writes the messages, batched over the live episodes.
        preset: makes a `VideoQAEnv` per episode; or
        environment: makes an environment per episode (give one of the two).
        rewards: immediate reward streams, for `preset`.
        judge: says whether an answer is right; default: exact option text.
        scorers: late reward streams, applied to each trajectory that did not fail.
        sampling: how tokens are drawn; default: the preset's temperature and message length. Its seed is replaced.
        seed: together with task id, rollout and step it fixes every message's seed.
        max_live: episodes that run at the same time; another starts as soon as one ends.
        cohorts: tasks are dealt to so many cohorts in turn, which share `max_live`. While one's messages are generated,
            the others' tools run and their next frames are decoded, each on a thread of its own. 1: one after another,
            in the largest batches.
        on_event: told what happens, one event at a time; an exception it raises ends the run.
        cancel: setting it ends the run early.

    Raises:
        ValueError: neither or both of preset and environment; a preset that names an unknown tool, dialect or prompt
            set; two episodes with one id; rollouts, max_live or cohorts below 1.
    """
    if rollouts < 1 or max_live < 1 or cohorts < 1:
        raise ValueError(f"rollouts, max_live and cohorts are at least 1, got {rollouts}, {max_live} and {cohorts}")
    make, drawn = _environment(preset, environment, policy, rewards, sampling)
    told = on_event if on_event is None or cohorts == 1 else _one_at_a_time(on_event)
    run = RunSettings(drawn, seed, judge, scorers, told)
    episodes = [LiveEpisode(start, make, policy, run) for start in _starts(tasks, rollouts)]
    count = min(cohorts, len(tasks), max_live)
    if count <= 1:
        _run_in_turn(_Cohort(episodes, max_live, policy), told is not None, cancel)
    else:
        dealt = [[e for i, e in enumerate(episodes) if i // rollouts % count == c] for c in range(count)]
        limits = [max_live // count + (c < max_live % count) for c in range(count)]
        _run_overlapped(
            [_Cohort(of, limit, policy) for of, limit in zip(dealt, limits, strict=True)], told is not None, cancel
        )
    return [episode.trajectory for episode in episodes if episode.trajectory is not None]


class _Cohort:
    """Episodes whose messages are generated together: `ready`, `write`, `take`, and again, while there are any."""

    def __init__(self, episodes: Sequence[LiveEpisode], limit: int, policy: Policy) -> None:
        self.waiting, self.live = deque(episodes), list[LiveEpisode]()
        self._limit, self._policy = limit, policy

    def ready(self) -> None:
        """Open as many of those waiting as may be live."""
        while self.waiting and len(self.live) < self._limit:
            self.live.append(self.waiting.popleft())
            self.live[-1].open()
        self.live = [episode for episode in self.live if episode.alive]

    def write(self, tokens: bool, cancel: threading.Event | None) -> tuple[list[Completion], float]:
        """The next message of every live episode, and its share of the time in seconds."""
        return _write(self.live, self._policy, tokens=tokens, cancel=cancel)

    def take(self, done: Sequence[Completion], seconds: float) -> None:
        """Run what the messages ask for."""
        for episode, completion in zip(self.live, done, strict=False):  # none when the policy raised
            episode.take(completion, seconds)
        self.live = [episode for episode in self.live if episode.alive]

    def go_on(self, done: Sequence[Completion], seconds: float) -> None:
        """What is done on a thread: `take`, `ready`, and the frames of the next messages, decoded ahead."""
        self.take(done, seconds)
        self.ready()
        for episode in self.live:
            episode.decode_ahead()

    def cancel(self) -> None:
        for episode in (*self.live, *self.waiting):
            episode.cancel()
        self.live, self.waiting = [], deque()

    def close(self) -> None:
        for episode in self.live:
            episode.close()


def _run_in_turn(cohort: _Cohort, tokens: bool, cancel: threading.Event | None) -> None:
    try:
        while cohort.waiting or cohort.live:
            if cancel is not None and cancel.is_set():
                cohort.cancel()
                break
            cohort.ready()
            if cohort.live:
                cohort.take(*cohort.write(tokens, cancel))
    finally:
        cohort.close()


def _run_overlapped(cohorts: Sequence[_Cohort], tokens: bool, cancel: threading.Event | None) -> None:
    """Generate for one cohort after the other here, everything else of each on a thread of its own."""
    with ThreadPoolExecutor(len(cohorts), thread_name_prefix="closeup-cohort") as pool:
        busy: dict[int, Future[None]] = {i: pool.submit(cohort.go_on, (), 0.0) for i, cohort in enumerate(cohorts)}
        try:
            while busy:
                for i in list(busy):
                    busy.pop(i).result()
                    cohort = cohorts[i]
                    if cancel is not None and cancel.is_set():
                        cohort.cancel()
                    elif cohort.live:
                        busy[i] = pool.submit(cohort.go_on, *cohort.write(tokens, cancel))
                    elif cohort.waiting:  # everything that was opened failed
                        busy[i] = pool.submit(cohort.go_on, (), 0.0)
        finally:
            wait(busy.values())  # nothing may work on a closed episode
            for cohort in cohorts:
                cohort.close()


def _one_at_a_time(on_event: OnEvent) -> OnEvent:
    """A listener that is not called by two threads at once."""
    lock = threading.Lock()

    def tell(event: Event) -> None:
        with lock:
            on_event(event)

    return tell


async def arun_episode(
    task: Task | Start,
    policy: Policy,
    *,
    preset: Preset | None = None,
    environment: Callable[[], Environment] | None = None,
    rewards: Mapping[str, RewardFn] | None = None,
    judge: Judge = exact_option,
    scorers: Sequence[Scorer] = (),
    sampling: Sampling | None = None,
    seed: int = 0,
    on_event: OnEvent | None = None,
) -> Trajectory:
    """Run one episode without blocking the event loop; arguments as for `run_episodes`.

    Cancelling the awaiting task ends the episode within a token or so. Its record, truncated, is told by the `Finished`
    event before `CancelledError` goes on.
    """
    make, drawn = _environment(preset, environment, policy, rewards, sampling)
    (start,) = _starts([task], 1)
    episode = LiveEpisode(start, make, policy, RunSettings(drawn, seed, judge, scorers, on_event))
    try:
        await _in_thread(episode.open)
        while episode.alive:
            began = time.perf_counter()
            try:
                (done,) = await policy.agenerate([episode.request()], on_token=lambda _, text: episode.token(text))
            except Exception as error:
                episode.fail(error)
                break
            await _in_thread(episode.take, done, time.perf_counter() - began)
    except asyncio.CancelledError:
        if episode.alive:
            episode.cancel()
        raise
    finally:
        episode.close()
    assert episode.trajectory is not None  # an episode that is no longer alive has its record
    return episode.trajectory


async def _in_thread(work: Callable[..., None], *arguments: object) -> None:
    """Run `work` off the event loop; when cancelled, wait for its end first: nothing may work on a closed episode."""
    thread = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])
        raise


def _write(
    live: Sequence[LiveEpisode], policy: Policy, *, tokens: bool, cancel: threading.Event | None
) -> tuple[list[Completion], float]:
    """One message for every live episode and each one's share of the time; none when the policy raised."""
    by_id = {episode.id: episode for episode in live}
    listener_faults: list[Exception] = []

    def pass_on(episode_id: str, text: str) -> None:
        try:
            by_id[episode_id].token(text)
        except Exception as error:
            listener_faults.append(error)
            raise

    began = time.perf_counter()
    try:
        done: list[Completion] = policy.generate(
            [episode.request() for episode in live],
            on_token=pass_on if tokens else None,
            cancel=cancel,
        )
        if len(done) != len(live):
            raise RuntimeError(f"the policy gave {len(done)} completions for {len(live)} requests")
    except Exception as error:  # a policy that raises fails the episodes it was asked for, and no other
        if listener_faults:
            raise listener_faults[0] from None
        log.error("policy %s failed", policy.name, exc_info=error)
        for episode in live:
            episode.fail(f"the policy raised {type(error).__name__}: {error}")
        return [], 0.0
    return done, (time.perf_counter() - began) / len(live)


def _starts(tasks: Sequence[Task | Start], rollouts: int) -> list[Start]:
    starts = []
    for task in tasks:
        start = task if isinstance(task, Start) else Start(task)
        starts += [
            Start(start.task, start.seen_clips, start.history, start.assistant_prefix, start.rollout + rollout)
            for rollout in range(rollouts)
        ]
    seen: set[str] = set()
    for start in starts:
        if start.id in seen:
            raise ValueError(f"two episodes are called {start.id!r}; give tasks unique ids, or starts unique rollouts")
        seen.add(start.id)
    return starts


def _environment(
    preset: Preset | None,
    environment: Callable[[], Environment] | None,
    policy: Policy,
    rewards: Mapping[str, RewardFn] | None,
    sampling: Sampling | None,
) -> tuple[Callable[[], Environment], Sampling]:
    if (preset is None) == (environment is None):
        raise ValueError("give exactly one of preset and environment")
    if preset is None:
        assert environment is not None
        if rewards is not None:
            raise ValueError("rewards belong to the environment: give them to it, not to run_episodes")
        return environment, sampling or Sampling()
    chosen = preset
    if policy.max_context is not None and policy.max_context < preset.budget.max_context_tokens:
        budget = preset.budget.model_copy(update={"max_context_tokens": policy.max_context})
        chosen = preset.model_copy(update={"budget": budget})  # so that an answer is forced before the model is full
    tools = tuple(registered_tools(chosen.tools).values())  # once, not per episode: plugins are looked up on disk
    drawn = sampling or Sampling(temperature=chosen.temperature, max_new_tokens=chosen.budget.max_new_tokens)

    def make() -> VideoQAEnv:
        return VideoQAEnv(chosen, tools=tools, rewards=rewards, geometry=policy.geometry)

    make().close()  # a preset that makes no environment is the caller's error, before anything runs
    return make, drawn
