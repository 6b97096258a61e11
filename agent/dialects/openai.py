"""The `openai` dialect: a message is the assistant message of OpenAI's chat format, as one JSON object.

    {"role": "assistant", "content": "too small", "tool_calls": [{"id": "call_1", "type": "function",
     "function": {"name": "zoom_clip", "arguments": "{\\"start\\": 12, \\"end\\": 18}"}}]}

Two ways to use it. A model that writes text writes that object. A server that takes and gives such messages is fed
`chat_messages(context)`, and what it answers becomes the text of a step by `message_text`: one record serves both, and
replays. Source of the format: OpenAI's API reference, "Create chat completion" (`messages`, `tool_calls`).

Invariants
1. Exactly one function is called, its arguments a string that holds a JSON object; anything else is a `FormatError`.
2. `parse(write(thought, call))` gives the same thought and call back, whatever characters the arguments hold.
3. In `chat_messages` every call has an id of its own and is answered by the `tool` message after it, if there is one;
   a message that made no single call is plain content, and what it is told comes from the user.
4. `parse(message_text(m))` reads what `m` says, and `message_text` never raises for what a model can make of a message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from closeup.agent.dialects.base import Dialect, FormatError, FormatOutcome, Parsed, ToolCall, View, asked, shown
from closeup.agent.dialects.diagnose import likely_call
from closeup.agent.dialects.strict_json import StrictJSONError, loads
from closeup.agent.messages import Message
from closeup.tools.base import Tool
from closeup.tools.video.clip import Clip

MAX_CHARS = 200_000
SHAPE = (
    '{"role": "assistant", "content": "…", "tool_calls": [{"id": "call_1", "type": "function",'
    ' "function": {"name": "…", "arguments": "{…}"}}]}'
)
_BEGINNING = '{"role": "assistant", "content": null, "tool_calls": [{"id": "call_1", "type": "function", "function": '

_CALLS = re.compile(r'"tool_calls(?=")')

ShowClip = Callable[[Clip], Sequence[Mapping[str, Any]]]
"""The content parts (`{"type": "image_url", …}`, `{"type": "text", …}`) that show a clip."""


class OpenAIMessages(Dialect):
    """One function call per message, as the JSON of an assistant message; see the module's invariants."""

    name: ClassVar[str] = "openai"

    def parse(self, text: str) -> Parsed:
        """Read one message strictly."""
        if len(text) > MAX_CHARS:
            return _wrong("", "unfinished", f"the message is longer than {MAX_CHARS} characters; think less, then call")
        said = text.strip()
        if not said.startswith("{"):
            return _wrong("", "no_call", f"the message is no JSON object; write {SHAPE} and nothing around it")
        try:
            value = loads(said)
        except StrictJSONError as error:
            return _wrong("", "broken_call", f"the message cannot be read: {error}", said)
        content = value.get("content")
        if set(value) - {"role", "content", "tool_calls"} or value.get("role", "assistant") != "assistant":
            keys = ", ".join(sorted(value))[:80]
            return _wrong(
                "", "broken_call", f'an assistant message has "role", "content" and "tool_calls", and this has {keys}'
            )
        if content is not None and not isinstance(content, str):
            return _wrong("", "broken_call", '"content" is a text or null; write your thought as one text')
        thought = (content or "").strip()
        calls = value.get("tool_calls") or []
        if not isinstance(calls, list):
            return _wrong(thought, "broken_call", f'"tool_calls" is a list with one call; write {SHAPE}')
        if not calls:
            return _wrong(thought, "no_call", f'no function is called: "tool_calls" is missing or empty; write {SHAPE}')
        if len(calls) > 1:
            return _wrong(
                thought,
                "several_calls",
                f"one message makes one call, and this one makes {len(calls)}; make the first one now",
            )
        return _call(thought, calls[0])

    def start(self, view: View) -> tuple[Message, ...]:
        """One `user` message: overviews, clips seen before, and the question."""
        return asked(view)

    def observe(self, view: View) -> tuple[Message, ...]:
        """One `tool` message with the news."""
        words = "\n".join(text for text in (view.news, view.notice) if text)
        content: list[str | Clip] = [*shown(view.new_clips), words]
        if not view.new_clips and not words:
            content = ["done"]
        return (Message.of("tool", *content),)

    def forced_prefix(self, tools: Sequence[type[Tool[Any]]]) -> str:
        """The beginning of a call of `answer`."""
        return _BEGINNING + '{"name": "answer", "arguments": "{'

    def write(self, thought: str, call: ToolCall) -> str:
        """The message that says `thought` (null when empty) and makes `call`.

        Raises:
            ValueError: arguments that JSON cannot hold (NaN, an infinity).
        """
        arguments = json.dumps(dict(call.arguments), allow_nan=False)
        return json.dumps(_assistant(thought.strip() or None, "call_1", call.name, arguments))

    def plain(self, text: str) -> str:
        """`text` with the key that makes a call broken up by a space in it."""
        return _CALLS.sub('"tool _calls', text)


