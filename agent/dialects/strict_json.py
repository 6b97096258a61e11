"""JSON read strictly: what a lenient reader lets pass is an error here, and reading takes time linear in the text.

Refused beside what is not JSON: a key that stands twice, NaN and infinities (also as numbers too large for a float),
numbers of thousands of digits, text that is not valid Unicode, and nesting deeper than `MAX_DEPTH`.
"""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DEPTH = 16


class StrictJSONError(ValueError):
    """Text that is not one strict JSON value; the message is a sentence a model can use."""


def loads(text: str) -> Any:
    """Parse one JSON value. Raises `StrictJSONError`, and nothing else."""
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite, parse_int=_integer
        )
    except StrictJSONError:
        raise
    except RecursionError:
        raise StrictJSONError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 10) : error.pos + 15]
        raise StrictJSONError(f"it is not valid JSON at character {error.pos + 1}, near {near!r}") from None
    if _depth(value) > MAX_DEPTH:
        raise StrictJSONError(f"it is nested deeper than {MAX_DEPTH} levels")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise StrictJSONError("it holds half of a surrogate pair, which is not text") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise StrictJSONError(f"the key {key[:40]!r} stands twice")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise StrictJSONError(f"{name} is not a JSON number; write a finite number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise StrictJSONError(f"the number {text[:40]} is too large; write a finite number")
    return value


def _integer(text: str) -> int:
    if len(text) > 40:
        raise StrictJSONError(f"the number {text[:20]}… has {len(text)} digits; write a number of seconds")
    return int(text)


def _depth(value: Any) -> int:
    """Levels of nesting, without recursion; stops counting just past `MAX_DEPTH`."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth
