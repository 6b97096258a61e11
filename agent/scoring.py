"""The two places a reward may come from; functions are injected, so `closeup.agent` never imports `closeup.rl`.

`RewardFn` scores a step as it happens: immediate and deterministic, so that replaying a trajectory gives the same
numbers. `Scorer` scores a finished trajectory: a judge, an answer's credit for the zoom that led to it. Both may say
None for "not scored", which is never the same as 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from closeup.agent.dialects.base import FormatOutcome
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory
from closeup.tools.base import Answer
from closeup.tools.video.clip import Clip


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What an immediate reward may look at: the task, the step's format outcome, and what it did.

    Attributes:
        task: the task, gold answer and evidence included when known.
        outcome: the step's format outcome.
        tool: name of the tool that ran, or None.
        clips: clips the step gave; close: those that are close looks.
        earlier: close looks of earlier steps, oldest first.
        answer: the final answer, when the step gave one.
        durations: duration in seconds of each of the task's videos, by identity.
        forced: only an answer was taken at this step.
        thought: what the message said beside its action, as the dialect read it; "" for none.
        text: the whole message as it was written, assistant prefix included.
        frames, visual_tokens: what showing `clips` took.
    """

    task: Task
    outcome: FormatOutcome
    tool: str | None = None
    clips: tuple[Clip, ...] = ()
    close: tuple[Clip, ...] = ()
    earlier: tuple[Clip, ...] = ()
    answer: Answer | None = None
    durations: Mapping[str, float] = field(default_factory=dict)
    forced: bool = False
    thought: str = ""
    text: str = ""
    frames: int = 0
    visual_tokens: int = 0


class RewardFn(Protocol):
    """One immediate reward stream."""

    def __call__(self, facts: StepFacts) -> float | None:
        """The step's reward in this stream, or None when the stream says nothing about such a step."""
        ...


class Scorer(Protocol):
    """One or more late reward streams."""

    def score(self, trajectory: Trajectory) -> list[dict[str, float | None]]:
        """Rewards by stream for each step of a finished trajectory."""
        ...


Judge = Callable[[Task, Answer | None], bool | None]
"""Says whether an answer is right; None when that cannot be told, and an answer of None is one that was never given."""


def exact_option(task: Task, answer: Answer | None) -> bool | None:
    """The default judge: with options the exact option text; None for free answers and unknown gold answers."""
    if task.answer is None:
        return None
    if answer is None:
        return False
    return answer.text == task.answer if task.options else None


def with_scores(trajectory: Trajectory, scorers: Sequence[Scorer]) -> Trajectory:
    """The trajectory with the late reward streams of `scorers` added. Raises as `add_scores` does."""
    for scorer in scorers:
        trajectory = add_scores(trajectory, scorer.score(trajectory), by=type(scorer).__name__)
    return trajectory


def add_scores(
    trajectory: Trajectory, scores: Sequence[Mapping[str, float | None]], *, by: str = "the scorer"
) -> Trajectory:
    """The trajectory with late rewards by stream added to each of its steps; `by` names their source in errors.

    Raises:
        ValueError: scores for another number of steps than there are, for a stream that is there already, or no number.
    """
    steps = list(trajectory.steps)
    if len(scores) != len(steps):
        raise ValueError(f"{by} scored {len(scores)} steps of a trajectory that has {len(steps)}")
    for index, late in enumerate(scores):
        if any(value is not None and not math.isfinite(value) for value in late.values()):
            raise ValueError(f"{by} gives {dict(late)}: a reward is a finite number or None")
        both = sorted(set(late) & set(steps[index].rewards))
        if both:
            raise ValueError(f"{by} gives the streams {both} a second time")
        steps[index] = steps[index].model_copy(update={"rewards": {**steps[index].rewards, **late}})
    return trajectory.model_copy(update={"steps": tuple(steps)})
