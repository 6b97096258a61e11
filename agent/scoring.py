"""The two places a reward may come from; functions are injected, so `closeup.agent` never imports `closeup.rl`.

`RewardFn` scores a step as it happens: immediate and deterministic, so that replaying a trajectory gives the same
numbers. `Scorer` scores a finished trajectory: a judge, an answer's credit for the zoom that led to it. Both may say
None for "not scored", which is never the same as 0.
"""

from __future__ import annotations

from collections.abc import Mapping
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
