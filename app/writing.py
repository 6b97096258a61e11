"""What people read of a message and of an end: the thought so far, the call so far, and reasons in words.

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


_DEBRIS = re.compile(
    r"</?tool_(?:call|response)>|</?think>|</answer>"  # tags that are no part of a thought
    r'|"(?:name|arguments|evidence|choice)"\s*:|^\s*"\s*[,:\]}]|"\s*,\s*"\s*[,:\]]|\{\s*"|\[\[\s*-?\d'  # pieces of JSON
)
_OUTCOME = re.compile(r"\((\w+)\)$")
_LIMITS = {
    "max_steps": "The agent used up all its messages.",
    "max_frames": "The agent used up the frames it may watch.",
    "max_visual_tokens": "The agent used up the visual tokens it may watch.",
    "max_context_tokens": "The conversation grew as long as the model can read.",
    "after_fault": "",
}
_FAULTS = {
    "no_call": "its message was no answer",
    "several_calls": "its message made several calls at once",
    "broken_call": "its answer could not be read",
    "unknown_tool": "it called a tool that does not exist",
    "bad_arguments": "its answer was not of the form that is asked for",
    "refused": "what it did instead was refused",
    "unfinished": "its message was cut off at its longest",
    "media_tokens": "it wrote placeholders of pictures",
}
"""What is wrong with a message, by format outcome (`closeup.agent.dialects.base`)."""


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


def is_garbled(text: str) -> bool:
    """Whether words hold the debris of a call, as a model that has lost its thread writes it; honest prose has none."""
    return _DEBRIS.search(text) is not None


def in_words(reason: str) -> str:
    """Why an episode ended, as a sentence for people; a reason that has none here is given back as it is.

    `agent/environment.py` and `agent/live.py` write "LIMIT: what happened (outcome)".
    """
    limit, colon, rest = reason.partition(": ")
    if not colon or limit not in _LIMITS:
        return reason
    outcome = _OUTCOME.search(rest)
    fault = _FAULTS.get(outcome[1], outcome[1].replace("_", " ")) if outcome else rest
    if limit == "after_fault":
        return f"The agent's message could not be carried out: {fault}."
    told = f"It was told to answer then, and {fault}" if outcome else fault[:1].upper() + fault[1:]
    return f"{_LIMITS[limit]} {told}."


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
