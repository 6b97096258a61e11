"""`LiveEpisode`: one episode between its start and its record; what the batched and the asynchronous runner share.

It turns an environment's observations into requests, completions into steps, and everything that happened into a
`Trajectory`.

Invariants
1. An episode that breaks is recorded as failed, with the reason; nothing it raises reaches its siblings.
2. The seed of a message depends on (seed, task id, rollout, step) alone.
3. The environment is closed and the policy's state of the episode dropped as soon as the episode is over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from closeup.agent.contract import Environment, Observation, StepInfo, StepResult
from closeup.agent.events import Answered, Called, Event, Failed, Finished, OnEvent, Opened, Returned, Thought, Token
from closeup.agent.messages import Message, valid_text
from closeup.agent.policies.base import Completion, Policy, Request, Sampling
from closeup.agent.scoring import Judge, Scorer, with_scores
from closeup.agent.start import Start, step_seed
from closeup.agent.trajectory import (
    CallRecord,
    ClipRecord,
    Outcome,
    StartRecord,
    StepRecord,
    Trajectory,
    VideoRecord,
)
from closeup.agent.used import used
from closeup.agent.versions import versions
from closeup.tools.base import Answer
from closeup.tools.video.clip import Clip
from closeup.tools.video.errors import VideoError
from closeup.tools.video.reader import Video

log = logging.getLogger(__name__)
CANCELLED = "cancelled"  # the reason of an episode that its caller ended; it is neither right nor wrong


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What the episodes of one run share; see `run_episodes`."""

    sampling: Sampling
    seed: int
    judge: Judge
    scorers: Sequence[Scorer]
    on_event: OnEvent | None


class LiveEpisode:
    """One episode being run; `trajectory` is there once `alive` is False."""

    def __init__(self, start: Start, environment: Callable[[], Environment], policy: Policy, run: RunSettings) -> None:
        self.start = start
        self.id = start.id
        self.alive = True
        self.trajectory: Trajectory | None = None
        self._make = environment
        self._env: Environment | None = None
        self._policy = policy
        self._run = run
        self._observation: Observation | None = None
        self._opening: Observation | None = None
        self._steps: list[StepRecord] = []
        self._before: tuple[Message, ...] = ()
        self._clips: dict[str, ClipRecord] = {}
        self._asked: dict[str, Clip] = {}
        self._ahead: tuple[Clip, ...] = ()
        self._videos: dict[str, Video] = {}
        self._records: dict[str, VideoRecord] = {}
        self._settings: dict[str, Any] = {}
        self._began = time.perf_counter()

    def open(self) -> None:
        """Reset the environment; a task that cannot be run ends the episode as failed."""
        start = self.start
        self._policy.forget(self.id)
        try:
            self._env = self._make()
            self._settings = self._env.settings()
            observation = self._env.reset(
                start.task,
                seen_clips=start.seen_clips,
                history=start.history,
                assistant_prefix=start.assistant_prefix,
                seed=self._run.seed,
                episode_id=self.id,
            )
        except Exception as error:
            self.fail(error)
            return
        self._videos = dict(observation.videos)
        self._records = {identity: _video_record(video) for identity, video in self._videos.items()}
        self._observation = self._opening = observation
        self._ask_for(clip for message in observation.context for clip in message.clips)
        self._tell(Opened(self.id, start.task, self._records, observation.overviews))

    def request(self) -> Request:
        """What to ask the policy next."""
        observation = self._observation
        if observation is None or not self.alive:
            raise RuntimeError(f"episode {self.id!r} is not live")
        seed = step_seed(self._run.seed, self.start.task.id, self.start.rollout, len(self._steps))
        return Request(
            episode_id=self.id,
            messages=observation.context,
            videos=observation.videos,
            assistant_prefix=observation.assistant_prefix,
            tools=observation.tools,
            sampling=replace(self._run.sampling, seed=seed),
        )

    def decode_ahead(self) -> None:
        """Decode the frames of the next request into the cache that the policy reads from.

        A video that cannot be read is left to the request, which tells why.
        """
        geometry = self._policy.geometry
        for clip in self._ahead:
            video = self._videos.get(clip.video)
            if video is None:
                continue
            try:
                video.frames(clip, geometry.size(video.width, video.height, clip.pixels))
            except (VideoError, ValueError) as error:
                log.info("cannot decode ahead for %s: %s", self.id, error)
        self._ahead = ()

    def token(self, text: str) -> None:
        """Pass on a piece of the message being written."""
        self._tell(Token(self.id, len(self._steps), text))

    def take(self, completion: Completion, seconds: float) -> None:
        """Take the policy's message: a step, or the end of the episode. `seconds`: wall time of the generation."""
        if completion.finish == "error":
            self.fail(completion.error or "the policy gave an error without a reason")
            return
        prefix = self._observation.assistant_prefix if self._observation else ""
        if completion.finish != "cancelled" and not completion.text.startswith(prefix):
            self.fail(f"the policy did not continue the prefix {prefix!r}, it wrote {completion.text[:40]!r}")
            return
        if completion.finish == "cancelled":
            self._record(completion, StepInfo(text=valid_text(completion.text), outcome="unfinished"), {}, seconds)
            self.cancel()
            return
        assert self._env is not None
        try:
            result = self._env.step(
                completion.text, finish=completion.finish, spent_context_tokens=completion.context_tokens or None
            )
            step, info = len(self._steps), result.info
            self._ask_for(info.clips)
            self._record(completion, info, result.rewards, seconds)
        except Exception as error:
            self.fail(error)
            return
        self._observation = result.observation
        if info.thought:
            self._tell(Thought(self.id, step, info.thought))
        if info.call is not None:
            self._tell(Called(self.id, step, info.call))
        if info.answer is not None:
            self._tell(Answered(self.id, step, info.answer))
        else:
            self._tell(Returned(self.id, step, info.outcome, info.note, info.clips))
        if result.terminated or result.truncated:
            self._end(_outcome(result))

    def cancel(self) -> None:
        """End the episode as truncated, because its caller wants no more of it."""
        self._end(Outcome(truncated=True, reason=CANCELLED))

    def fail(self, error: Exception | str) -> None:
        """End the episode as failed."""
        expected = isinstance(error, str | VideoError | ValueError)
        reason = str(error) if expected else f"{type(error).__name__}: {error}"
        if not expected:
            log.error("episode %s failed", self.id, exc_info=error if isinstance(error, Exception) else None)
        self._tell(Failed(self.id, reason))
        self._end(Outcome(failed=True, reason=reason))

    def close(self) -> None:
        """Give back the environment and the policy's state; harmless when that was done."""
        self.alive = False
        if self._env is not None:
            self._env.close()
            self._env = None
        self._policy.forget(self.id)

    def _record(self, done: Completion, info: StepInfo, rewards: dict[str, float | None], seconds: float) -> None:
        assert self._observation is not None
        context = self._observation.context
        grown = not self._observation.rebuilt if done.prompt_ids is None else done.extends
        grown = grown and bool(self._steps)
        self._clips.update(done.clips)
        self._steps.append(
            StepRecord(
                parent=len(self._steps) - 1 if grown else None,
                messages=context[len(self._before) :] if grown else context,
                assistant_prefix=self._observation.assistant_prefix,
                prompt_ids=done.prompt_ids,
                text=info.text,
                ids=done.ids,
                logprobs=done.logprobs,
                finish=done.finish,
                thought=info.thought,
                call=CallRecord(name=info.call.name, arguments=dict(info.call.arguments)) if info.call else None,
                outcome=info.outcome,
                note=info.note,
                clips=tuple(clip.key for clip in info.clips),
                rewards=rewards,
                forced=self._observation.forced,
                context_tokens=done.context_tokens or None,
                generate_seconds=seconds,
                tool_seconds=info.tool_seconds,
            )
        )
        self._before = (*context, Message.of("assistant", info.text))

    def _end(self, outcome: Outcome) -> None:
        spent = self._env.spent if self._env is not None else None
        task = self.start.task
        answer = None
        if outcome.answer is not None:
            answer = Answer(outcome.choice, outcome.answer, outcome.evidence)
        outcome = outcome.model_copy(
            update={
                "steps": len(self._steps),
                "frames": spent.frames if spent else 0,
                "visual_tokens": spent.visual_tokens if spent else 0,
                "seconds": time.perf_counter() - self._began,
            }
        )
        clips = {key: self._clips.get(key) or self._unseen(clip) for key, clip in self._asked.items()}
        trajectory = Trajectory(
            id=self.id,
            task=task,
            start=StartRecord(
                seen_clips=self.start.seen_clips,
                history=self.start.history,
                assistant_prefix=self.start.assistant_prefix,
            ),
            settings=self._all_settings(clips),
            videos=self._records,
            steps=tuple(self._steps),
            clips=clips,
            outcome=outcome,
        )
        self.close()
        self.trajectory = trajectory if outcome.failed else self._judged(trajectory, answer)
        self._tell(Finished(self.id, self.trajectory))

    def _judged(self, trajectory: Trajectory, answer: Answer | None) -> Trajectory:
        """With correctness and late rewards; failed when the judge or a scorer raises: no score is made up."""
        try:
            cut = trajectory.outcome.reason == CANCELLED
            correct = None if cut else self._run.judge(trajectory.task, answer)
            judged = with_scores(trajectory, self._run.scorers)
        except Exception as error:
            log.error("scoring episode %s failed", self.id, exc_info=error)
            reason = f"scoring failed: {type(error).__name__}: {error}"
            self._tell(Failed(self.id, reason))
            outcome = trajectory.outcome.model_copy(update={"failed": True, "reason": reason})
            return trajectory.model_copy(update={"outcome": outcome})
        return judged.model_copy(update={"outcome": judged.outcome.model_copy(update={"correct": correct})})

    def _all_settings(self, clips: Mapping[str, ClipRecord]) -> dict[str, Any]:
        sampling, opening = self._run.sampling, self._opening
        texts = self._settings.get("prompts")
        return {
            **self._settings,
            "policy": self._policy.settings(),
            "sampling": {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "max_new_tokens": sampling.max_new_tokens,
            },
            "seed": self._run.seed,
            "rollout": self.start.rollout,
            "versions": versions(),
            "used": used(
                clips,
                self._steps,
                overviews={clip.key for clip in opening.overviews} if opening else (),
                context=opening.context if opening else (),
                prompt_set=texts.get("set") if isinstance(texts, Mapping) else None,
            ),
        }

    def _ask_for(self, clips: Iterable[Clip]) -> None:
        self._ahead = tuple(clips)
        self._asked.update((clip.key, clip) for clip in self._ahead)

    def _unseen(self, clip: Clip) -> ClipRecord:
        video, geometry = self._records[clip.video], self._policy.geometry
        size = geometry.size(video.width, video.height, clip.pixels)
        return ClipRecord(clip=clip, times=(), size=size, tokens=geometry.tokens(len(clip.times()), size))

    def _tell(self, event: Event) -> None:
        if self._run.on_event is not None:
            self._run.on_event(event)


def _outcome(result: StepResult) -> Outcome:
    answer, info = result.info.answer, result.info
    if answer is None:
        return Outcome(truncated=True, reason=f"{info.limit}: {info.reason}")
    return Outcome(terminated=True, answer=answer.text, choice=answer.choice, evidence=answer.evidence)


def _video_record(video: Video) -> VideoRecord:
    return VideoRecord(
        path=str(video.path),
        duration=video.duration,
        width=video.width,
        height=video.height,
        fps=video.fps,
        codec=video.codec,
    )
