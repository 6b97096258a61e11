"""What a tool is: one class with pydantic arguments; everything else derives from it.

`class ZoomClip(Tool[ZoomArgs])` is the only declaration. Its JSON schema (prompts, OpenAI `tools=`, MCP, demo) comes
from `spec()`, its description from the class docstring, its name from `name` or the class name.

Invariants
1. `ToolError` is an answer to the model; any other exception is a bug and is never shown to it.
2. A tool returns requests for frames (`Clip`), never pixels: the policy resolves them at the size its model takes.
3. Arguments are validated strictly: no string is taken for a number, no unknown field, no NaN, no infinity.
4. A tool keeps nothing between calls: the same arguments in the same context give the same result.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from closeup.tools.rules import ToolRules
from closeup.tools.schema import parameters_schema
from closeup.tools.video.clip import Clip

if TYPE_CHECKING:
    from closeup.tools.video.reader import Video


class ToolError(Exception):
    """A refusal the model is told about: what was wrong, what was given, what is allowed."""


class ToolArgs(BaseModel):
    """Base of every tool's arguments: frozen, unknown fields refused, numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """The agent's final answer.

    Attributes:
        choice: letter of the chosen option ("A" is the first), or None for a free answer.
        text: the option's exact text, or the free text.
        evidence: windows `(start, end)` in seconds the agent cites.
    """

    choice: str | None
    text: str
    evidence: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gives back: text, clips to be shown, or the final answer (which ends the episode)."""

    text: str = ""
    clips: tuple[Clip, ...] = ()
    answer: Answer | None = None


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a tool may look at: the task's videos, what was watched already, and the rules in force.

    Attributes:
        videos: the task's opened videos, in the task's order.
        seen: clips shown so far, oldest first; the first clip of each video is its overview.
        rules: limits on windows and frames (seconds, frames, pixels).
        options: the task's answer options; empty for free answers.
        frames_left: frames the episode's budget still allows, or None when unbounded.
    """

    videos: tuple[Video, ...] = ()
    seen: tuple[Clip, ...] = ()
    rules: ToolRules = field(default_factory=ToolRules)
    options: tuple[str, ...] = ()
    frames_left: int | None = None

    def video(self, index: int = 0) -> Video:
        """The video with this index; raises `ToolError` when there is none."""
        if not 0 <= index < len(self.videos):
            last = len(self.videos) - 1
            known = "0" if last == 0 else f"0 to {last}" if last > 0 else "none, this task has no video"
            raise ToolError(f"there is no video {_short(index)}. Accepted: {known}.")
        return self.videos[index]


ArgsT = TypeVar("ArgsT", bound=ToolArgs)


class Tool(ABC, Generic[ArgsT]):
    """A typed action. Subclass as `class MyTool(Tool[MyArgs])`, write a docstring, implement `run`.

    Class attributes:
        name: what the model writes; default: the class name in snake_case.
        Args: the arguments model, taken from the type parameter unless the class sets it.
    """

    name: ClassVar[str] = ""
    Args: ClassVar[type[ToolArgs]] = ToolArgs

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in () if "Args" in cls.__dict__ else cls.__dict__.get("__orig_bases__", ()):
            origin = get_origin(base)
            if isinstance(origin, type) and issubclass(origin, Tool):
                (args,) = get_args(base)
                if isinstance(args, type) and issubclass(args, ToolArgs):
                    cls.Args = args
        if not cls.__dict__.get("name"):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    @abstractmethod
    def run(self, args: ArgsT, context: ToolContext) -> ToolResult:
        """Carry out the action. Raises `ToolError` for what the model should be told; anything else is a bug."""

    @classmethod
    def description(cls) -> str:
        """The class docstring's first paragraph, on one line."""
        text = (cls.__doc__ or "").strip().split("\n\n")[0]
        return " ".join(text.split())

    @classmethod
    def spec(cls) -> dict[str, Any]:
        """The tool as an OpenAI function schema: the one source for prompts, servers and pages."""
        function = {"name": cls.name, "description": cls.description(), "parameters": parameters_schema(cls.Args)}
        return {"type": "function", "function": function}

    @classmethod
    def parse_args(cls, arguments: Mapping[str, Any]) -> ToolArgs:
        """Validate raw arguments strictly. Raises `ToolError` with one sentence per fault."""
        accepted = ", ".join(cls.Args.model_fields) or "no arguments"
        if not isinstance(arguments, Mapping):
            raise ToolError(
                f"wrong arguments for {cls.name}: an object is needed, got {_short(arguments)}. Accepted: {accepted}"
            )
        try:
            return cls.Args.model_validate_json(json.dumps(dict(arguments)), strict=True)
        except ValidationError as error:
            faults = "; ".join(_fault(e) for e in error.errors()[:3])
            raise ToolError(f"wrong arguments for {cls.name}: {faults}. Accepted: {accepted}") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise ToolError(f"wrong arguments for {cls.name}: {_short(str(error))}. Accepted: {accepted}") from None


def _fault(error: Any) -> str:
    where = _short(".".join(str(part) for part in error["loc"]), quote=False) or "arguments"
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "extra_forbidden":
        return f"there is no argument {where}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {message[:1].lower()}{message[1:]} (given {_short(error.get('input'))})"


def _short(value: Any, *, quote: bool = True, limit: int = 60) -> str:
    """`value` as text of at most `limit` characters; total, whatever the value is (a 10,000-digit number included)."""
    try:
        text = repr(value) if quote else str(value)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= limit else text[: limit - 3] + "..."
