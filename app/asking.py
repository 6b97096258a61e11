"""`Run`: one question on its way through the model, in threads of its own, seen from outside as scenes.

A question has one arm, or two when it is asked with and without zoom side by side. An arm is one episode; its scene
grows with the episode's events and can be read at any moment, from any thread.

Invariants
1. `stop` ends every arm's generation within a token or so, and an arm that still waits for its turn at once.
2. Whatever happens, every arm ends with a scene that is over, the ticket is given back, and no exception leaves.
3. Sentences shown name no folder of this machine.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from closeup.agent.environment import VideoQAEnv
from closeup.agent.episode import run_episodes
from closeup.agent.events import Event, Finished
from closeup.agent.messages import Message
from closeup.agent.preset import Preset
from closeup.agent.start import Start
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory
from closeup.app.errors import BadInput
from closeup.app.scene import Scene, SceneBuilder
from closeup.app.sessions import Film, Ticket, Turn
from closeup.rl.rewards import DEFAULT_REWARDS, is_correct
from closeup.tools.video.clip import Clip

if TYPE_CHECKING:
    from closeup.agent.policies.base import Policy

log = logging.getLogger(__name__)
Memory = Literal["conversation", "clips", "nothing"]
_PATH = re.compile(r"(?<![\w/])/(?:[^\s/'\":,;]+/)+([^\s/'\":,;]*)")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and how.

    Attributes:
        film: the video. text: the question. options: possible answers, or ().
        model: whose policy answers. presets: (label, preset) of each arm.
        memory: what a follow-up keeps of the questions before it: the whole conversation, the clips watched closely, or
            nothing.
        gold, evidence: what is known of the answer (bundled examples), else None and ().
        seed: of the sampling.
    """

    film: Film
    text: str
    options: tuple[str, ...]
    model: str
    presets: tuple[tuple[str, Preset], ...]
    memory: Memory = "clips"
    gold: str | None = None
    evidence: tuple[tuple[float, float], ...] = ()
    seed: int = 0


class Arm:
    """One episode of a run."""

    def __init__(self, label: str, preset: Preset, task: Task) -> None:
        self.label, self.preset, self.task = label, preset, task
        self.builder = SceneBuilder(task, budget=preset.budget)
        self.trajectory: Trajectory | None = None
        self.note = ""  # what the visitor should know about how it began
        self.error = ""

    def take(self, event: Event) -> None:
        """Grow the scene."""
        if isinstance(event, Finished):
            self.trajectory = event.trajectory
        self.builder(event)


class Run:
    """A question being answered. `start` it, read `scenes`, `wait` for its end.

    Args:
        question: what is asked. ticket: its place in the line, given back at the end.
        turns: the conversation so far. policy: gives the model (it may have to be loaded first).
        max_seconds: wall time after its turn came. on_end: called once, from a thread, when every arm is over.
    """

    def __init__(
        self,
        question: Question,
        ticket: Ticket,
        *,
        turns: Sequence[Turn],
        policy: Callable[[], Policy],
        max_seconds: float,
        on_end: Callable[[Run], None] = lambda run: None,
    ) -> None:
        self.question = question
        self.arms = tuple(Arm(label, preset, _task(question)) for label, preset in question.presets)
        self.began = time.monotonic()
        self._ticket, self.turns, self._policy = ticket, tuple(turns), policy
        self._max_seconds, self._on_end = max_seconds, on_end
        self._cancel = threading.Event()
        self._over = threading.Event()
        self._why = ""
        self._lock = threading.Lock()
        self._listeners: tuple[Callable[[], None], ...] = ()

    def start(self) -> Run:
        """Begin, in a thread; returns at once."""
        threading.Thread(target=self._work, name="closeup-question", daemon=True).start()
        return self

    def stop(self, why: str) -> None:
        """End it early; the first reason given is the one that is shown."""
        with self._lock:
            self._why = self._why or why
        self._cancel.set()

    def wait(self, seconds: float) -> bool:
        """Whether it is over, after waiting for that at most `seconds`."""
        return self._over.wait(seconds)

    def listen(self, tell: Callable[[], None]) -> None:
        """Have `tell` called after every event and at the end, from the run's threads; it must return at once."""
        with self._lock:
            self._listeners = (*self._listeners, tell)

    def unlisten(self, tell: Callable[[], None]) -> None:
        """Call it no more."""
        with self._lock:
            self._listeners = tuple(other for other in self._listeners if other is not tell)

    def _tell(self) -> None:
        for tell in self._listeners:
            tell()

    @property
    def over(self) -> bool:
        """Every arm has ended."""
        return self._over.is_set()

    @property
    def ahead(self) -> int:
        """Questions that are answered before this one's turn comes."""
        return 0 if self.over else self._ticket.ahead

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """One scene per arm, as they are now."""
        return tuple(self._scene(arm) for arm in self.arms)

    def _scene(self, arm: Arm) -> Scene:
        scene = arm.builder.scene
        over = self.over
        if arm.error:
            return replace(scene, status="failed", reason=without_paths(arm.error))
        if scene.status == "stopped" and scene.reason == "cancelled":
            return replace(scene, reason=self._why or "stopped")
        if over and not scene.over:
            return replace(scene, status="stopped", reason=self._why or "stopped")
        return replace(scene, reason=without_paths(scene.reason)) if scene.reason else scene

    def _work(self) -> None:
        try:
            while self._ticket.ahead and not self._cancel.wait(0.05):
                pass
            if self._cancel.is_set():
                return
            timer = threading.Timer(
                self._max_seconds,
                lambda: self.stop(f"the time limit of {self._max_seconds:g} s per question was reached"),
            )
            timer.daemon = True
            timer.start()
            try:
                policy = self._policy()
                others = [threading.Thread(target=self._episode, args=(arm, policy)) for arm in self.arms[1:]]
                for thread in others:
                    thread.start()
                self._episode(self.arms[0], policy)
                for thread in others:
                    thread.join()
            finally:
                timer.cancel()
        except Exception as error:
            for arm in self.arms:
                self._fail(arm, error)
        finally:
            self._ticket.leave()
            self._over.set()
            self._on_end(self)
            self._tell()

    def _episode(self, arm: Arm, policy: Policy) -> None:
        try:
            start, arm.note = begin(arm.task, arm.preset, policy, self.question, self.turns)
            earlier = (*(c for m in start.history for c in m.clips), *start.seen_clips)
            known = {key: clip for turn in self.turns for t in turn.trajectories for key, clip in t.clips.items()}
            arm.builder = SceneBuilder(
                arm.task, budget=arm.preset.budget, geometry=policy.geometry, earlier=earlier, known=known
            )

            def on_event(event: Event) -> None:
                arm.take(event)
                self._tell()

            run_episodes(
                [start],
                policy,
                preset=arm.preset,
                rewards=DEFAULT_REWARDS,
                judge=is_correct,
                seed=self.question.seed,
                on_event=on_event,
                cancel=self._cancel,
            )
        except Exception as error:
            self._fail(arm, error)

    def _fail(self, arm: Arm, error: Exception) -> None:
        arm.error = sentence(error)


