"""A message while it is being written: the thought so far, and the call so far; for the terminal and for the page.

Pure functions of the text that has arrived. They are for people to read: what the agent does is decided by the dialect,
from the finished message.

Invariants
1. They are total: any text gives a result, in time linear in its length.
2. A half-written tag is never shown; what follows is either a thought or a call.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

_CALL = "<tool_call>"
_TAGS = ("<think>", "</think>", _CALL)
_ACTIONS = ("<answer>", "\\boxed{")
"""Where the other dialects' actions begin (`think_answer`, `love_r1`)."""
_NAME = re.compile(r'"name"\s*:\s*"([^"\\]{1,80})"')
_PAIR = re.compile(r'"([^"\\]{1,80})"\s*:\s*("[^"\\]{0,200}"|-?\d[\d.eE+-]{0,40}|true|false|null)\s*[,}]')
_GOES_ON = re.compile(r'\s*"\w*($|"\s*($|:))')
"""A message that goes on in the middle of a forced call, whose beginning was written for the model."""
MAX_CALL = 4000
"""Characters of a half-written call that are looked at."""


@dataclass(frozen=True, slots=True)
class HalfCall:
    """A call that is being written: the tool's name ("" while unknown) and the arguments that are complete already."""

    name: str = ""
    arguments: tuple[tuple[str, str], ...] = ()


def visible_thought(raw: str) -> str:
    """The thought in a message that is still being written: no tags, no call, no half-written tag."""
    text = raw
    if "<think>" in text:
        text = text.split("<think>", 1)[1]
    for end in ("</think>", _CALL):
        text = text.split(end, 1)[0]
    return _without_half(text, _TAGS).lstrip("\n")


def thought_so_far(raw: str) -> str:
    """`visible_thought` of any dialect: also without a begun `<answer>` or box."""
    text = "" if _GOES_ON.match(raw) else visible_thought(raw)
    for action in _ACTIONS:
        text = text.split(action, 1)[0]
    return _without_half(text, _ACTIONS).rstrip()


def call_so_far(raw: str) -> HalfCall | None:
    """The call in a message that is still being written; None as long as none has begun."""
    if _GOES_ON.match(raw):
        return HalfCall("answer", _pairs(raw))
    _, begun, body = raw.rpartition("</think>")[2].partition(_CALL)
    if not begun:
        begun_answer = "<answer>" in raw.rpartition("</think>")[2]
        return HalfCall("answer") if begun_answer else None
    body = body[:MAX_CALL]
    name = _NAME.search(body)
    if name is None:
        return HalfCall()
    arguments = body[name.end() :].partition('"arguments"')[2]
    return HalfCall(name[1], _pairs(arguments))


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((m[1], _plain(m[2])) for m in _PAIR.finditer(text[:MAX_CALL]))


def _plain(written: str) -> str:
    try:
        value = json.loads(written)
    except ValueError:  # a number of a shape that JSON does not know
        return written
    return value if isinstance(value, str) else written


def _without_half(text: str, tags: tuple[str, ...]) -> str:
    """`text` without a tag that has only begun at its end."""
    for first in {tag[0] for tag in tags}:
        cut = text.rfind(first)
        if cut >= 0 and any(tag.startswith(text[cut:]) for tag in tags):
            text = text[:cut]
    return text
