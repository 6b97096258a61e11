"""The `crop_video` dialect: `<think>…</think>`, then one `<tool_call>` of `crop_video`, or one `<answer>…</answer>`.

    <think>The scoreboard is too small.</think>
    <tool_call>
    {"name": "crop_video", "arguments": {"video_path": "video_0.mp4", "start_time": 12, "end_time": 18}}
    </tool_call>

For models trained to crop (LongVT, arXiv 2511.20785). A crop is this project's `zoom_clip`: what it shows, and which
windows are allowed, is the preset's. Videos are named by paths that the prompt set gives them, `video_0.mp4` and so on
in the task's order, whatever folder stands before: a path on this machine is never shown, and none is ever opened
because a model wrote it. What a crop gives stands in a `tool` message between `<tool_response>` tags. The context
grows.

Invariants
1. Only white space may stand outside the blocks; a message that says more, less or twice is a `FormatError`.
2. `parse(write(thought, call))` gives the same thought and call back, but for whether an answer is a `choice` or a
   `text`: `fit` settles that by the task.
3. `plain` leaves no tag of this dialect in a text.
4. Reading takes time linear in the message, and `MAX_CHARS` bounds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from closeup.agent.dialects.base import (
    Dialect,
    FormatError,
    FormatOutcome,
    Parsed,
    ToolCall,
    View,
    asked,
    tool_response,
)
from closeup.agent.dialects.diagnose import likely_call
from closeup.agent.dialects.options import answer_call, answer_content, fit_answer
from closeup.agent.dialects.strict_json import StrictJSONError, loads
from closeup.agent.messages import Message
from closeup.tools.base import Tool

MAX_CHARS = 200_000
NAME = "crop_video"
CALL, END_CALL = "<tool_call>", "</tool_call>"
ANSWER, END_ANSWER = "<answer>", "</answer>"
THINK, END_THINK = "<think>", "</think>"
ARGUMENTS = ("video_path", "start_time", "end_time")
SHAPE = (
    f'{CALL}{{"name": "{NAME}", "arguments": {{"video_path": "video_0.mp4", "start_time": …, "end_time": …}}}}'
    f"{END_CALL}"
    f" or {ANSWER}…{END_ANSWER}"
)
_TAG = re.compile(r"<(/?(?:think|tool_call|tool_response|tools|answer)>)")
_PATH = re.compile(r"(?:[^\0]*/)?video_(\d{1,3})\.mp4")


class CropVideo(Dialect):
    """One crop or one answer per message; see the module's invariants."""

    name: ClassVar[str] = NAME

    def parse(self, text: str) -> Parsed:
        """Read one message strictly."""
        if len(text) > MAX_CHARS:
            return _wrong("", "unfinished", f"the message is longer than {MAX_CHARS} characters; think less, then act")
        rest, thought = text.strip(), ""
        if rest.startswith(THINK):
            inside, closed, rest = rest[len(THINK) :].partition(END_THINK)
            thought, rest = inside.strip(), rest.strip()
            if not closed:
                return _wrong(thought, "no_call", f"the thought is not closed: write {END_THINK}, then {SHAPE}")
        calls, answers = rest.count(CALL), rest.count(ANSWER)
        if calls + answers > 1:
            return _wrong(
                thought,
                "several_calls",
                f"one message makes one call or gives one answer, and this one has {calls} calls and {answers} answers;"
                " make the first now",
            )
        if calls + answers == 0:
            where = "inside the thought do not count" if CALL in thought or ANSWER in thought else "are missing"
            return _wrong(thought, "no_call", f"a call and an answer {where}; write {SHAPE}")
        opened, closing = (CALL, END_CALL) if calls else (ANSWER, END_ANSWER)
        before, _, body = rest.partition(opened)
        if before:
            return _wrong(
                thought, "broken_call", f"text stands before {opened}; put it between {THINK} and {END_THINK}"
            )
        body, closed, after = body.partition(closing)
        if not closed:
            return _wrong(thought, "broken_call", f"{opened} is not closed; end it with {closing}", body)
        if after.strip():
            return _wrong(thought, "broken_call", f"text stands after {closing}, which ends the message")
        return _crop(thought, body) if calls else _answer(thought, body)

    def start(self, view: View) -> tuple[Message, ...]:
        """One `user` message: overviews, clips seen before, and the question."""
        return asked(view)

    def observe(self, view: View) -> tuple[Message, ...]:
        """One `tool` message with the news."""
        return tool_response(view)

    def forced_prefix(self, tools: Sequence[type[Tool[Any]]]) -> str:
        """Nothing: a thought may come before the answer."""
        return ""

    def write(self, thought: str, call: ToolCall) -> str:
        """The message that says `thought` (left out when empty) and makes `call`.

        Raises:
            ValueError: a call other than `zoom_clip` and `answer` with a choice or a text; a tag in the thought or the
                answer; a window that is not two numbers.
        """
        if call.name == "zoom_clip":
            action = f"{CALL}\n{json.dumps(_as_crop(call.arguments), allow_nan=False)}\n{END_CALL}"
        elif call.name == "answer":
            content = answer_content(call.arguments, self.name)
            _without_tags(content)
            action = f"{ANSWER}{content}{END_ANSWER}"
        else:
            raise ValueError(f"the dialect {NAME!r} writes zoom_clip and answer, got {call.name!r}")
        _without_tags(thought)
        return (f"{THINK}{thought.strip()}{END_THINK}\n" if thought.strip() else "") + action

    def fit(self, call: ToolCall, options: Sequence[str]) -> ToolCall:
        """An answer as `choice` or as `text`, as the task has options or not."""
        return fit_answer(call, options)

    def plain(self, text: str) -> str:
        """`text` with every tag of this dialect broken up by a space after its "<"."""
        return _plain(text)


