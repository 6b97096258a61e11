from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from closeup.tools.base import Tool, ToolArgs, ToolContext, ToolError, ToolResult
from closeup.tools.registry import BUILTINS, registered_tools
from closeup.tools.rules import ToolRules
from closeup.tools.testing import ToolCheckError, check_tool
from closeup.tools.video import Video
from closeup.tools.video.clip import Clip
from closeup.tools.windows import resolve_window

EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "zoom_clip": [{"start": 1, "end": 3}, {"start": 5, "end": 8.2, "video": 0}],
    "resample_frames": [{"fps": 2}, {"num_frames": 5, "start": 1, "end": 2}],
    "answer": [{"choice": "a"}, {"text": "blue", "evidence": [[1, 2]]}],
}


@pytest.mark.parametrize("name", sorted(BUILTINS))
def test_the_built_in_tools_keep_their_promises(name: str) -> None:
    report = check_tool(registered_tools()[name], examples=EXAMPLES[name], options=("red", "blue"), cases=500)
    assert (report.name, report.examples, report.cases) == (name, 2, 500)
    assert 0 < report.refused < 500  # both paths were walked


def test_it_can_use_a_given_video(sample_video: Path) -> None:
    check_tool(registered_tools()["zoom_clip"], examples=[{"start": 1, "end": 3}], video=sample_video, cases=20)


class At(ToolArgs):
    at: float = Field(description="a time in seconds")


class Look(Tool[At]):
    """Look at a moment."""

    def run(self, args: At, context: ToolContext) -> ToolResult:
        video, start, end = resolve_window(context, 0, args.at, args.at + 1)
        return ToolResult(clips=(Clip(video=video.identity, start=start, end=end, num_frames=2, pixels=784),))


def test_a_good_tool_passes() -> None:
    assert check_tool(Look, examples=[{"at": 2}]).refused > 0


class Loose(BaseModel):
    model_config = ConfigDict(frozen=True)
    at: float = Field(description="a time in seconds")


class Undescribed(ToolArgs):
    at: float


class Counting(Look):
    """Look at a moment, differently each time."""

    calls = 0

    def run(self, args: At, context: ToolContext) -> ToolResult:
        type(self).calls += 1
        return ToolResult(text=f"call {self.calls}")


class Ahead(Look):
    """Look past the end."""

    def run(self, args: At, context: ToolContext) -> ToolResult:
        video = context.video(0)
        return ToolResult(clips=(Clip(video=video.identity, start=2, end=9999, num_frames=2, pixels=784),))


class Elsewhere(Look):
    """Look at another film."""

    def run(self, args: At, context: ToolContext) -> ToolResult:
        return ToolResult(clips=(Clip(video="another", start=0, end=1, num_frames=2, pixels=784),))


class Crashing(Look):
    """Look, but only where it is easy."""

    def run(self, args: At, context: ToolContext) -> ToolResult:
        return ToolResult(text=f"{1 / max(0.0, 8 - args.at):g}")


class Silent(Look):
    """Look, or say nothing."""

    def run(self, args: At, context: ToolContext) -> ToolResult:
        if args.at != 2:
            raise ToolError("")
        return ToolResult(text="two")


class Refusing(Look):
    """Never look."""

    def run(self, args: At, context: ToolContext) -> ToolResult:
        raise ToolError("not today")


class Unlooked(Look):
    """Look and give a list."""

    def run(self, args: At, context: ToolContext) -> ToolResult:
        clips: Any = []
        return ToolResult(clips=clips)


def with_args(model: Any) -> type[Tool[Any]]:
    made: type[Tool[Any]] = type("Look2", (Look,), {"__doc__": "Look at a moment.", "Args": model, "name": "look"})
    return made


class Lenient(Look):
    """Look at a moment, numbers in quotes welcome."""

    @classmethod
    def parse_args(cls, arguments: Any) -> ToolArgs:
        try:
            return At.model_validate(arguments)
        except ValidationError as error:
            raise ToolError(str(error)) from None


class Leaking(Look):
    """Look at a moment, pydantic's own errors and all."""

    @classmethod
    def parse_args(cls, arguments: Any) -> ToolArgs:
        return At.model_validate(arguments, strict=True)


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        (type("Bare", (Look,), {}), "no docstring"),
        (type("Odd", (Look,), {"__doc__": "Look.", "name": "Odd Name"}), "not in snake_case"),
        (type("Half", (Tool,), {"__doc__": "Look."}), "does not implement run"),
        (type("Untold", (Look,), {"__doc__": "Look.", "Args": Undescribed}), "no description for at"),
        (with_args(Loose), "takes unknown arguments; derive the arguments from ToolArgs"),
        (Lenient, "accepted at='1' (number wanted)"),
        (Leaking, "raised ValidationError for an unknown argument, not ToolError"),
        (Counting, "results must repeat"),
        (Ahead, "a clip to 9999 s of a video of 8 s"),
        (Elsewhere, "not the task's: 'another'"),
        (Crashing, "raise ToolError for what the model did wrong"),
        (Silent, "without a word"),
        (Refusing, "the example {'at': 2} failed: ToolError: not today"),
        (Unlooked, "clips as tuple"),
    ],
)
def test_each_broken_promise_is_found_and_named(tool: type[Tool[Any]], said: str) -> None:
    with pytest.raises(ToolCheckError) as caught:
        check_tool(tool, examples=[{"at": 2}])
    assert said in str(caught.value)


class Endless(Look):
    """Look for ever at the end."""

    def run(self, args: At, context: ToolContext) -> ToolResult:
        import time

        while args.at > 8:
            time.sleep(0.01)
        return ToolResult(text="seen")


def test_a_hostile_call_that_hangs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolCheckError, match=r"took longer than 0\.2 s"):
        check_tool(Endless, examples=[{"at": 2}], rules=ToolRules(tool_seconds=0.2))


def test_examples_are_asked_for_when_they_are_needed() -> None:
    with pytest.raises(ValueError, match="give check_tool examples: look requires at"):
        check_tool(Look)


class Nothing(Tool[ToolArgs]):
    """Say how long the video is."""

    def run(self, args: ToolArgs, context: ToolContext) -> ToolResult:
        return ToolResult(text=f"{context.video(0).duration:g} s")


def test_a_tool_without_arguments_needs_none() -> None:
    assert check_tool(Nothing).examples == 1


def test_the_sample_video_is_what_it_says(sample_video: Path) -> None:
    with Video(sample_video) as video:
        assert (video.duration, video.width, video.height, video.fps) == (8.0, 128, 96, 10.0)
        colours = video.frames([0.0, 2.9, 3.0, 5.4, 5.5, 7.9], size=(12, 16)).pixels[:, :4].mean(axis=(1, 2))
    steps = abs(colours[1:] - colours[:-1]).max(axis=1)
    assert [bool(step > 40) for step in steps] == [False, True, False, True, False]