def begin(task: Task, preset: Preset, policy: Policy, question: Question, turns: Sequence[Turn]) -> tuple[Start, str]:
    """Where the episode begins: with as much of the conversation as was asked for and fits; and what had to go.

    The text of a conversation is kept only if it was written under the same preset; the clips watched closely are kept
    newest first as long as they fit.
    """
    answered = [
        turn.trajectories[0]
        for turn in turns
        if turn.trajectories and turn.trajectories[0].outcome.terminated and turn.question.film.path in task.videos
    ]
    if question.memory == "nothing" or not answered:
        return Start(task), ""
    note = ""
    if question.memory == "conversation":
        last = answered[-1]
        history = (*last.context(len(last.steps) - 1), Message.of("assistant", last.steps[-1].text))
        if _name(last) == preset.name:
            start = Start(task, history=history)
            if fits(start, preset, policy):
                return start, ""
            note = "The conversation no longer fits the model's budget; "
        else:
            note = "The conversation was held under another preset; "
    clips = seen_closely(answered)
    for first in range(len(clips)):
        start = Start(task, seen_clips=clips[first:])
        if fits(start, preset, policy):
            kept = len(clips) - first
            if first:
                note = note or "Not every clip seen so far fits the model's budget; "
            return start, note and f"{note}the last {kept} clip{'s' if kept != 1 else ''} watched closely came along."
    return Start(task), (note or "No clip seen so far fits the model's budget; ") + "this question starts afresh."


def seen_closely(trajectories: Sequence[Trajectory]) -> tuple[Clip, ...]:
    """The clips that calls of earlier episodes gave, each once, oldest first."""
    clips = [t.clips[key].clip for t in trajectories for step in t.steps for key in step.clips]
    clips = [*(clip for t in trajectories for clip in t.start.seen_clips), *clips]
    return tuple(dict.fromkeys(clips))


def fits(start: Start, preset: Preset, policy: Policy) -> bool:
    """Whether an episode can begin like this and still look before it must answer. Raises `VideoError`."""
    if policy.max_context is not None and policy.max_context < preset.budget.max_context_tokens:
        budget = preset.budget.model_copy(update={"max_context_tokens": policy.max_context})
        preset = preset.model_copy(update={"budget": budget})
    with VideoQAEnv(preset, geometry=policy.geometry, threads=1) as environment:
        try:
            seen = environment.reset(start.task, seen_clips=start.seen_clips, history=start.history)
        except ValueError:
            return False
        return not seen.forced or preset.budget.max_steps == 1


def sentence(error: BaseException) -> str:
    """What to show of an exception: its own sentence, or else that there is a fault, logged with its trace."""
    from closeup.agent.models.load import ModelError
    from closeup.agent.preset import PresetError
    from closeup.tools.video import VideoError

    if isinstance(error, BadInput | VideoError | ModelError | PresetError):
        return without_paths(str(error))
    log.error("a question could not be answered", exc_info=error)
    return f"the demo has a fault ({type(error).__name__}); its log says more. Ask again, or try another question."


def without_paths(text: str) -> str:
    """`text` with every absolute path cut to its last part: visitors have no business with this machine's folders."""
    return _PATH.sub(lambda match: match[1] or "a folder", text)


def _task(question: Question) -> Task:
    options, gold = question.options, question.gold
    return Task(
        id=f"question-{secrets.token_hex(6)}",  # the policy keeps state by it, so no two visitors may share one
        videos=(question.film.path,),
        question=question.text,
        options=options,
        answer=gold,
        evidence=question.evidence,
        answer_kind="choice" if options else "text",
    )


def _name(trajectory: Trajectory) -> str:
    preset = trajectory.settings.get("preset")
    return str(preset.get("name", "")) if isinstance(preset, dict) else ""
