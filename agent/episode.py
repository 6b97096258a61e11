"""Running episodes: tasks and a policy in, trajectories out.

`run_episodes` keeps many episodes live and asks the policy for all their next messages at once; `arun_episode` runs one
without blocking the event loop. Both tell what happens through events (`closeup.agent.events`).

Invariants
1. One trajectory per episode comes back, in the order of the tasks, whatever happened to it.
2. What one episode does never changes another: not its context, not its seeds, not its fate.
3. Cancelling ends every live episode within a token or so; each is recorded as truncated.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from closeup.agent.contract import Environment
from closeup.agent.environment import VideoQAEnv
from closeup.agent.events import OnEvent
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
        on_event: told what happens; an exception it raises ends the run.
        cancel: setting it ends the run early.

    Raises:
        ValueError: neither or both of preset and environment; a preset that names an unknown tool, dialect or prompt
            set; two episodes with one id; rollouts or max_live below 1.
    """
    if rollouts < 1 or max_live < 1:
        raise ValueError(f"rollouts and max_live are at least 1, got {rollouts} and {max_live}")
    make, drawn = _environment(preset, environment, policy, rewards, sampling)
    run = RunSettings(drawn, seed, judge, scorers, on_event)
    episodes = [LiveEpisode(start, make, policy, run) for start in _starts(tasks, rollouts)]
    waiting, live = deque(episodes), list[LiveEpisode]()
    try:
        while waiting or live:
            if cancel is not None and cancel.is_set():
                for episode in (*live, *waiting):
                    episode.cancel()
                break
            while waiting and len(live) < max_live:
                live.append(waiting.popleft())
                live[-1].open()
            live = [episode for episode in live if episode.alive]
            _turn(live, policy, tokens=on_event is not None, cancel=cancel)
            live = [episode for episode in live if episode.alive]
    finally:
        for episode in live:
            episode.close()
    return [episode.trajectory for episode in episodes if episode.trajectory is not None]


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


def _turn(live: Sequence[LiveEpisode], policy: Policy, *, tokens: bool, cancel: threading.Event | None) -> None:
    """One message for every live episode."""
    if not live:
        return
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
        return
    seconds = (time.perf_counter() - began) / len(live)
    for episode, completion in zip(live, done, strict=True):
        episode.take(completion, seconds)


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
