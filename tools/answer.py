"""`answer`: the final answer, which ends the episode.

With options the answer is one of them, by letter or by exact text (a letter wins where an option's text is itself a
letter); without options it is free text. Models write an option that is a number as a JSON number, so `choice: 7` is
read as `choice: "7"`; the schema they are shown stays that of text. Evidence is what the agent cites; the environment
keeps the parts of it that were watched closely.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from closeup.tools.base import Answer, Tool, ToolArgs, ToolContext, ToolError, ToolResult
from closeup.tools.windows import seconds_text

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_EVIDENCE = 8
MAX_TEXT = 4000

Seconds = Annotated[float, Field(ge=0)]
Window = Annotated[list[Seconds], Field(min_length=2, max_length=2)]


def _as_written(value: Any) -> Any:
    """A JSON number as the text that it was written as, in its shortest form (7, 0.5); anything else as it is."""
    return json.dumps(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class AnswerArgs(ToolArgs):
    """Arguments of `answer`."""

    choice: Annotated[str | None, BeforeValidator(_as_written)] = Field(
        default=None, max_length=MAX_TEXT, description="letter of the right option, when there are options"
    )
    text: str | None = Field(
        default=None, max_length=MAX_TEXT, description="the answer in words, when there are no options"
    )
    evidence: list[Window] | None = Field(
        default=None, max_length=MAX_EVIDENCE, description="windows [start, end] in seconds that show the answer"
    )


class AnswerTool(Tool[AnswerArgs]):
    """Give the final answer. This ends the task."""

    name = "answer"

    def run(self, args: AnswerArgs, context: ToolContext) -> ToolResult:
        """The answer as `ToolResult.answer`. Raises `ToolError` when it is none of the options or says nothing."""
        if (args.choice is None) == (args.text is None):
            given = "neither" if args.choice is None else "both"
            wanted = f"choice, one of {_letters(context)}" if context.options else "text"
            raise ToolError(f"give exactly one of choice and text, got {given}. Here give {wanted}.")
        evidence = tuple(_window(start, end) for start, end in args.evidence or ())
        if context.options:
            index = _option(args, context)
            return ToolResult(answer=Answer(LETTERS[index], context.options[index], evidence))
        if args.text is None:
            raise ToolError("this question has no options. Give the answer as text.")
        text = args.text.strip()
        if not text:
            raise ToolError("the text is empty. Give the answer in words.")
        return ToolResult(answer=Answer(None, text, evidence))


def _window(start: float, end: float) -> tuple[float, float]:
    if start > end:
        raise ToolError(
            f"an evidence window must not end before it starts, got [{seconds_text(start)}, {seconds_text(end)}]."
        )
    return start, end


def _option(args: AnswerArgs, context: ToolContext) -> int:
    """Index of the option meant by `choice` (letter or exact text) or `text` (exact text)."""
    said = (args.choice if args.choice is not None else args.text or "").strip()
    letters = LETTERS[: len(context.options)]
    if args.choice is not None and len(said) == 1 and said.isascii() and said.upper() in letters:
        return letters.index(said.upper())
    stripped = [option.strip() for option in context.options]
    shown = said if len(said) <= 40 else said[:37] + "..."
    if stripped.count(said) > 1:
        raise ToolError(
            f"{shown!r} is the text of more than one option. Give choice as one letter: {_letters(context)}."
        )
    if said in stripped:
        return stripped.index(said)
    raise ToolError(f"{shown!r} is none of the options. Give choice as one letter: {_letters(context)}.")


def _letters(context: ToolContext) -> str:
    return ", ".join(LETTERS[: len(context.options)])
