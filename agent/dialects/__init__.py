"""The dialects by name: how a family of models writes its actions."""

from __future__ import annotations

import difflib

from closeup.agent.dialects.base import Dialect
from closeup.agent.dialects.hermes import Hermes
from closeup.agent.dialects.love_r1 import LoveR1
from closeup.agent.dialects.think_answer import ThinkAnswer

DIALECTS: dict[str, type[Dialect]] = {dialect.name: dialect for dialect in (Hermes, LoveR1, ThinkAnswer)}


def get_dialect(name: str) -> Dialect:
    """A dialect by name. Raises `ValueError` naming those there are."""
    if name in DIALECTS:
        return DIALECTS[name]()
    close = difflib.get_close_matches(name, DIALECTS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"no dialect {name!r}; {hint}accepted: {', '.join(sorted(DIALECTS))}")
