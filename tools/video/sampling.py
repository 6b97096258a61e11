"""Which instants to look at: pure functions of time, with no file and no frame index in sight.

Invariants
1. Times are seconds, never descending, and lie inside the window they were asked for.
2. The number of times is what was asked for, or what `frame_count` says; never 0.
3. `slow_fast` never plans more pixels than it was allowed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Placement = Literal["ends", "left", "centre"]
_ROUNDING = 1e-6  # frames: 0.1 s at 30 fps is 3 frames, not 4, whatever the floats say


def uniform(start: float, end: float, count: int, *, placement: Placement = "ends") -> tuple[float, ...]:
    """`count` times spread evenly over `[start, end]` (seconds).

    "ends" includes both ends (one frame: the middle), "left" takes the left edge of `count` equal bins, "centre" their
    middle.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    span = end - start
    if not (math.isfinite(span) and span >= 0):
        raise ValueError(f"a window has finite ends, the start first; got [{start}, {end}]")
    if placement == "ends":
        if count == 1:
            return (start + span / 2,)
        return tuple(min(end, start + span * (i / (count - 1))) for i in range(count))
    shift = 0.5 if placement == "centre" else 0.0
    return tuple(start + span * (i + shift) / count for i in range(count))


def by_fps(start: float, end: float, fps: float, *, max_frames: int) -> tuple[float, ...]:
    """One time every `1/fps` seconds from `start` on, `end` excluded; thinned evenly when that exceeds `max_frames`.

    At least one time is returned, even for an empty window.
    """
    count = frame_count(end - start, fps, max_frames=max_frames)
    if (end - start) * fps - _ROUNDING > max_frames:
        return uniform(start, end, count, placement="left")
    return tuple(min(end, start + i / fps) for i in range(count))


def frame_count(seconds: float, fps: float, *, max_frames: int, whole: bool = False) -> int:
    """How many frames `fps` gives for a window of `seconds`: at least 1, at most `max_frames`.

    A part of a frame's time counts as a frame (one every `1/fps` seconds from the window's start on), or with `whole`
    does not: the `int(seconds * fps)` of the field's video loaders, which spread that many over the window.
    """
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    if max_frames < 1:
        raise ValueError(f"max_frames must be at least 1, got {max_frames}")
    exact = seconds * fps - _ROUNDING
    if exact > max_frames:
        return max_frames
    return max(1, math.floor(exact + 2 * _ROUNDING) if whole else math.ceil(exact))


@dataclass(frozen=True)
class Density:
    """How closely to look: frames per second up to `max_frames`, each of at most `pixels` pixels."""

    fps: float
    max_frames: int
    pixels: int

    def count(self, seconds: float) -> int:
        """Frames for a window of `seconds`."""
        return frame_count(seconds, self.fps, max_frames=self.max_frames)


@dataclass(frozen=True)
class SlowFast:
    """A plan: frames of the fast overview and of each slow close-up, in the order of the windows."""

    fast_frames: int
    slow_frames: tuple[int, ...]

    def pixels(self, fast: Density, slow: Density) -> int:
        """Pixels of the whole plan."""
        return self.fast_frames * fast.pixels + sum(self.slow_frames) * slow.pixels


def slow_fast(
    duration: float,
    windows: Sequence[tuple[float, float]],
    *,
    fast: Density,
    slow: Density,
    max_pixels: int | None = None,
) -> SlowFast:
    """Frames for an overview of `duration` seconds and for close-ups of `windows` (start, end in seconds).

    "Fast" is the dense overview in low resolution and "slow" the close-up in high resolution (LOVE-R1's words). When
    the plan exceeds `max_pixels` (over all frames), every count shrinks by one factor, down to one frame each.

    Raises:
        ValueError: not even one frame each fits.
    """
    whole = SlowFast(fast.count(duration), tuple(slow.count(max(0.0, end - start)) for start, end in windows))
    if max_pixels is None or whole.pixels(fast, slow) <= max_pixels:
        return whole
    least = SlowFast(1, tuple(1 for _ in windows))
    if least.pixels(fast, slow) > max_pixels:
        raise ValueError(
            f"one overview frame and one frame for each of {len(windows)} windows need {least.pixels(fast, slow)} "
            f"pixels, but only {max_pixels} are allowed; allow more pixels, or ask for smaller frames or fewer windows"
        )
    low, high = 0.0, 1.0  # the largest factor that fits, by bisection: the ones kept at one frame make it uneven
    plan = least
    for _ in range(40):
        factor = (low + high) / 2
        tried = SlowFast(
            max(1, int(whole.fast_frames * factor)), tuple(max(1, int(n * factor)) for n in whole.slow_frames)
        )
        if tried.pixels(fast, slow) <= max_pixels:
            low, plan = factor, tried
        else:
            high = factor
    return plan
