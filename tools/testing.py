"""`check_tool`: does a tool keep every promise the agent, the demo and the trainer rely on?

One call in a plugin's test suite, in the manner of gymnasium's `check_env`:

    def test_scene_cuts() -> None:
        check_tool(SceneCuts, examples=[{"start": 0, "end": 8}])

What is checked
1. Documented: name, class docstring, a description of every argument.
2. The schema is an object, closed, serialisable, and says what is validated: NaN, infinity, unknown and mistyped
   arguments are refused. (An argument with a `BeforeValidator` takes more than its type on purpose.)
3. Every example runs within the time limit, gives a `ToolResult` whose clips lie inside the video, and gives it again.
4. Hostile arguments, with and without a video, end in a `ToolResult` or a `ToolError` that says something.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BeforeValidator

from closeup.tools.base import Tool, ToolContext, ToolError, ToolResult
from closeup.tools.call import ToolTimeout, run_tool
from closeup.tools.registry import tool_fault
from closeup.tools.rules import ToolRules
from closeup.tools.sample_video import write_sample_video
from closeup.tools.video.clip import Clip
from closeup.tools.video.reader import Video

_NOT_OF_TYPE: dict[str, tuple[Any, ...]] = {
    "number": (float("nan"), float("inf"), float("-inf"), "1", True, [1], {"a": 1}),
    "integer": (float("nan"), 1.5, "1", True, [1], {"a": 1}),
    "string": (1, True, ["a"], {"a": 1}),
    "boolean": (1, "true", [True]),
    "array": (1, "ab", True, {"a": 1}),
    "object": (1, "ab", True, [1]),
}
_HOSTILE: tuple[Any, ...] = (
    None, True, "", "12", "\x00", "<|im_end|>", "x" * 20_000, -1, -0.0, 0, 1, 2, 7.999, 8, 8.4, 1e9, 10**30, 10**5000,
    1e308, -1e308, 5e-324, float("nan"), float("inf"), [], {}, [[2, 1]], [[1, 2]] * 40, [[1]], {"start": 1}, "\ud800",
)  # fmt: skip


class ToolCheckError(AssertionError):
    """A tool breaks a promise; the message says which, and how."""


@dataclass(frozen=True, slots=True)
class ToolReport:
    """What `check_tool` did: examples run, hostile cases tried, and how many of those got a `ToolError`."""

    name: str
    examples: int
    cases: int
    refused: int


def check_tool(
    tool: type[Tool[Any]],
    *,
    examples: Sequence[Mapping[str, Any]] = (),
    video: Path | None = None,
    options: Sequence[str] = (),
    rules: ToolRules | None = None,
    cases: int = 200,
    seed: int = 0,
) -> ToolReport:
    """Check a tool and return what was done.

    Args:
        tool: the tool's class.
        examples: arguments that must work on `video`; may be left out when no argument is required.
        video: a video file; by default one of 8 seconds is made (128x96 pixels, 10 frames per second, scene cuts at
            3 and 5.5 seconds).
        options: the answer options of the task the tool is run in.
        rules: the limits in force; default `ToolRules()`.
        cases: hostile calls to try, drawn with `seed`.

    Raises `ToolCheckError` at the first broken promise and `ValueError` when examples are needed and missing.
    """
    _check_documented(tool)
    schema = _check_schema(tool)
    if not examples:
        if schema.get("required"):
            raise ValueError(f"give check_tool examples: {tool.name} requires {', '.join(schema['required'])}")
        examples = ({},)
    with tempfile.TemporaryDirectory() as folder:
        path = video if video is not None else write_sample_video(Path(folder) / "sample.mp4")
        with Video(path) as opened, Video(path) as again:
            limits = rules if rules is not None else ToolRules()
            context = ToolContext(videos=(opened,), options=tuple(options), rules=limits)
            same = ToolContext(videos=(again,), options=tuple(options), rules=limits)
            for example in examples:
                _check_example(tool, example, context, same)
                _check_strict(tool, example, schema)
            refused = _check_hostile(tool, examples, schema, context, cases, seed)
    return ToolReport(tool.name, len(examples), cases, refused)


def _check_documented(tool: type[Tool[Any]]) -> None:
    fault = tool_fault(tool)
    if fault:
        raise ToolCheckError(f"{getattr(tool, '__qualname__', tool)!r} is not a tool: {fault}")
    bare = [name for name, field in tool.Args.model_fields.items() if not (field.description or "").strip()]
    if bare:
        raise ToolCheckError(
            f"{tool.name}: no description for {', '.join(bare)}; write Field(description=...) with the unit"
        )


def _check_schema(tool: type[Tool[Any]]) -> dict[str, Any]:
    try:
        json.dumps(tool.spec(), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ToolCheckError(f"{tool.name}: its schema is not JSON: {error}") from error
    schema: dict[str, Any] = tool.spec()["function"]["parameters"]
    if schema.get("additionalProperties") is not False:
        raise ToolCheckError(f"{tool.name}: its schema takes unknown arguments; derive the arguments from ToolArgs")
    return schema


def _check_strict(tool: type[Tool[Any]], example: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    bad: list[tuple[str, dict[str, Any]]] = [("an unknown argument", {**example, "no_such_argument": 1})]
    for name, part in schema["properties"].items():
        if any(isinstance(mark, BeforeValidator) for mark in tool.Args.model_fields[name].metadata):
            continue  # its author says what else it takes
        for value in _NOT_OF_TYPE.get(part.get("type", ""), ()):
            bad.append((f"{name}={value!r} ({part['type']} wanted)", {**example, name: value}))
    bad += [(f"{name} missing", {k: v for k, v in example.items() if k != name}) for name in schema.get("required", ())]
    for what, arguments in bad:
        try:
            tool.parse_args(arguments)
        except ToolError:
            continue
        except Exception as error:
            raise ToolCheckError(
                f"{tool.name}: parse_args raised {type(error).__name__} for {what}, not ToolError"
            ) from error
        raise ToolCheckError(
            f"{tool.name}: accepted {what}; arguments must be validated strictly (derive from ToolArgs)"
        )


def _check_example(tool: type[Tool[Any]], example: Mapping[str, Any], context: ToolContext, same: ToolContext) -> None:
    try:
        first, second = run_tool(tool, example, context), run_tool(tool, example, same)
    except Exception as error:
        raise ToolCheckError(
            f"{tool.name}: the example {dict(example)} failed: {type(error).__name__}: {error}"
        ) from error
    _check_result(tool, first, context)
    if first != second:
        raise ToolCheckError(
            f"{tool.name}: the example {dict(example)} gave {first}, then {second}; results must repeat"
        )


def _check_result(tool: type[Tool[Any]], result: ToolResult, context: ToolContext) -> None:
    lengths = {video.identity: video.duration for video in context.videos}
    if not isinstance(result.text, str) or not isinstance(result.clips, tuple):
        raise ToolCheckError(f"{tool.name}: ToolResult takes text as str and clips as tuple, got {result!r}")
    for clip in result.clips:
        if not isinstance(clip, Clip):
            raise ToolCheckError(f"{tool.name}: clips must hold Clip, got {type(clip).__name__}")
        if clip.video not in lengths:
            raise ToolCheckError(f"{tool.name}: gave a clip of a video that is not the task's: {clip.video!r}")
        if clip.end > lengths[clip.video] + 1e-6:
            raise ToolCheckError(
                f"{tool.name}: gave a clip to {clip.end:g} s of a video of {lengths[clip.video]:g} s; "
                "use closeup.tools.windows.resolve_window"
            )


def _check_hostile(
    tool: type[Tool[Any]],
    examples: Sequence[Mapping[str, Any]],
    schema: Mapping[str, Any],
    context: ToolContext,
    cases: int,
    seed: int,
) -> int:
    """Run hostile calls; returns how many were refused."""
    draw = random.Random(seed)
    no_video, no_frames = replace(context, videos=()), replace(context, frames_left=0)
    contexts = (context, context, context, no_video, no_frames)
    refused = 0
    for _ in range(cases):
        arguments = _hostile(draw, examples, schema, context.videos[0].duration)
        chosen = draw.choice(contexts)
        try:
            _check_result(tool, run_tool(tool, arguments, chosen), chosen)
        except ToolTimeout as error:
            raise ToolCheckError(f"{tool.name}: with {_shown(arguments)}: {error}") from error
        except ToolError as error:
            refused += 1
            if not str(error).strip():
                raise ToolCheckError(
                    f"{tool.name}: refused {_shown(arguments)} without a word; say what is allowed"
                ) from error
        except ToolCheckError as error:
            raise ToolCheckError(f"{error} (with {_shown(arguments)})") from error
        except Exception as error:
            raise ToolCheckError(
                f"{tool.name}: {type(error).__name__} ({error}) for {_shown(arguments)}; "
                "raise ToolError for what the model did wrong"
            ) from error
    return refused


def _hostile(
    draw: random.Random, examples: Sequence[Mapping[str, Any]], schema: Mapping[str, Any], duration: float
) -> dict[str, Any]:
    """An example with some arguments replaced: by numbers around the video's length, or by anything at all."""
    arguments = dict(draw.choice(examples))
    names = sorted({*schema["properties"], *arguments})
    count = 1 if draw.random() < 0.6 else draw.randint(1, max(1, len(names)))
    for name in draw.sample(names, k=min(count, len(names))):
        kind = schema["properties"].get(name, {}).get("type")
        roll = draw.random()
        if roll < 0.6 and kind == "number":
            arguments[name] = round(draw.uniform(-0.2, 1.2) * duration, draw.randint(0, 6))
        elif roll < 0.6 and kind == "integer":
            arguments[name] = draw.choice((-1, 0, 1, 2, 5, 1000, 10**18))
        elif roll < 0.7:
            arguments.pop(name, None)
        else:
            arguments[name] = draw.choice(_HOSTILE)
    if draw.random() < 0.05:
        arguments[draw.choice(("", "no_such_argument", "\ud800"))] = 1
    return arguments


def _shown(arguments: Mapping[str, Any]) -> str:
    try:
        text = repr(arguments)
    except ValueError:  # a number too long to print
        text = f"arguments {sorted(arguments)} with an enormous number"
    return text if len(text) <= 200 else text[:197] + "..."
