"""The dialects by name: how a family of models writes its actions."""

from __future__ import annotations

import difflib

from closeup.agent.dialects.base import Dialect
from closeup.agent.dialects.crop_video import CropVideo
from closeup.agent.dialects.hermes import Hermes
from closeup.agent.dialects.love_r1 import LoveR1
from closeup.agent.dialects.openai import OpenAIMessages
from closeup.agent.dialects.plain_answer import PlainAnswer
from closeup.agent.dialects.think_answer import ThinkAnswer

_ALL: tuple[type[Dialect], ...] = (CropVideo, Hermes, LoveR1, OpenAIMessages, PlainAnswer, ThinkAnswer)
DIALECTS: dict[str, type[Dialect]] = {dialect.name: dialect for dialect in _ALL}


def get_dialect(name: str) -> Dialect:
    """A dialect by name. Raises `ValueError` naming those there are."""
    if name in DIALECTS:
        return DIALECTS[name]()
    close = difflib.get_close_matches(name, DIALECTS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"no dialect {name!r}; {hint}accepted: {', '.join(sorted(DIALECTS))}")
