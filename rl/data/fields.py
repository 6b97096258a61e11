"""The fields of an annotation row, read strictly: a field is missing (empty), well-formed, or a `RowFault`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from closeup.agent.task import Window
from closeup.rl.data.options import RowFault

Row = Mapping[str, Any]

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_PLACEHOLDER = re.compile(r"\s*<(?:video|image)>\s*")
_SPAN = re.compile(r"\[?\s*(\d+(?:\.\d+)?)\s*(?:,|-|to)\s*(\d+(?:\.\d+)?)\s*\]?(?:\s*s(?:econds)?)?")


def text_of(row: Row, key: str) -> str:
    """A text or a number as text, without blanks around it; "" for anything else."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return str(value).strip()


def strings_of(row: Row, key: str) -> tuple[str, ...]:
    """A list of texts; a mapping of letters to texts becomes "A. text". Raises `RowFault`."""
    value = row.get(key)
    if value is None or value == "":
        return ()
    if isinstance(value, Mapping) and all(isinstance(v, str | int | float) for v in value.values()):
        value = [f"{letter}. {text}" for letter, text in value.items()]
    if not isinstance(value, list | tuple) or not all(isinstance(v, str | int | float) for v in value):
        raise RowFault("options", f"'{key}' is a list of texts, got {short(json.dumps(value, default=str))}")
    return tuple(str(v) for v in value)


def videos_of(row: Row) -> tuple[str, ...]:
    """The paths in `path`, `video` or `videos`, as written. Raises `RowFault` when there is none."""
    for key in ("path", "video", "videos"):
        value = row.get(key)
        values = [value] if isinstance(value, str) else value
        if isinstance(values, list | tuple) and values and all(isinstance(v, str) and v.strip() for v in values):
            return tuple(v.strip() for v in values)
    raise RowFault("no video", "no path in 'path', 'video' or 'videos'")


def refuse_pictures(row: Row) -> None:
    """Raise `RowFault` for a row about a picture, a text or a sound."""
    said = text_of(row, "data_type").lower()
    if said in ("image", "text", "audio"):
        raise RowFault("no video", f"data_type is {said!r}: a task is about videos")
    named = row.get("path")
    if isinstance(named, str) and named.lower().endswith(_PICTURES):
        raise RowFault("no video", f"{named} is a picture: a task is about videos")


def windows_of(row: Row, key: str) -> tuple[Window, ...]:
    """Windows in seconds: a list of pairs, or one pair. Raises `RowFault` for anything else that is there."""
    value = row.get(key)
    if value is None or value == []:
        return ()
    pairs = [value] if isinstance(value, list | tuple) and all(number_of(v) is not None for v in value) else value
    windows = []
    for pair in pairs if isinstance(pairs, list | tuple) else [pairs]:
        ends = [number_of(v) for v in pair] if isinstance(pair, list | tuple) else []
        if len(ends) != 2 or ends[0] is None or ends[1] is None or not 0 <= ends[0] <= ends[1]:
            raise RowFault(
                "evidence",
                f"'{key}' holds {short(json.dumps(pair, default=str))}; a window is [start, end] in seconds",
            )
        windows.append((ends[0], ends[1]))
    return tuple(windows)


def seen_windows(row: Row, key: str) -> tuple[Window, ...]:
    """Windows that are watched, in whole seconds as LOVE-R1 rounds them, by their start.

    Raises `RowFault` as `windows_of`, and for a window of which rounding leaves no second to be shown.
    """
    found = sorted({(float(round(start)), float(round(end))) for start, end in windows_of(row, key)})
    for start, end in found:
        if start == end:
            raise RowFault("evidence", f"'{key}' holds a window at {start:g} s without a second to be watched")
    return tuple(found)


def grounding_window(gold: str) -> Window:
    """The window of a grounding answer, "[12, 20]" or "12 - 20". Raises `RowFault`."""
    match = _SPAN.fullmatch(gold.strip())
    if match is None or float(match[1]) > float(match[2]):
        raise RowFault("gold answer", f"a grounding answer is [start, end] in seconds, got {short(gold)!r}")
    return float(match[1]), float(match[2])


def turns_of(value: Any, key: str, role: str, content: str) -> tuple[str, str]:
    """Text of the first user message and of the last assistant message of a conversation. Raises `RowFault`."""
    if not isinstance(value, list | tuple) or not all(isinstance(turn, Mapping) for turn in value):
        raise RowFault("unknown form", f"'{key}' is a list of messages, got {short(json.dumps(value, default=str))}")
    asked = [_said(turn.get(content)) for turn in value if turn.get(role) in ("user", "human")]
    said = [_said(turn.get(content)) for turn in value if turn.get(role) in ("assistant", "gpt")]
    if not asked or not said:
        raise RowFault("unknown form", f"'{key}' lacks {'a user' if not asked else 'an assistant'} message")
    return asked[0], said[-1]


def _said(content: Any) -> str:
    """A message's text: a string, or the text parts of a list of parts."""
    if isinstance(content, str):
        return content.strip()
    parts = content if isinstance(content, list | tuple) else []
    texts = [part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
    return "\n".join(texts).strip()


def without_placeholders(question: str) -> str:
    """A question without the places a loader puts its frames (`<video>`, `<image>`)."""
    return _PLACEHOLDER.sub(" ", question).strip() if "<" in question else question.strip()


def id_of(row: Row) -> str:
    """The annotation's own id, or ""."""
    return next((text_of(row, key) for key in ("problem_id", "qid", "id") if text_of(row, key)), "")


def number_of(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return number if math.isfinite(number) else None


def short(text: str) -> str:
    """At most 60 characters of a text, for an error."""
    return text if len(text) <= 60 else text[:57] + "..."
