"""`VideoQAEnv`: questions about videos as an environment with one step per assistant message.

`reset` opens the task's videos and shows the overview; `step` reads one message by the dialect, runs the tool, and
shows what it gave. The promises are those of `closeup.agent.contract`; these are its own.

Invariants
1. Nothing over budget is shown: a clip that does not fit is refused, and the model is told what is left.
2. The last message that a budget allows is a forced answer: only `answer` is taken, and the dialect's prefix begins it
   (but see `Preset.last_message`). A forced message that is no valid answer truncates the episode, under the name of
   the limit that forced it; that of a preset's `after_fault` is "after_fault".
3. Text of tasks, tools and error messages passes through `Dialect.plain` and is bounded in length.
4. Evidence in an answer is cut to windows that were watched closely; what is cut off is listed in `StepInfo.dropped`.
5. Nothing is drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from closeup import prompts
from closeup.agent.acting import Deed, act, bounded
from closeup.agent.budget import Cost, Spent
from closeup.agent.contract import EpisodeError, Observation, StepInfo, StepResult
from closeup.agent.dialects import get_dialect
from closeup.agent.evidence import watched_part
from closeup.agent.geometry import VisionGeometry
from closeup.agent.messages import Message, valid_text
from closeup.agent.preset import Preset
from closeup.agent.scoring import RewardFn, StepFacts
from closeup.agent.session import Session
from closeup.agent.task import Task
from closeup.tools.base import Answer, Tool
from closeup.tools.registry import registered_tools
from closeup.tools.video.clip import Clip
from closeup.tools.video.reader import Video


class VideoQAEnv:
    """The environment of one agent; runs one episode at a time.

    Args:
        preset: dialect, prompts, overview, budgets, rules and tool names.
        tools: the tools in force; default: those the preset names, from the registry.
        rewards: immediate reward streams by name.
        geometry: how the policy's model turns frames into visual tokens (`Policy.geometry`).
        video_backend: decoding backend of `Video`; threads: decoding threads per video.

    Raises:
        ValueError: an unknown dialect, prompt set or tool, or no `answer` tool.
    """

    def __init__(
        self,
        preset: Preset,
        *,
        tools: Sequence[type[Tool[Any]]] | None = None,
        rewards: Mapping[str, RewardFn] | None = None,
        geometry: VisionGeometry | None = None,
        video_backend: str = "pyav",
        threads: int = 2,
    ) -> None:
        self.preset = preset
        self.dialect = get_dialect(preset.dialect)
        self._prompts = {"set": preset.prompts, "fingerprint": prompts.fingerprint(preset.prompts)}
        chosen = registered_tools(preset.tools).values() if tools is None else tools
        self.tools: dict[str, type[Tool[Any]]] = {tool.name: tool for tool in chosen}
        if "answer" not in self.tools:
            raise ValueError(f"an episode ends with the tool 'answer', got only: {', '.join(self.tools) or 'no tool'}")
        self._specs = tuple(tool.spec() for tool in self.tools.values())
        self.rewards = dict(rewards or {})
        self.geometry = geometry or VisionGeometry()
        self.video_backend = video_backend
        self.threads = threads
        self._session: Session | None = None

    @property
    def spent(self) -> Spent:
        """What the episode has used of its budget so far (a copy)."""
        return replace(self._session.meter.spent) if self._session else Spent()

    def reset(
        self,
        task: Task,
        *,
        seen_clips: Sequence[Clip] = (),
        history: Sequence[Message] = (),
        assistant_prefix: str = "",
        seed: int | None = None,
        episode_id: str | None = None,
    ) -> Observation:
        """Open the task's videos and show overview and question.

        Args:
            seen_clips: clips shown with the overview as watched already (an episode that starts in its middle).
            history: an earlier conversation to go on from; the clips in it stay watched, and the overview of a video
                that it shows is not shown again.
            assistant_prefix: text the first message must begin with.
            seed: taken because other environments draw; this one does not.
            episode_id: name of the episode in errors; default: the task's id.

        Raises:
            VideoError: a video cannot be opened.
            ValueError: a clip of an unknown video, or an overview that is over budget by itself.
        """
        self.close()
        videos: list[Video] = []
        try:
            for path in task.videos:
                videos.append(Video(path, backend=self.video_backend, threads=self.threads))
            session = Session(
                task,
                episode_id or task.id,
                preset=self.preset,
                dialect=self.dialect,
                tools=tuple(self.tools.values()),
                specs=self._specs,
                geometry=self.geometry,
                videos=tuple(videos),
            )
            observation = session.open(tuple(seen_clips), tuple(history), assistant_prefix)
        except BaseException:
            for video in videos:
                video.close()
            raise
        self._session = session
        return observation

    def step(
        self, message: str, *, finish: Literal["stop", "length"] = "stop", spent_context_tokens: int | None = None
    ) -> StepResult:
        """Take one assistant message, prefix included.

        Args:
            finish: "length" when the message was cut at its token limit.
            spent_context_tokens: the policy's own count of the context with this message; estimated when None.

        Raises:
            EpisodeError: a tool or reward function is at fault. RuntimeError: no episode is live (`reset` first).
        """
        session = self._session
        if session is None or session.over:
            raise RuntimeError("no episode is live: call reset(task) before step(message)")
        if finish not in ("stop", "length"):
            raise ValueError(f"finish is 'stop' or 'length', got {finish!r}; a failed message is not a step")
        text = valid_text(message)
        forced_by, earlier = session.forced_by, session.close
        session.take(text, spent_context_tokens)
        deed = act(session, self.tools, text, cut=finish == "length")
        fault = deed.outcome != "ok"
        answer_now = fault and self.preset.after_fault in ("answer", "look_and_answer")
        given = deed.result.clips
        if fault and self.preset.after_fault == "look_and_answer" and not forced_by:
            given = session.whole_look()
        close = session.watch(given)
        answer, dropped = self._answer(session, deed.result.answer)
        limit, reason = "", ""
        if answer is not None:
            observation = session.finished()
        else:
            if forced_by:
                limit, reason = forced_by, f"the forced last message was no valid answer ({deed.outcome})"
            elif fault and self.preset.after_fault == "end":
                limit, reason = "after_fault", f"the message could not be carried out ({deed.outcome})"
            elif session.meter.spent.steps >= self.preset.budget.max_steps:
                limit, reason = "max_steps", "the last message was no answer"
            observation = session.news(self._news(deed), given, failed=fault, last=bool(limit), answer_now=answer_now)
            if not limit and session.meter.full:
                limit, reason = "max_context_tokens", "no room was left for an answer"
        session.over = answer is not None or bool(limit)
        cost = sum((session.cost(clip) for clip in deed.result.clips), Cost())
        facts = StepFacts(
            task=session.task,
            outcome=deed.outcome,
            tool=deed.call.name if deed.call and deed.outcome == "ok" else None,
            clips=deed.result.clips,
            close=() if fault else close,
            earlier=earlier,
            answer=answer,
            durations={video.identity: video.duration for video in session.videos},
            forced=bool(forced_by),
            thought=deed.thought,
            text=text,
            frames=cost.frames,
            visual_tokens=cost.visual_tokens,
        )
        info = StepInfo(
            text=text,
            outcome=deed.outcome,
            thought=deed.thought,
            call=deed.call,
            note=deed.note,
            hint=deed.hint,
            clips=given,
            close=close,
            answer=answer,
            dropped=dropped,
            forced=bool(forced_by),
            limit=limit,
            reason=reason,
            tool_seconds=deed.seconds,
        )
        return StepResult(observation, self._score(session, facts), answer is not None, bool(limit), info)

    def settings(self) -> dict[str, Any]:
        """Preset, prompts' fingerprint, geometry, backend, names of tools and reward streams."""
        return {
            "preset": self.preset.model_dump(mode="json"),
            "prompts": dict(self._prompts),
            "geometry": self.geometry.model_dump(),
            "video_backend": self.video_backend,
            "tools": list(self.tools),
            "rewards": sorted(self.rewards),
        }

    def close(self) -> None:
        """Close the opened videos and end the episode; harmless when there is none."""
        if self._session is not None:
            self._session.end()
            self._session = None

    def __enter__(self) -> VideoQAEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _news(self, deed: Deed) -> str:
        """The text that goes back to the model: the error, or the tool's words, or a word where a tool gave nothing."""
        if deed.note:
            return prompts.render(self.preset.prompts, "error", message=deed.note)
        if deed.result.text:
            return self.dialect.plain(bounded(deed.result.text))
        return "" if deed.result.clips else "done"

    def _answer(self, session: Session, answer: Answer | None) -> tuple[Answer | None, tuple[tuple[float, float], ...]]:
        if answer is None:
            return None, ()
        kept, dropped = watched_part(answer.evidence, [(clip.start, clip.end) for clip in session.close])
        return replace(answer, evidence=kept), dropped

    def _score(self, session: Session, facts: StepFacts) -> dict[str, float | None]:
        scores: dict[str, float | None] = {}
        for name, reward in self.rewards.items():
            try:
                value = reward(facts)
                if value is not None and not math.isfinite(value):
                    raise ValueError(f"a reward is a finite number or None, got {value!r}")
            except Exception as error:
                raise EpisodeError(session.episode_id, error, doing=f"reward {name}") from error
            scores[name] = None if value is None else float(value)
        return scores
