"""What happens in an episode, as it happens: read by the terminal, the demo and tests.

Events of one episode come in order; those of several live episodes interleave, so each names its episode. `Token`
events may come from the policy's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from closeup.agent.dialects.base import ToolCall
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory, VideoRecord
from closeup.tools.base import Answer
from closeup.tools.video.clip import Clip


@dataclass(frozen=True, slots=True)
class Event:
    """Base of every event."""

    episode_id: str


@dataclass(frozen=True, slots=True)
class Opened(Event):
    """The videos are open and the overview is shown; `videos` by content identity."""

    task: Task
    videos: Mapping[str, VideoRecord]
    overviews: tuple[Clip, ...]


@dataclass(frozen=True, slots=True)
class Token(Event):
    """A piece of the message of step `step` (from 0); the assistant prefix is not among the pieces."""

    step: int
    text: str


@dataclass(frozen=True, slots=True)
class Thought(Event):
    """The thought of a finished message; not sent when it is empty."""

    step: int
    text: str


@dataclass(frozen=True, slots=True)
class Called(Event):
    """A call was read."""

    step: int
    call: ToolCall


@dataclass(frozen=True, slots=True)
class Returned(Event):
    """What came of the message: format outcome, the sentence told to the model, the clips it is shown next."""

    step: int
    outcome: str
    note: str
    clips: tuple[Clip, ...]


@dataclass(frozen=True, slots=True)
class Answered(Event):
    """The agent answered; the evidence is cut to what was watched closely."""

    step: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """The episode broke; its siblings go on."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """The episode is over, in whatever way; always the last event."""

    trajectory: Trajectory


OnEvent = Callable[[Event], None]
