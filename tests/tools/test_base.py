from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from closeup.tools.answer import AnswerTool
from closeup.tools.base import Tool, ToolArgs, ToolContext, ToolError, ToolResult
from closeup.tools.registry import registered_tools
from closeup.tools.zoom_clip import ZoomArgs, ZoomClip


class PeekArgs(ToolArgs):
    at: float = Field(description="a time in seconds")


class PeekOnce(Tool[PeekArgs]):
    """Peek at
    one moment.

    A second paragraph the model is not told.
    """

    def run(self, args: PeekArgs, context: ToolContext) -> ToolResult:
        return ToolResult(text=f"{args.at:g}")


class PeekTwice(PeekOnce):
    """Peek again."""

    name = "peek_2"


def test_name_arguments_and_description_come_from_the_class() -> None:
    assert (PeekOnce.name, PeekOnce.Args, PeekOnce.description()) == ("peek_once", PeekArgs, "Peek at one moment.")
    assert (PeekTwice.name, PeekTwice.Args, PeekTwice.description()) == ("peek_2", PeekArgs, "Peek again.")
    assert ZoomClip.Args is ZoomArgs


SECONDS = {"type": "number", "minimum": 0}
VIDEO = {"type": "integer", "description": "which video, counted from 0", "default": 0, "minimum": 0}
PARAMETERS: dict[str, dict[str, Any]] = {
    "zoom_clip": {
        "type": "object",
        "properties": {
            "start": {**SECONDS, "description": "start of the window, in seconds"},
            "end": {**SECONDS, "description": "end of the window, in seconds"},
            "video": VIDEO,
        },
        "required": ["start", "end"],
        "additionalProperties": False,
    },
    "resample_frames": {
        "type": "object",
        "properties": {
            "fps": {
                "type": "number",
                "description": "frames per second; give this or num_frames",
                "exclusiveMinimum": 0,
            },
            "num_frames": {"type": "integer", "description": "frames spread evenly; give this or fps", "minimum": 1},
            "start": {**SECONDS, "description": "start in seconds; default: the video's start"},
            "end": {**SECONDS, "description": "end in seconds; default: the video's end"},
            "video": VIDEO,
        },
        "additionalProperties": False,
    },
    "answer": {
        "type": "object",
        "properties": {
            "choice": {
                "type": "string",
                "description": "letter of the right option, when there are options",
                "maxLength": 4000,
            },
            "text": {
                "type": "string",
                "description": "the answer in words, when there are no options",
                "maxLength": 4000,
            },
            "evidence": {
                "type": "array",
                "description": "windows [start, end] in seconds that show the answer",
                "items": {"type": "array", "items": SECONDS, "minItems": 2, "maxItems": 2},
                "maxItems": 8,
            },
        },
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_the_schema_a_model_is_shown(name: str) -> None:
    tool = registered_tools()[name]
    spec = tool.spec()
    assert spec == {
        "type": "function",
        "function": {"name": name, "description": tool.description(), "parameters": PARAMETERS[name]},
    }
    first = next(iter(spec["function"]["parameters"]["properties"].values()))
    assert list(first)[:2] == ["type", "description"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"start": "1", "end": 2}, "start: input should be a valid number (given '1')"),
        ({"start": True, "end": 2}, "start: input should be a valid number (given True)"),
        ({"start": float("nan"), "end": 2}, "start: input should be a finite number"),
        ({"start": 1, "end": float("inf")}, "end: input should be a finite number"),
        ({"start": 10**400, "end": 2}, "start: input should be a finite number"),
        ({"start": 10**5000, "end": 2}, "Exceeds the limit"),
        ({"start": -1, "end": 2}, "start: input should be greater than or equal to 0 (given -1"),
        ({"start": 1, "end": 2, "video": 0.5}, "video: "),
        ({"start": 1, "end": None}, "end: input should be a valid number (given None)"),
        ({"start": 1}, "end is missing"),
        ({"start": 1, "end": 2, "speed": 3}, "there is no argument speed"),
        ({"start": {1}, "end": 2}, "not JSON serializable"),
        ([1, 2], "an object is needed, got [1, 2]"),
        (None, "an object is needed, got None"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(arguments: Any, said: str) -> None:
    with pytest.raises(ToolError) as caught:
        ZoomClip.parse_args(arguments)
    message = str(caught.value)
    assert message.startswith("wrong arguments for zoom_clip: ") and said in message
    assert message.endswith("Accepted: start, end, video") and len(message) < 400


def test_whole_numbers_are_numbers() -> None:
    args = ZoomClip.parse_args({"start": 1, "end": 2.5})
    assert isinstance(args, ZoomArgs) and (args.start, args.end, args.video) == (1.0, 2.5, 0)


@pytest.mark.parametrize(("count", "accepted"), [(0, "none, this task has no video"), (1, "0"), (3, "0 to 2")])
def test_a_video_that_is_not_there_is_named(count: int, accepted: str) -> None:
    videos: Any = tuple(object() for _ in range(count))
    with pytest.raises(ToolError, match=f"there is no video 3. Accepted: {accepted}."):
        ToolContext(videos=videos).video(3)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["start", "end", "video", "fps", "num_frames", "choice", "text", "evidence", "x"])


@given(arguments=st.dictionaries(FIELDS | st.text(max_size=5), JSON, max_size=6))
def test_any_arguments_are_validated_or_refused(arguments: dict[str, Any]) -> None:
    for tool in registered_tools(["zoom_clip", "resample_frames", "answer"]).values():
        try:
            args = tool.parse_args(arguments)
        except ToolError as error:
            assert str(error).startswith("wrong arguments for") and len(str(error)) < 600
        else:
            json.dumps(args.model_dump(), allow_nan=False)
            assert set(arguments) <= set(tool.Args.model_fields)


def test_deep_nesting_is_refused() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ToolError, match="wrong arguments for answer"):
        AnswerTool.parse_args({"evidence": value})


def test_a_class_may_set_its_arguments_itself() -> None:
    class Other(ToolArgs):
        until: float

    class PeekUntil(PeekOnce):
        """Peek until then."""

        Args = Other

    assert PeekUntil.Args is Other and PeekUntil.name == "peek_until"
