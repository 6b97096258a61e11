"""Windows of time: which ones a tool may show, and which ones count as watched closely.

One place for both, so that tools, the environment (evidence) and rewards agree.

Invariants
1. Refusals say what was wrong and what is allowed in one or two short sentences, in seconds.
2. `is_close_look` depends on the two clips alone, so that replaying a record decides the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from closeup.tools.base import ToolContext, ToolError
from closeup.tools.video.clip import Clip

if TYPE_CHECKING:
    from closeup.tools.video.reader import Video

TOLERANCE = 1e-6
SHOWN = 0.005
"""Half of the last digit `seconds_text` shows: a length that a sentence named is never refused for its rounding."""


def seconds_text(value: float) -> str:
    """A time for a sentence: at most two decimals, no trailing zeros ("12", "0.25"), short even for absurd values."""
    if abs(value) >= 1e9:
        return f"{value:.3g}"
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("", "-0") else text


def resolve_window(context: ToolContext, index: int, start: float, end: float) -> tuple[Video, float, float]:
    """The video with this index and the window in it, in seconds, `0 <= start < end <= duration`.

    An end at most `rules.past_end_seconds` (or one frame, if that is longer) past the video's end is cut there. Raises
    `ToolError` for a window that is reversed, empty, or outside the video.
    """
    video = context.video(index)
    last = video.duration
    slack = max(context.rules.past_end_seconds, 1 / video.fps if video.fps > 0 else 0.0)
    allowed = f"Give 0 <= start < end <= {seconds_text(last)}."
    if start < 0 or start >= last:
        raise ToolError(
            f"start {seconds_text(start)} is outside the video, which lasts {seconds_text(last)} s. {allowed}"
        )
    if end <= start:
        raise ToolError(
            f"a window must end after it starts, got {seconds_text(start)} to {seconds_text(end)} s. {allowed}"
        )
    if end > last + slack + TOLERANCE:
        raise ToolError(f"end {seconds_text(end)} is past the video's end, it lasts {seconds_text(last)} s. {allowed}")
    return video, start, min(end, last)


def spacing(clip: Clip) -> float:
    """Seconds between the instants a clip asks for; the window's length when it asks for one."""
    times = clip.times()
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else clip.seconds


def is_close_look(clip: Clip, overview: Clip | None) -> bool:
    """Whether `clip` shows its window more closely than `overview` (of the same video) did.

    True when its frames are larger (more `pixels`) or denser in time than the overview's, so both a zoom and a denser
    resample count, and a sparser resample does not. A key-frame skim is never a close look. Without an overview every
    exact clip is one.
    """
    if clip.mode == "keyframe":
        return False
    if overview is None:
        return True
    if overview.video != clip.video:
        raise ValueError(f"the clip is of video {clip.video!r}, the overview of {overview.video!r}")
    return clip.pixels > overview.pixels or spacing(clip) < spacing(overview) * (1 - TOLERANCE)


def overview_of(video: str, seen: Sequence[Clip]) -> Clip | None:
    """The overview of a video (by identity): its first clip in `seen`; None when nothing of it was shown."""
    return next((clip for clip in seen if clip.video == video), None)


def close_looks(seen: Sequence[Clip]) -> tuple[Clip, ...]:
    """The clips of `seen` that are close looks, oldest first; the first clip of each video is its overview."""
    overviews: dict[str, Clip] = {}
    close = []
    for clip in seen:
        overview = overviews.setdefault(clip.video, clip)
        if clip is not overview and is_close_look(clip, overview):
            close.append(clip)
    return tuple(close)
