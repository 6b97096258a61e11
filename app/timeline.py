"""The film as one line of text: where the agent looked, and how closely.

Pure functions from seconds to characters; the terminal and the tests use them, and so can any other text output.
"""

from __future__ import annotations

from collections.abc import Sequence

TRACK, WATCHED = "─", "█"


def clock(seconds: float) -> str:
    """A time as people write it: 0:07, 12:30, 1:02:05; tenths when there are any (0:07.4)."""
    tenths = round(max(0.0, seconds) * 10)
    whole, tenth = divmod(tenths, 10)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    text = f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
    return f"{text}.{tenth}" if tenth else text


def span(start: float, end: float) -> str:
    """A window as people write it: 0:12–0:13."""
    return f"{clock(start)}–{clock(end)}"


def cells(duration: float, window: tuple[float, float], width: int) -> tuple[int, int]:
    """First and last-but-one cell of a line of `width` cells that a window covers; never empty."""
    if duration <= 0 or width < 1:
        return (0, min(1, max(0, width)))
    first = min(width - 1, max(0, int(window[0] / duration * width)))
    last = min(width, max(first + 1, round(window[1] / duration * width)))
    return first, last


def timeline(duration: float, windows: Sequence[tuple[float, float]], width: int) -> str:
    """The whole film as `width` characters, the windows drawn solid."""
    line = [TRACK] * width
    for window in windows:
        first, last = cells(duration, window, width)
        line[first:last] = WATCHED * (last - first)
    return "".join(line)
