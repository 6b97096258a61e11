"""`Dialect`: how a model writes its actions, and how what it sees is put to it.

A dialect turns text into a `ToolCall` or a named `FormatError`, and the environment's news into messages. It never
runs a
tool, never touches a model, and never guesses: a message it cannot read strictly is a `FormatError`, whatever a lenient
parser could have made of it.

Invariants
1. `parse` is total: any string gives a `Parsed`, no string raises.
2. `rebuilds_context` says which of two shapes the conversation has: growing (each observation is appended), or rebuilt
   (each step is a fresh prompt with every clip again, as LOVE-R1 does).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from closeup.agent.messages import Message
from closeup.tools.base import Tool
from closeup.tools.video.clip import Clip

FormatOutcome = Literal[
    "ok",  # a call was read, its arguments were valid and the tool ran
    "no_call",  # text without an action
    "several_calls",  # more than one action in a message
    "broken_call",  # an action that is not closed or not valid JSON
    "unknown_tool",  # no tool of that name
    "bad_arguments",  # wrong types, missing or unknown fields, NaN, infinity
    "refused",  # the tool ran and said why it will not
    "unfinished",  # the message was cut at its token limit
    "media_tokens",  # the model wrote placeholders of images or videos
]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One action as the model wrote it: the tool's name and its raw arguments."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FormatError:
    """Why a message could not be taken as one action: a named outcome, and a sentence for the model.

    `hint` is what a lenient reader makes of the message; it is for people, and never acted on.
    """

    outcome: FormatOutcome
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A message read by a dialect: the thought (may be empty), and one call or one format error."""

    thought: str
    action: ToolCall | FormatError


@dataclass(frozen=True, slots=True)
class View:
    """All an observation is built from; dialects that rebuild the context need all of it, growing ones only the news.

    Text of tasks and tools has passed through the dialect's `plain` already.

    Attributes:
        question: the task's question block, as the prompt set renders it.
        overviews: the overviews, as `(heading, clip)` pairs, one per video; a heading may be empty.
        clips: close looks and resamples shown so far, oldest first, as `(heading, clip)` pairs, `new_clips` included.
        news: what the last action gave, as text (a tool's text, or an error sentence).
        new_clips: clips the last action gave, as `(heading, clip)` pairs.
        failed: the last action was a format error or a refusal.
        forced: the next message is the last one; only an answer is taken.
        notice: what the prompt set says about that; "" when not forced.
    """

    question: str
    overviews: tuple[tuple[str, Clip], ...] = ()
    clips: tuple[tuple[str, Clip], ...] = ()
    news: str = ""
    new_clips: tuple[tuple[str, Clip], ...] = ()
    failed: bool = False
    forced: bool = False
    notice: str = ""


def shown(clips: Sequence[tuple[str, Clip]]) -> list[str | Clip]:
    """Content of a message: each clip on a line of its own, after its heading if it has one."""
    content: list[str | Clip] = []
    for heading, clip in clips:
        content += [heading + "\n" if heading else "", clip, "\n"]
    return content


def asked(view: View) -> tuple[Message, ...]:
    """The first message of a growing context: overviews, clips seen before, the question, and the notice below it."""
    notice = ["\n" + view.notice] if view.notice else []
    return (Message.of("user", *shown((*view.overviews, *view.clips)), view.question, *notice),)


def tool_response(view: View) -> tuple[Message, ...]:
    """What a call gave, as a `tool` message between the tags that Qwen's template puts around it."""
    news = [view.news + "\n"] if view.news else []
    notice = ["\n" + view.notice] if view.notice else []
    return (Message.of("tool", "<tool_response>\n", *news, *shown(view.new_clips), "</tool_response>", *notice),)


def told(view: View) -> tuple[Message, ...]:
    """The news as a `user` message, for dialects without tools."""
    words = "\n".join(text for text in (view.news, view.notice) if text)
    return (Message.of("user", *shown(view.new_clips), words),)


class Dialect(ABC):
    """How one family of agents writes actions. Stateless: one instance serves every episode."""

    name: ClassVar[str]
    rebuilds_context: ClassVar[bool] = False

    @abstractmethod
    def parse(self, text: str) -> Parsed:
        """Read one assistant message. Never raises."""

    @abstractmethod
    def start(self, view: View) -> tuple[Message, ...]:
        """The messages an episode opens with, after the system message (which the environment puts first)."""

    @abstractmethod
    def observe(self, view: View) -> tuple[Message, ...]:
        """What follows an assistant message: news to append, or, if `rebuilds_context`, the whole new context."""

    @abstractmethod
    def forced_prefix(self, tools: Sequence[type[Tool[Any]]]) -> str:
        """The beginning of an assistant message that can only become an answer."""

    @abstractmethod
    def write(self, thought: str, call: ToolCall) -> str:
        """The assistant message that says `thought` and makes `call`: the inverse of `parse`, for experts and tests."""

    def fit(self, call: ToolCall, options: Sequence[str]) -> ToolCall:
        """`call` as it is meant for a task with these answer options (empty for a free answer).

        For dialects whose answers do not say whether they are a letter or words; others return the call as it is.
        """
        return call

    def plain(self, text: str) -> str:
        """`text` of a task or a tool, such that it cannot be taken for this dialect's own marks."""
        return text
