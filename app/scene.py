"""`Scene`: what there is to see of one episode, as plain values: the one view-model of demo, page and terminal.

A scene comes from a record (`scene_of`) or grows with the events of a live episode (`SceneBuilder`). It holds no HTML
and no pixels: `closeup.app.html` draws it, `closeup.app.pictures` finds the frames of its looks.

Invariants
1. Scenes are immutable: a scene that was handed out never changes, whatever the episode does next.
2. A finished episode has the same scene live and from its record. While it runs, a new look holds the times that were
   asked for and the size and tokens that the geometry gives; the record then says what they became.
3. What is not known is None or empty, never a made-up number: rewards, correctness and limits included.
4. Text is carried as it is. Whoever shows it escapes it and bounds it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from closeup.agent.budget import Budget
from closeup.agent.events import Answered, Called, Event, Failed, Finished, Opened, Returned, Thought, Token
from closeup.agent.geometry import VisionGeometry
from closeup.agent.task import LETTERS, Task
from closeup.agent.trajectory import ClipRecord, Outcome, StepRecord, Trajectory, VideoRecord
from closeup.app.writing import call_so_far, in_words, is_garbled, thought_so_far
from closeup.tools.video.clip import SWSCALE, Clip, Resizer
from closeup.tools.windows import is_close_look

Window = tuple[float, float]
Status = Literal["waiting", "running", "done", "stopped", "failed"]
CallState = Literal["running", "done", "refused"]


@dataclass(frozen=True, slots=True)
class Film:
    """A video of the episode: content identity, file name and path, duration (s), size (pixels), frames per second."""

    id: str
    name: str
    path: str
    duration: float
    width: int
    height: int
    fps: float
    codec: str


@dataclass(frozen=True, slots=True)
class Look:
    """Frames the agent was shown.

    Attributes:
        video: the film's identity. start, end: the window in seconds. times: of its frames, in seconds.
        size: (height, width) in pixels as the model saw them. tokens: visual tokens they took.
        mode: "exact" or "keyframe". kind: "close" when it shows its window more closely than the overview does.
        overlay: drawing on every frame ("seconds", "blank"), or "". resizer: what gave the frames their size.
    """

    video: str
    start: float
    end: float
    times: tuple[float, ...]
    size: tuple[int, int]
    tokens: int
    mode: Literal["exact", "keyframe"] = "exact"
    kind: Literal["overview", "close"] = "close"
    overlay: str = ""
    resizer: Resizer = SWSCALE


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call: "running" from its first written letter until its result; `seconds` of the tool, None if unknown.

    `arguments` are (name, value as text); `note` is the sentence that refused it, or "".
    """

    name: str
    arguments: tuple[tuple[str, str], ...] = ()
    state: CallState = "running"
    seconds: float | None = None
    looks: tuple[Look, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class StepView:
    """One assistant message: the thought so far, its calls, and what came of it.

    Attributes:
        index: from 0. thought: as far as it is written; of a message that is no call, its words.
        calls: one, or none where no call could be read.
        outcome: the format outcome ("ok", "no_call", …); "" while it is written.
        note: what the model was told when no call could be read. looks: what it was shown although it made no call.
        rewards: (stream, reward or None for not scored). forced: only an answer was taken.
        seconds: of the generation; None while it is written or when unknown.
    """

    index: int
    thought: str = ""
    calls: tuple[Call, ...] = ()
    outcome: str = ""
    note: str = ""
    looks: tuple[Look, ...] = ()
    rewards: tuple[tuple[str, float | None], ...] = ()
    forced: bool = False
    seconds: float | None = None

    @property
    def garbled(self) -> bool:
        """Its words are debris of a call that could not be read, and no thought."""
        return self.outcome not in ("", "ok") and not self.calls and is_garbled(self.thought)

    @property
    def watched(self) -> tuple[Look, ...]:
        """Every look this step gave."""
        return (*self.looks, *(look for call in self.calls for look in call.looks))


@dataclass(frozen=True, slots=True)
class Spending:
    """One budget: "steps", "frames", "visual tokens" or "seconds"; `allowed` is None without a limit."""

    name: str
    used: float
    allowed: float | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything there is to see of an episode; see the module's invariants.

    Attributes:
        id: the episode's id. options: texts; option i has letter "ABC…"[i]. films: the videos, in the task's order.
        overview: looks shown with the question. earlier: looks of an earlier conversation, or that it began with.
        gold: gold windows in seconds, of the first film. gold_answer: None when unknown.
        answer, choice, evidence: the agent's; None and () without one. correct: None when that cannot be told.
        reason: why there is no answer, or why it failed, in words (`closeup.app.writing.in_words`); "".
    """

    id: str = ""
    status: Status = "waiting"
    question: str = ""
    options: tuple[str, ...] = ()
    films: tuple[Film, ...] = ()
    overview: tuple[Look, ...] = ()
    earlier: tuple[Look, ...] = ()
    steps: tuple[StepView, ...] = ()
    gold: tuple[Window, ...] = ()
    gold_answer: str | None = None
    answer: str | None = None
    choice: str | None = None
    evidence: tuple[Window, ...] = ()
    correct: bool | None = None
    reason: str = ""
    budgets: tuple[Spending, ...] = ()

    @property
    def letters(self) -> str:
        """The letters of the options, in order."""
        return LETTERS[: len(self.options)]

    @property
    def over(self) -> bool:
        """Nothing more will happen."""
        return self.status in ("done", "stopped", "failed")

    @property
    def watched(self) -> tuple[tuple[int | None, Look], ...]:
        """Every look with the step that gave it (None: it was there before the first), oldest first."""
        before = tuple((None, look) for look in (*self.earlier, *self.overview))
        return (*before, *((step.index, look) for step in self.steps for look in step.watched))


def scene_of(trajectory: Trajectory) -> Scene:
    """The scene of a recorded episode. A clip that the record names and does not describe is not in it."""
    task, outcome = trajectory.task, trajectory.outcome
    films = _films(task, trajectory.videos)
    first = trajectory.steps[0].messages if trajectory.steps else ()
    before = tuple(clip for message in trajectory.start.history for clip in message.clips)
    shown = [clip for message in first for clip in message.clips]
    begun = (*before, *trajectory.start.seen_clips)
    if not trajectory.steps:  # it ended before its first message: only the clips that were asked for tell
        shown = [record.clip for record in trajectory.clips.values()]
    overviews = _first_of_each((*before, *shown))

    def look(clip: Clip) -> Look:
        record = trajectory.clips[clip.key]
        return _look(clip, overviews, record.times or clip.times(), record.size, record.tokens)

    status: Status = "failed" if outcome.failed else "done" if outcome.terminated else "stopped"
    return Scene(
        id=trajectory.id,
        status=status,
        question=task.question,
        options=task.options,
        films=films,
        overview=tuple(look(clip) for clip in shown if clip not in begun and clip.key in trajectory.clips),
        earlier=tuple(look(clip) for clip in dict.fromkeys(begun) if clip.key in trajectory.clips),
        steps=tuple(
            _step(index, step, tuple(look(trajectory.clips[key].clip) for key in step.clips if key in trajectory.clips))
            for index, step in enumerate(trajectory.steps)
        ),
        gold=task.evidence,
        gold_answer=task.answer,
        answer=outcome.answer,
        choice=outcome.choice,
        evidence=outcome.evidence,
        correct=outcome.correct,
        reason=in_words(outcome.reason),
        budgets=_budgets(outcome, _recorded_budget(trajectory.settings)),
    )


class SceneBuilder:
    """Grows a scene with the events of one episode; call it with each of them, in order, from any thread.

    Args:
        task: what is asked, shown while the episode waits.
        budget: the preset's, for the limits. geometry: the policy's, for sizes and tokens until the record tells them.
        earlier: clips of the conversation that the episode goes on from. known: their records by key, as far as known.
        clock: seconds, for durations.

    Events of other episodes than the first one seen are ignored.
    """

    def __init__(
        self,
        task: Task | None = None,
        *,
        budget: Budget | None = None,
        geometry: VisionGeometry | None = None,
        earlier: Sequence[Clip] = (),
        known: Mapping[str, ClipRecord] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._budget = budget
        self._geometry = geometry or VisionGeometry()
        self._before = tuple(dict.fromkeys(earlier))
        self._known = dict(known or {})
        self._overviews: dict[str, Clip] = {}
        self._raw = ""
        self._called = False
        self._began: float | None = None
        self._step_began = 0.0
        self._scene = Scene() if task is None else _asked(task)

    @property
    def scene(self) -> Scene:
        """The scene as it is now."""
        with self._lock:
            scene = self._scene
            if scene.over or self._began is None:
                return replace(scene, budgets=scene.budgets or _budgets(Outcome(), self._budget))
            looks = [look for _, look in scene.watched]
            spent = Outcome(
                steps=sum(step.outcome != "" for step in scene.steps),
                frames=sum(len(look.times) for look in looks),
                visual_tokens=sum(look.tokens for look in looks),
                seconds=self._clock() - self._began,
            )
            return replace(scene, budgets=_budgets(spent, self._budget))

    def __call__(self, event: Event) -> None:
        """Take one event."""
        with self._lock:
            if self._scene.id not in ("", event.episode_id) or self._scene.over:
                return
            if self._began is None:
                self._began = self._step_began = self._clock()
            self._scene = replace(self._take(event), id=event.episode_id)

    def _take(self, event: Event) -> Scene:
        scene = self._scene
        match event:
            case Opened():
                films = _films(event.task, event.videos)
                self._overviews = _first_of_each((*event.overviews, *self._before))
                return replace(
                    _asked(event.task),
                    status="running",
                    films=films,
                    overview=self._looks(event.overviews, films),
                    earlier=self._looks(self._before, films),
                )
            case Token():
                self._raw += event.text
                call = call_so_far(self._raw)
                calls = (Call(call.name, call.arguments),) if call else ()
                return self._changed(event.step, thought=thought_so_far(self._raw), calls=calls)
            case Thought():
                return self._changed(event.step, thought=event.text)
            case Called():
                self._called = True
                return self._changed(event.step, calls=(Call(event.call.name, _arguments(event.call.arguments)),))
            case Returned():
                step = self._step(event.step)
                if not self._called:  # what looked like a call while it was written could not be read as one
                    step = replace(step, calls=())
                looks = self._looks(event.clips, scene.films)
                return self._ended(_with_result(step, event.outcome, event.note, looks, None))
            case Answered():
                answered = self._ended(_with_result(self._step(event.step), "ok", "", (), None))
                answer = event.answer
                return replace(answered, answer=answer.text, choice=answer.choice, evidence=answer.evidence)
            case Failed():
                return replace(scene, reason=in_words(event.reason))
            case Finished():
                return scene_of(event.trajectory)
        return scene

    def _step(self, index: int) -> StepView:
        steps = self._scene.steps
        return steps[index] if index < len(steps) else StepView(len(steps))

    def _changed(self, index: int, **changes: Any) -> Scene:
        step = replace(self._step(index), **changes)
        return replace(self._scene, steps=(*self._scene.steps[: step.index], step))

    def _ended(self, step: StepView) -> Scene:
        now = self._clock()
        step = replace(step, seconds=now - self._step_began)
        self._raw, self._called, self._step_began = "", False, now
        return replace(self._scene, steps=(*self._scene.steps[: step.index], step))

    def _looks(self, clips: Iterable[Clip], films: tuple[Film, ...]) -> tuple[Look, ...]:
        by_id, looks = {film.id: film for film in films}, []
        for clip in clips:
            film, times, record = by_id.get(clip.video), clip.times(), self._known.get(clip.key)
            if record is not None:
                looks.append(_look(clip, self._overviews, record.times or times, record.size, record.tokens))
            elif film is not None:
                size = self._geometry.size(film.width, film.height, clip.pixels)
                looks.append(_look(clip, self._overviews, times, size, self._geometry.tokens(len(times), size)))
        return tuple(looks)


def _asked(task: Task) -> Scene:
    return Scene(question=task.question, options=task.options, gold=task.evidence, gold_answer=task.answer)


def _films(task: Task, videos: Mapping[str, VideoRecord]) -> tuple[Film, ...]:
    order = {str(path): index for index, path in enumerate(task.videos)}
    found = sorted(videos.items(), key=lambda item: order.get(item[1].path, len(order)))
    return tuple(
        Film(
            id=identity,
            name=video.path.replace("\\", "/").rsplit("/", 1)[-1],
            path=video.path,
            duration=video.duration,
            width=video.width,
            height=video.height,
            fps=video.fps,
            codec=video.codec,
        )
        for identity, video in found
    )


def _first_of_each(clips: Iterable[Clip]) -> dict[str, Clip]:
    """The first clip of every video: what close looks are measured against."""
    first: dict[str, Clip] = {}
    for clip in clips:
        first.setdefault(clip.video, clip)
    return first


def _look(
    clip: Clip, overviews: Mapping[str, Clip], times: Sequence[float], size: tuple[int, int], tokens: int
) -> Look:
    overview = overviews.get(clip.video)
    close = clip != overview and is_close_look(clip, overview)
    return Look(
        video=clip.video,
        start=clip.start,
        end=clip.end,
        times=tuple(float(t) for t in times),
        size=size,
        tokens=tokens,
        mode=clip.mode,
        kind="close" if close else "overview",
        overlay=clip.overlay or "",
        resizer=clip.resizer,
    )


def _step(index: int, step: StepRecord, looks: tuple[Look, ...]) -> StepView:
    view = StepView(
        index=index,
        thought=step.thought or ("" if step.call else thought_so_far(step.text.removeprefix(step.assistant_prefix))),
        calls=(Call(step.call.name, _arguments(step.call.arguments)),) if step.call else (),
        rewards=tuple(step.rewards.items()),
        forced=step.forced,
        seconds=step.generate_seconds,
    )
    return _with_result(view, step.outcome, step.note, looks, step.tool_seconds)


def _with_result(
    step: StepView, outcome: str, note: str, looks: tuple[Look, ...], tool_seconds: float | None
) -> StepView:
    """The step with what came of its message; looks and note belong to its call where it made one."""
    if not step.calls:
        return replace(step, outcome=outcome, note=note, looks=looks)
    call = replace(
        step.calls[0],
        state="done" if outcome == "ok" else "refused",
        seconds=tool_seconds,
        looks=looks,
        note=note,
    )
    return replace(step, calls=(call,), outcome=outcome)


def _arguments(arguments: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((str(name), value_text(value)) for name, value in arguments.items())


def value_text(value: Any) -> str:
    """An argument as people read it: text as it is, 21.0 as 21, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, list | tuple):
        return "[" + ", ".join(json.dumps(v) if isinstance(v, str) else value_text(v) for v in value) + "]"
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return f"a {type(value).__name__} that cannot be shown"


def _recorded_budget(settings: Mapping[str, Any]) -> Budget | None:
    """The limits of a record's preset; None when it names none (a record of another environment)."""
    preset = settings.get("preset")
    budget = preset.get("budget") if isinstance(preset, dict) else None
    try:
        return Budget.model_validate(budget) if isinstance(budget, dict) else None
    except ValueError:
        return None


def _budgets(spent: Outcome, budget: Budget | None) -> tuple[Spending, ...]:
    return (
        Spending("steps", spent.steps, budget.max_steps if budget else None),
        Spending("frames", spent.frames, budget.max_frames if budget else None),
        Spending("visual tokens", spent.visual_tokens, budget.max_visual_tokens if budget else None),
        Spending("seconds", spent.seconds),
    )