def message_text(message: Mapping[str, Any]) -> str:
    """A server's assistant message as the text that `OpenAIMessages.parse` reads.

    What the format has beside a thought and calls (`refusal`, `annotations`, a null `audio`, …) is left out: it is no
    part of the conversation that goes on.
    """
    kept = {key: message[key] for key in ("content", "tool_calls") if message.get(key) is not None}
    return json.dumps({"role": "assistant", "content": None} | kept)


def chat_messages(context: Sequence[Message], *, show: ShowClip, clips_in_tools: bool = True) -> list[dict[str, Any]]:
    """A context of this dialect as the `messages` of a chat completion.

    Args:
        context: every message of the prompt, oldest first (`Request.messages`).
        show: what a clip becomes.
        clips_in_tools: servers such as vLLM show pictures in a `tool` message; OpenAI's own takes text only there, so
            with False the clips follow in a `user` message.
    """
    dialect, made, waiting = OpenAIMessages(), list[dict[str, Any]](), ""
    for number, message in enumerate(context):
        if message.role == "assistant":
            parsed = dialect.parse(message.text)
            waiting = ""
            if isinstance(parsed.action, FormatError):
                made.append({"role": "assistant", "content": message.text})
                continue
            waiting = f"call_{number}"
            call = loads(message.text)["tool_calls"][0]["function"]
            made.append(_assistant(parsed.thought or None, waiting, call["name"], call["arguments"]))
        elif message.role == "tool" and waiting:
            own = Message(role="tool", content=tuple(p for p in message.content if clips_in_tools or p.type == "text"))
            content = _content(own, show) or [{"type": "text", "text": "The frames follow."}]
            made.append({"role": "tool", "tool_call_id": waiting, "content": content})
            if not clips_in_tools and message.clips:
                made.append({"role": "user", "content": _content(Message.of("user", *message.clips), show)})
            waiting = ""
        else:
            role = "user" if message.role == "tool" else message.role
            made.append({"role": role, "content": _content(message, show)})
    return made


def _content(message: Message, show: ShowClip) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for part in message.content:
        parts += [{"type": "text", "text": part.text}] if part.type == "text" else [dict(p) for p in show(part.clip)]
    return parts


def _assistant(content: str | None, call_id: str, name: str, arguments: str) -> dict[str, Any]:
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def _call(thought: str, call: Any) -> Parsed:
    if not isinstance(call, dict) or set(call) != {"id", "type", "function"} or call["type"] != "function":
        return _wrong(thought, "broken_call", f'a call has "id", "type": "function" and "function"; write {SHAPE}')
    function = call["function"]
    if not isinstance(call["id"], str) or not call["id"].strip():
        return _wrong(thought, "broken_call", 'a call\'s "id" is a text that is not empty, such as "call_1"')
    if (
        not isinstance(function, dict)
        or set(function) != {"name", "arguments"}
        or not isinstance(function["name"], str)
    ):
        return _wrong(thought, "broken_call", f'"function" has "name", a text, and "arguments"; write {SHAPE}')
    written = function["arguments"]
    if not isinstance(written, str):
        return _wrong(thought, "broken_call", '"arguments" is a string that holds a JSON object, not the object itself')
    try:
        arguments = loads(written)
    except StrictJSONError as error:
        return _wrong(thought, "broken_call", f'"arguments" cannot be read: {error}', written)
    if not isinstance(arguments, dict):
        return _wrong(thought, "broken_call", f'"arguments" holds a JSON object, got {written[:40]!r}')
    return Parsed(thought, ToolCall(function["name"], arguments))


def _wrong(thought: str, outcome: FormatOutcome, message: str, body: str = "") -> Parsed:
    return Parsed(thought, FormatError(outcome, message, hint=likely_call(body) if body else ""))