def _answer(thought: str, body: str) -> Parsed:
    if not body.strip():
        return _wrong(thought, "broken_call", f"the answer is empty; write {ANSWER}…{END_ANSWER}")
    if _TAG.search(body):
        return _wrong(thought, "broken_call", f"a tag stands inside the answer; write {ANSWER}…{END_ANSWER}")
    return Parsed(thought, answer_call(body))


def _crop(thought: str, body: str) -> Parsed:
    try:
        value = loads(body)
    except StrictJSONError as error:
        return _wrong(thought, "broken_call", f"the call cannot be read: {_plain(str(error))}", body)
    if not isinstance(value, dict) or set(value) != {"name", "arguments"} or not isinstance(value["arguments"], dict):
        return _wrong(
            thought,
            "broken_call",
            'a call is an object with "name" and "arguments", which is an object, and no more',
            body,
        )
    name, given = value["name"], value["arguments"]
    if name != NAME:
        return _wrong(thought, "unknown_tool", f"there is no tool {_plain(repr(name)[:80])}; the tool is {NAME}")
    if set(given) != set(ARGUMENTS):
        return _wrong(
            thought,
            "bad_arguments",
            f"{NAME} takes {', '.join(ARGUMENTS)}, each once, got {_plain(', '.join(sorted(given))[:80]) or 'nothing'}",
        )
    path = given["video_path"]
    found = _PATH.fullmatch(path.strip()) if isinstance(path, str) else None
    if found is None:
        return _wrong(
            thought,
            "bad_arguments",
            f"there is no video at {_plain(repr(path)[:80])}; give the path in the question, such as video_0.mp4",
        )
    arguments: dict[str, Any] = {"start": given["start_time"], "end": given["end_time"]}
    for field, at in zip(ARGUMENTS[1:], arguments.values(), strict=True):
        if isinstance(at, bool) or not isinstance(at, int | float):
            return _wrong(
                thought, "bad_arguments", f"{field} is a number of seconds, got {_plain(repr(at)[:80])}; write a number"
            )
    if int(found[1]):
        arguments["video"] = int(found[1])
    return Parsed(thought, ToolCall("zoom_clip", arguments))


def _as_crop(arguments: Mapping[str, Any]) -> dict[str, Any]:
    video, start, end = arguments.get("video", 0), arguments.get("start"), arguments.get("end")
    numbers = all(isinstance(at, int | float) and not isinstance(at, bool) for at in (start, end, video))
    if not numbers or set(arguments) - {"start", "end", "video"} or not 0 <= video <= 999 or video % 1:
        raise ValueError(f"a crop has a start and an end in seconds, and a video from 0 to 999; got {dict(arguments)}")
    return {
        "name": NAME,
        "arguments": {"video_path": f"video_{int(video)}.mp4", "start_time": start, "end_time": end},
    }


def _without_tags(text: str) -> None:
    if _TAG.search(text):
        raise ValueError(f"neither thought nor answer can hold a tag such as {THINK} or {CALL}: {text[:80]!r}")


def _plain(text: str) -> str:
    return _TAG.sub(r"< \1", text)


def _wrong(thought: str, outcome: FormatOutcome, message: str, body: str = "") -> Parsed:
    return Parsed(thought, FormatError(outcome, message, hint=likely_call(body) if body else ""))
