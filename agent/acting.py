"""What one assistant message does: the dialect reads it, its call is run, and either may be told what went wrong.

Invariants
1. Whatever the text, the result is a `Deed` with a named outcome; its note is empty exactly when the call ran.
2. A bug of a tool or a dialect raises `EpisodeError`, and nothing else does.
3. A note may hold what the model or a tool wrote, bounded in length and passed through `Dialect.plain`.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from closeup.agent.budget import Cost
from closeup.agent.contract import EpisodeError
from closeup.agent.dialects.base import FormatError, FormatOutcome, ToolCall
from closeup.agent.messages import valid_text
from closeup.agent.session import Session
from closeup.tools.base import Tool, ToolError, ToolResult
from closeup.tools.call import run_tool

MAX_CHARS = 4000  # of one tool's text or one error sentence
MEDIA_TOKENS = ("<|video_pad|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
NOTHING = ToolResult()


@dataclass(frozen=True, slots=True)
class Deed:
    """What a message did: the outcome, what was read in it, what the model is told, and what the tool gave.

    `seconds` is the wall time of the tool; `hint` is for people (see `StepInfo`).
    """

    outcome: FormatOutcome
    thought: str = ""
    call: ToolCall | None = None
    note: str = ""
    hint: str = ""
    result: ToolResult = NOTHING
    seconds: float = 0.0


def act(session: Session, tools: Mapping[str, type[Tool[Any]]], text: str, *, cut: bool) -> Deed:
    """Read `text` and run its call. `cut` = the message was cut at its length limit. Raises `EpisodeError` for bugs."""
    found = [token for token in MEDIA_TOKENS if token in text]
    if found:
        return Deed("media_tokens", note=f"a message cannot hold {', '.join(found)}: frames come from tools only")
    try:
        parsed = session.dialect.parse(text)
    except Exception as error:
        raise EpisodeError(session.episode_id, error, doing=f"dialect {session.dialect.name}") from error
    if isinstance(parsed.action, FormatError):
        outcome, note = parsed.action.outcome, parsed.action.message
        if cut:
            outcome, note = "unfinished", f"the message was cut at its length limit, so think less; {note}"
        return Deed(outcome, parsed.thought, note=bounded(note), hint=parsed.action.hint)
    call = session.dialect.fit(parsed.action, session.task.options)
    began = time.perf_counter()
    outcome, said, result = _run(session, tools, call)
    if outcome != "ok":
        said = session.dialect.plain(bounded(said)) or "no reason was given; try something else"
    return Deed(outcome, parsed.thought, call, said, result=result, seconds=time.perf_counter() - began)


def bounded(text: str) -> str:
    """At most `MAX_CHARS` characters of `text`, with a word on how many were left out."""
    text = valid_text(text)
    if len(text) <= MAX_CHARS:
        return text
    return f"{text[:MAX_CHARS]}… ({len(text) - MAX_CHARS} more characters left out)"


def _run(
    session: Session, tools: Mapping[str, type[Tool[Any]]], call: ToolCall
) -> tuple[FormatOutcome, str, ToolResult]:
    """The outcome, the reason when it is not "ok", and what the tool gave."""
    tool = tools.get(call.name)
    if tool is None:
        return "unknown_tool", _unknown(call.name[:80], tools), NOTHING
    if session.forced_by and call.name != "answer":
        return "refused", "this is the last message: only answer is taken", NOTHING
    outcome: FormatOutcome = "bad_arguments"
    try:
        args = tool.parse_args(call.arguments)
        outcome = "refused"
        result = run_tool(tool, args, session.tool_context())
        cost = sum((session.cost(clip) for clip in result.clips), Cost())
    except ToolError as error:
        return outcome, str(error), NOTHING
    except (Exception, SystemExit) as error:  # a tool that calls sys.exit() must not end the run
        raise EpisodeError(session.episode_id, error, doing=f"tool {tool.name}") from error
    refusal = session.meter.refusal(cost) if result.clips else ""
    return ("refused", refusal, NOTHING) if refusal else ("ok", "", result)


def _unknown(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"there is no tool {name!r}; {hint}The tools are: {', '.join(known)}"
