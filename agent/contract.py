"""What an environment promises: the types of an episode's turns, and the protocol every environment follows.

`reset` gives an `Observation`; a policy writes the assistant message; `step` gives a `StepResult`, until one is
`terminated` (the agent answered) or `truncated` (a budget ran out). `VideoQAEnv` is this project's environment;
`closeup.agent.check.check_env` tells whether another one keeps the promises below.

Invariants
1. `step` never raises for what a model wrote: every message has a named format outcome and a sentence for the model.
2. What is a bug (of a tool, a reward function, the environment) raises `EpisodeError` with the episode's id.
3. An environment is deterministic: the same task and the same messages give equal observations and rewards.
4. A reward stream that says nothing about a step is None, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from closeup.agent.budget import Spent
from closeup.agent.dialects.base import FormatOutcome, ToolCall
from closeup.agent.messages import Message
from closeup.agent.task import Task
from closeup.tools.base import Answer
from closeup.tools.video.clip import Clip
from closeup.tools.video.reader import Video


class EpisodeError(RuntimeError):
    """An episode broke, and it was not the model's doing: `episode_id` names it, `cause` is what was raised."""

    def __init__(self, episode_id: str, cause: BaseException, *, doing: str) -> None:
        super().__init__(f"episode {episode_id!r}: {doing}: {type(cause).__name__}: {cause}")
        self.episode_id = episode_id
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Observation:
    """What the policy sees before it writes its next message.

    Attributes:
        messages: what is new since the last assistant message; the whole context when `rebuilt`.
        context: every message of the prompt, oldest first.
        assistant_prefix: text the next message must begin with; "" when it is free.
        forced: the next message is the last one, and only an answer is taken.
        rebuilt: the context does not continue the one before it (a first observation, or a dialect that rebuilds).
        tools: OpenAI function schemas of the tools in force for the next message.
        videos: opened videos by content identity, enough to resolve every clip of `context`.
        overviews: the overview clips shown at the start, one per video that was not in the history.
    """

    messages: tuple[Message, ...]
    context: tuple[Message, ...]
    assistant_prefix: str = ""
    forced: bool = False
    rebuilt: bool = False
    tools: tuple[Mapping[str, Any], ...] = ()
    videos: Mapping[str, Video] = field(default_factory=dict)
    overviews: tuple[Clip, ...] = ()


@dataclass(frozen=True, slots=True)
class StepInfo:
    """What a step was, beside its observation and rewards.

    Attributes:
        text: the assistant message as it stands in the context (text that is not valid Unicode is replaced).
        thought, call: what the dialect read in it; call is None when no action could be read.
        outcome: the format outcome; note: the sentence told to the model, "" for a call that ran.
        hint: what a lenient reader makes of a broken call, for people; never shown to the model, never acted on.
        clips: the clips the call gave, or that the preset's `after_fault` shows; close: those that are close looks.
        answer: the final answer, its evidence cut to what was watched closely; dropped: cited windows (seconds) or
            parts of windows that were not.
        forced: only an answer was taken at this step.
        limit: name of the budget that ended the episode (see `Budget`), "after_fault" (see `Preset`), or "".
        reason: one sentence on why the episode was truncated, or "".
        tool_seconds: wall time of the tool in seconds.
    """

    text: str
    outcome: FormatOutcome
    thought: str = ""
    call: ToolCall | None = None
    note: str = ""
    hint: str = ""
    clips: tuple[Clip, ...] = ()
    close: tuple[Clip, ...] = ()
    answer: Answer | None = None
    dropped: tuple[tuple[float, float], ...] = ()
    forced: bool = False
    limit: str = ""
    reason: str = ""
    tool_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of one assistant message.

    Attributes:
        observation: what the policy sees next; after the end, the finished conversation (a `history` to go on from).
        rewards: the immediate streams by name; None = not scored.
        terminated: the agent answered; truncated: a budget ran out first. Never both.
        info: everything else that is known about the step.
    """

    observation: Observation
    rewards: dict[str, float | None]
    terminated: bool
    truncated: bool
    info: StepInfo


class Environment(Protocol):
    """What the episode runner, the trainer and `check_env` need of an environment."""

    @property
    def spent(self) -> Spent:
        """What the episode has used of its budget so far."""
        ...

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
        """Start an episode. Raises `VideoError` or `ValueError` for a task that cannot be run."""
        ...

    def step(
        self, message: str, *, finish: Literal["stop", "length"] = "stop", spent_context_tokens: int | None = None
    ) -> StepResult:
        """Take one assistant message. Raises `EpisodeError` for bugs, `RuntimeError` when no episode is live."""
        ...

    def settings(self) -> dict[str, Any]:
        """What must be known to reproduce an episode, JSON-serialisable; recorded in its trajectory."""
        ...

    def close(self) -> None:
        """Give back the opened videos; a later `reset` may start anew."""
        ...
