"""`resample_frames`: another density at skim resolution, of the whole film or a part of it.

For what happens between the overview's frames: flashes, counts, exact onsets. Exactly one of `fps` and `num_frames`;
`num_frames` includes both ends of the window. Too many frames are refused with the number that would be allowed, never
thinned in silence.
"""

from __future__ import annotations

import math

from pydantic import Field

from closeup.tools.base import Tool, ToolArgs, ToolContext, ToolError, ToolResult
from closeup.tools.video.clip import MAX_FRAMES, SWSCALE, Clip
from closeup.tools.windows import TOLERANCE, is_close_look, overview_of, resolve_window, seconds_text

__all__ = ["ResampleArgs", "ResampleFrames", "is_close_look"]


class ResampleArgs(ToolArgs):
    """Arguments of `resample_frames`."""

    fps: float | None = Field(default=None, gt=0, description="frames per second; give this or num_frames")
    num_frames: int | None = Field(default=None, ge=1, description="frames spread evenly; give this or fps")
    start: float | None = Field(default=None, ge=0, description="start in seconds; default: the video's start")
    end: float | None = Field(default=None, ge=0, description="end in seconds; default: the video's end")
    video: int = Field(default=0, ge=0, description="which video, counted from 0")


class ResampleFrames(Tool[ResampleArgs]):
    """See the video, or a part of it, again at low resolution with another number of frames."""

    name = "resample_frames"

    def run(self, args: ResampleArgs, context: ToolContext) -> ToolResult:
        """One clip at `rules.skim_pixels`. Raises `ToolError` for a window or a number of frames not allowed."""
        if (args.fps is None) == (args.num_frames is None):
            given = "neither" if args.fps is None else "both"
            raise ToolError(f"give exactly one of fps and num_frames, got {given}.")
        start = 0.0 if args.start is None else args.start
        end = context.video(args.video).duration if args.end is None else args.end
        video, start, end = resolve_window(context, args.video, start, end)
        _check_count(args, end - start, _limit(context))
        overview = overview_of(video.identity, context.seen)
        clip = Clip(
            video=video.identity,
            start=start,
            end=end,
            num_frames=args.num_frames,
            fps=args.fps,
            pixels=context.rules.skim_pixels,
            overlay=overview.overlay if overview else None,
            resizer=overview.resizer if overview else SWSCALE,
        )
        if any(clip.times() == seen.times() and clip.pixels <= seen.pixels for seen in _same(clip, context)):
            raise ToolError("these very frames were shown already. Ask for others, or answer.")
        return ToolResult(clips=(clip,))


def _limit(context: ToolContext) -> int:
    limit = min(context.rules.resample_max_frames, MAX_FRAMES)
    if context.frames_left is None:
        return limit
    if context.frames_left < 1:
        raise ToolError("no frames are left. Answer from what you have seen.")
    return min(limit, context.frames_left)


def _check_count(args: ResampleArgs, seconds: float, limit: int) -> None:
    if args.num_frames is not None and args.num_frames > limit:
        raise ToolError(f"num_frames is too large: at most {limit} frames are allowed now.")
    if args.fps is not None and args.fps * seconds > limit + TOLERANCE:
        raise ToolError(
            f"fps is too large: over {seconds_text(seconds)} s at most {limit} frames are allowed now. "
            f"Give fps up to {_rounded_down(limit / seconds)}, or a shorter window."
        )


def _rounded_down(value: float) -> str:
    """A positive number with three significant digits, never larger than it is, without an exponent."""
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"


def _same(clip: Clip, context: ToolContext) -> list[Clip]:
    window = (clip.video, clip.mode, clip.overlay)
    return [seen for seen in context.seen if (seen.video, seen.mode, seen.overlay) == window]
