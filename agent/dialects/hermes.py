"""The `hermes` dialect: an optional `<think>…</think>`, then exactly one `<tool_call>{json}</tool_call>`.

The JSON is `{"name": …, "arguments": {…}}`. What a tool gives back stands in a `tool` message between
`<tool_response>` tags. The context grows: nothing shown is ever taken back.

Invariants
1. Only white space may stand outside the two blocks; a message that says more, less or twice is a `FormatError`.
2. `parse(write(thought, call))` gives the same thought and call back, whatever characters the arguments hold.
3. `plain` leaves no tag of this dialect in a text, so that a question, a subtitle or a tool's text cannot close a
   response or forge a call.
4. Reading takes time linear in the message, and `MAX_CHARS` bounds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
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
from closeup.agent.dialects.strict_json import StrictJSONError, loads
from closeup.agent.messages import Message
from closeup.tools.base import Tool

MAX_CHARS = 200_000
OPEN, CLOSE = "<tool_call>", "</tool_call>"
THINK, END_THINK = "<think>", "</think>"
SHAPE = f'{OPEN}\n{{"name": "…", "arguments": {{…}}}}\n{CLOSE}'
_TAG = re.compile(r"<(/?(?:think|tool_call|tool_response|tools)>)")


class Hermes(Dialect):
    """One tool call per message, as JSON between tags; see the module's invariants."""

    name: ClassVar[str] = "hermes"

    def parse(self, text: str) -> Parsed:
        """Read one message strictly."""
        if len(text) > MAX_CHARS:
            return _wrong("", "unfinished", f"the message is longer than {MAX_CHARS} characters; think less, then call")
        rest, thought = text.strip(), ""
        if rest.startswith(THINK):
            end = rest.find(END_THINK)
            if end < 0:
                return _wrong(
                    rest[len(THINK) :].strip(), "no_call", f"the thought is not closed: write {END_THINK}, then {SHAPE}"
                )
            thought, rest = rest[len(THINK) : end].strip(), rest[end + len(END_THINK) :].strip()
        calls = rest.count(OPEN)
        if calls > 1:
            return _wrong(
                thought,
                "several_calls",
                f"one message makes one call, and this one makes {calls}; make the first one now",
            )
        if calls == 0:
            where = "inside the thought does not count" if OPEN in thought else "is missing"
            return _wrong(thought, "no_call", f"a call {where}; write {SHAPE}")
        before, _, body = rest.partition(OPEN)
        if before:
            return _wrong(
                thought, "broken_call", f"text stands before the call; put it between {THINK} and {END_THINK}"
            )
        body, closed, after = body.partition(CLOSE)
        if not closed:
            return _wrong(thought, "broken_call", f"the call is not closed; end it with {CLOSE}", body)
        if after.strip():
            return _wrong(thought, "broken_call", f"text stands after {CLOSE}; the call ends the message")
        return _call(thought, body)

    def start(self, view: View) -> tuple[Message, ...]:
        """One `user` message: overviews, clips seen before, and the question."""
        return asked(view)

    def observe(self, view: View) -> tuple[Message, ...]:
        """One `tool` message with the news."""
        return tool_response(view)

    def forced_prefix(self, tools: Sequence[type[Tool[Any]]]) -> str:
        """The beginning of a call of `answer`."""
        return f'{OPEN}\n{{"name": "answer", "arguments": {{'

    def write(self, thought: str, call: ToolCall) -> str:
        """The message that says `thought` (left out when empty) and makes `call`; 12.0 is written 12.

        Raises:
            ValueError: the thought holds a tag of this dialect.
        """
        if _TAG.search(thought):
            raise ValueError(f"a thought cannot hold a tag such as {THINK} or {OPEN}: {thought[:80]!r}")
        body = json.dumps({"name": call.name, "arguments": _whole(call.arguments)}, allow_nan=False)
        body = _TAG.sub(r"\\u003c\1", body)
        said = f"{THINK}{thought.strip()}{END_THINK}\n" if thought.strip() else ""
        return f"{said}{OPEN}\n{body}\n{CLOSE}"

    def plain(self, text: str) -> str:
        """`text` with every tag of this dialect broken up by a space after its "<"."""
        return _plain(text)


def _plain(text: str) -> str:
    return _TAG.sub(r"< \1", text)


def _call(thought: str, body: str) -> Parsed:
    try:
        value = loads(body)
    except StrictJSONError as error:
        return _wrong(thought, "broken_call", f"the call cannot be read: {_plain(str(error))}", body)
    if not isinstance(value, dict) or set(value) != {"name", "arguments"}:
        given = sorted(value) if isinstance(value, dict) else type(value).__name__
        return _wrong(
            thought,
            "broken_call",
            f'a call has the keys "name" and "arguments" and no other, got {_plain(str(given)[:80])}',
            body,
        )
    name, arguments = value["name"], value["arguments"]
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return _wrong(
            thought, "broken_call", '"name" is a string and "arguments" an object, not a string of JSON', body
        )
    return Parsed(thought, ToolCall(name, arguments))


def _wrong(thought: str, outcome: FormatOutcome, message: str, body: str = "") -> Parsed:
    return Parsed(thought, FormatError(outcome, message, hint=likely_call(body) if body else ""))


def _whole(value: Any) -> Any:
    """`value` with whole floats as integers, which is how people and models write seconds."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    return value
