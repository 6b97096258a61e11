"""Which instants to look at: pure functions of time, with no file and no frame index in sight.

Every function returns ascending times in seconds inside the window it was given.
"""

from __future__ import annotations

import math
from typing import Literal

Placement = Literal["ends", "left", "centre"]


def uniform(start: float, end: float, count: int, *, placement: Placement = "ends") -> tuple[float, ...]:
    """`count` times spread evenly over `[start, end]` (seconds).

    "ends" includes both ends (one frame: the middle), "left" takes the left edge of `count` equal bins, "centre" their
    middle.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    span = end - start
    if placement == "ends":
        if count == 1:
            return (start + span / 2,)
        return tuple(min(end, start + span * i / (count - 1)) for i in range(count))
    shift = 0.5 if placement == "centre" else 0.0
    return tuple(start + span * (i + shift) / count for i in range(count))


def by_fps(start: float, end: float, fps: float, *, max_frames: int) -> tuple[float, ...]:
    """One time every `1/fps` seconds from `start` on, `end` excluded; thinned evenly when that exceeds `max_frames`.

    At least one time is returned, even for an empty window.
    """
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    count = max(1, math.ceil((end - start) * fps - 1e-6))
    if count > max_frames:
        return uniform(start, end, max_frames, placement="left")
    return tuple(start + i / fps for i in range(count))
