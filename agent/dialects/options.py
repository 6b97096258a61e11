"""Answers that stand bare between a dialect's marks: the letter of an option, or words. Only the task can tell which.

A dialect reads one letter as `choice` and anything else as `text`; once the options are known, `fit_answer` makes it
the argument that the tool `answer` takes for such a task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from closeup.agent.dialects.base import ToolCall

_LETTER = re.compile(r"[A-Za-z]")
_LETTERED = re.compile(r"\(?([A-Za-z])(?:\)[.:]?|[.:])(?:\s.*)?", re.DOTALL)
"""`(B)`, `B.`, `B) the red one`, `B: the red one`: a letter, a stop after it, and perhaps the option's text."""


def answer_call(content: str) -> ToolCall:
    """The call of `answer` that bare `content` makes: a single letter is a choice, anything else is text."""
    said = content.strip()
    return ToolCall("answer", {"choice": said.upper()} if _LETTER.fullmatch(said) else {"text": said})


def fit_answer(call: ToolCall, options: Sequence[str]) -> ToolCall:
    """A call of `answer` for a task with these options: `choice` where there are options, `text` where there are none.

    With options the content is, in this order: one letter; an option's exact text; a letter with a stop after it, and
    whatever follows (LOVE-R1 reads the first character of its box). Anything else is left for the tool to refuse.
    """
    if call.name != "answer" or set(call.arguments) not in ({"choice"}, {"text"}):
        return call
    (said,) = call.arguments.values()
    if not isinstance(said, str):
        return call
    if not options:
        return ToolCall(call.name, {"text": said})
    lettered = _LETTERED.fullmatch(said.strip())
    if lettered is not None and said.strip() not in [option.strip() for option in options]:
        said = lettered[1].upper()
    return ToolCall(call.name, {"choice": said})


def answer_content(arguments: Mapping[str, Any], dialect: str) -> str:
    """What stands between the marks for these arguments of `answer`.

    Raises:
        ValueError: arguments that are not one `choice` or one `text`, or an empty one; such a dialect cites no
        evidence.
    """
    if set(arguments) not in ({"choice"}, {"text"}):
        raise ValueError(
            f"the dialect {dialect!r} writes an answer as its `choice` or its `text` alone, got {sorted(arguments)}"
        )
    (said,) = arguments.values()
    if not isinstance(said, str) or not said.strip():
        raise ValueError(f"an answer is a text that is not empty, got {said!r}")
    return said.strip()
