"""`run_tool`: one tool call with a time limit.

The call runs in a thread of its own. Python cannot stop a thread, so a call that outlives its limit is *abandoned*: it
goes on in the background, its result is dropped, and it never keeps the process alive (daemon). Abandoned calls are
counted, and while `MAX_ABANDONED` of them are still running every further call is refused: a tool that hangs costs a
bounded number of threads, not one per step of a training run.

Invariants
1. What the tool raises, the caller gets, in its own thread: `ToolError` for the model, anything else as the bug it is.
2. A call whose limit passed never delivers a result afterwards.
3. A clip whose tool did not choose a resizer has that of the video's overview: an episode's frames are resized alike,
   whoever wrote the tool.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from closeup.tools.base import Tool, ToolArgs, ToolContext, ToolError, ToolResult
from closeup.tools.video.clip import Clip
from closeup.tools.windows import overview_of

MAX_ABANDONED = 8

_abandoned: list[threading.Thread] = []
_lock = threading.Lock()


class ToolTimeout(ToolError):
    """A tool call took longer than `rules.tool_seconds`, or too many such calls are still running."""


class _Call(threading.Thread):
    """One call; `result` or `error` is set when the thread has ended."""

    def __init__(self, tool: Tool[Any], args: ToolArgs, context: ToolContext) -> None:
        super().__init__(name=f"closeup-tool-{tool.name}", daemon=True)
        self._work = (tool, args, context)
        self.result: object = None
        self.error: BaseException | None = None

    def run(self) -> None:
        tool, args, context = self._work
        try:
            self.result = tool.run(args, context)
        except BaseException as error:  # handed to the caller's thread, whatever it is
            self.error = error


def run_tool(tool: type[Tool[Any]] | Tool[Any], args: ToolArgs | Mapping[str, Any], context: ToolContext) -> ToolResult:
    """Run a tool and return its result.

    Args:
        tool: the tool, as a class or an instance.
        args: its arguments, validated or raw (raw ones are validated by `parse_args` first).
        context: what the tool may look at; `context.rules.tool_seconds` is the limit in seconds of wall time.

    Raises `ToolError` for what the model should be told: wrong arguments, the tool's refusal, `ToolTimeout`.
    Any other exception is the tool's own and a bug; `TypeError` when the tool returned anything but a `ToolResult`.
    """
    instance = tool() if isinstance(tool, type) else tool
    arguments = args if isinstance(args, ToolArgs) else instance.parse_args(args)
    limit = context.rules.tool_seconds
    if running_abandoned() >= MAX_ABANDONED:
        raise ToolTimeout(
            f"tools are not available now: {MAX_ABANDONED} earlier calls still run past their time limit. "
            "Answer from what you have seen."
        )
    call = _Call(instance, arguments, context)
    call.start()
    try:
        call.join(limit)
    finally:  # an interrupted wait leaves the call running too
        late = call.is_alive()
        if late:
            with _lock:
                _abandoned.append(call)
    if late:
        raise ToolTimeout(f"{instance.name} took longer than {limit:g} s and was given up. Ask for less, or answer.")
    if call.error is not None:
        raise call.error
    if not isinstance(call.result, ToolResult):
        raise TypeError(f"tool {instance.name!r} returned {type(call.result).__name__}; a tool returns a ToolResult")
    return _resized_alike(call.result, context)


def _resized_alike(result: ToolResult, context: ToolContext) -> ToolResult:
    """The result with invariant 3; what a tool should not have put into `clips` stays, for `check_tool` to name."""

    def alike(clip: Any) -> Any:
        if not isinstance(clip, Clip) or "resizer" in clip.model_fields_set:
            return clip
        overview = overview_of(clip.video, context.seen)
        return clip if overview is None else clip.model_copy(update={"resizer": overview.resizer})

    clips = [alike(clip) for clip in result.clips]
    return result if clips == list(result.clips) else replace(result, clips=tuple(clips))


def running_abandoned() -> int:
    """How many calls that passed their limit are still running."""
    with _lock:
        _abandoned[:] = [thread for thread in _abandoned if thread.is_alive()]
        return len(_abandoned)
