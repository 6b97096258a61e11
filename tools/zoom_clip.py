"""`zoom_clip`: a few seconds of a video again, at full resolution.

The window is validated against the video and the rules in force (LOVE-R1's: 1 s to min(T/2, 60 s), temporal IoU with
every earlier close look at most 0.7). A window that was looked at already at this resolution is refused; one that was
only resampled at skim resolution may be zoomed, because a zoom shows more of it.
"""

from __future__ import annotations

from pydantic import Field

from closeup.tools.base import Tool, ToolArgs, ToolContext, ToolError, ToolResult
from closeup.tools.video.clip import SWSCALE, Clip
from closeup.tools.windows import SHOWN, TOLERANCE, close_looks, overview_of, resolve_window, seconds_text


class ZoomArgs(ToolArgs):
    """Arguments of `zoom_clip`."""

    start: float = Field(ge=0, description="start of the window, in seconds")
    end: float = Field(ge=0, description="end of the window, in seconds")
    video: int = Field(default=0, ge=0, description="which video, counted from 0")


class ZoomClip(Tool[ZoomArgs]):
    """Look closely at a short window of the video: a few frames at high resolution."""

    name = "zoom_clip"

    def run(self, args: ZoomArgs, context: ToolContext) -> ToolResult:
        """One clip, as many and as large frames as `rules` say for its window. Raises `ToolError` for a bad window."""
        rules = context.rules
        video, start, end = resolve_window(context, args.video, args.start, args.end)
        start, end = rules.widened(start, end, video.duration)
        _check_length(end - start, rules.window_seconds(video.duration))
        overview = overview_of(video.identity, context.seen)
        overlay, resizer = (overview.overlay, overview.resizer) if overview else (None, SWSCALE)
        clip = rules.close_look(video.identity, video.duration, (start, end), overlay, resizer)
        _check_overlap(clip, context)
        frames = len(clip.times())
        if context.frames_left is not None and context.frames_left < frames:
            raise ToolError(
                f"a close look needs {frames} frames and only {max(0, context.frames_left)} are left. "
                "Answer from what you have seen."
            )
        return ToolResult(clips=(clip,))


def _check_length(length: float, allowed: tuple[float, float]) -> None:
    shortest, longest = allowed
    if not shortest - SHOWN <= length <= longest + SHOWN:
        fault = "short" if length < shortest else "long"
        raise ToolError(
            f"a window of {seconds_text(length)} s is too {fault}. "
            f"A close look may last {seconds_text(shortest)} to {seconds_text(longest)} s."
        )


def _check_overlap(clip: Clip, context: ToolContext) -> None:
    for earlier in close_looks(context.seen):
        if earlier.video != clip.video or earlier.pixels < clip.pixels:
            continue
        overlap = earlier.iou(clip.start, clip.end)
        if overlap > context.rules.max_overlap + TOLERANCE:
            raise ToolError(
                f"you already looked closely at {seconds_text(earlier.start)} to {seconds_text(earlier.end)} s "
                f"(overlap {overlap:.2f}, allowed {context.rules.max_overlap:g}). Choose another window or answer."
            )
