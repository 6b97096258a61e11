"""What happens in a generated video: boxes with digits and green flashes on a timeline, as plain data.

Design note. The world is built around the overview that the agent is shown first: pairs of frames `spacing` seconds
apart (frames `spacing / 2` apart), few and tiny. A coloured box is always visible in the overview, its digit never
readable there. Everything that a question asks is placed so that the overview cannot answer it, even in principle:

1. A box appears k tenths of `spacing` after an overview frame, k in 1..4, and vanishes at a time drawn without looking
   at k. Which overview frames show it is therefore independent of k: "when" needs a closer look.
2. A flash is never lit at an overview frame's time: "count" needs a denser look.
3. Boxes share no overview pair with each other or with a flash window, and the first and the last pair are empty.
4. A box is visible for 0.6 to 1.6 `spacing`, longer than the time between two overview frames.
5. Colours and digits are distinct within one video.

All times are seconds from the start, multiples of 1/FPS where a frame boundary matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

FPS = 10
SIDE = 112
CELL = 28
MAX_PAIRS = 32
SECONDS = (16, 120)
LONGEST = 4 * MAX_PAIRS
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 30, 35),
    "orange": (240, 130, 20),
    "yellow": (240, 220, 40),
    "cyan": (45, 210, 215),
    "blue": (35, 60, 205),
    "purple": (125, 45, 165),
    "pink": (245, 130, 185),
    "white": (240, 240, 240),
}
GREEN = (40, 225, 70)
SLOTS = (1, 2, 3, 4, 6, 7, 8, 9)  # of 11 per flash window; 0, 5 and 10 coincide with overview frames


@dataclass(frozen=True)
class Box:
    """A coloured box with a digit, visible from `start` until `end` (seconds), centred on pixel (`x`, `y`).

    `before` is the time of the last overview frame that does not show it, `step` the k of invariant 1.
    """

    colour: str
    digit: int
    before: float
    step: int
    start: float
    end: float
    x: int
    y: int


@dataclass(frozen=True)
class FlashWindow:
    """Two spacings from `start` on (seconds) in which a green light at pixel (`x`, `y`) is lit in `slots`."""

    start: float
    end: float
    slots: tuple[int, ...]
    x: int
    y: int

    def lit(self) -> list[tuple[float, float]]:
        """The lit intervals in seconds: from a quarter slot before the slot's time to half a slot after it."""
        slot = (self.end - self.start) / 10
        return [(self.start + (k - 0.25) * slot, self.start + (k + 0.5) * slot) for k in self.slots]


@dataclass(frozen=True)
class Scene:
    """One video's content: its length in whole seconds, the overview's pair spacing in seconds, and what happens."""

    seconds: int
    spacing: int
    boxes: tuple[Box, ...]
    flashes: tuple[FlashWindow, ...]


def overview_spacing(seconds: float) -> int:
    """Whole seconds between two pairs of the overview: the smallest that keeps it within 32 pairs (64 frames)."""
    return max(1, math.ceil(seconds / MAX_PAIRS))


def plan_scene(rng: np.random.Generator, seconds: int, *, boxes: tuple[int, int], flash_windows: int) -> Scene:
    """A random scene: `boxes` = fewest and most boxes (fewer when the video is short), and `flash_windows` windows.

    Raises:
        ValueError: the video has too few overview pairs for the fewest boxes and the windows asked for.
    """
    spacing = overview_spacing(seconds)
    room = math.floor(seconds / spacing) - 2  # whole pairs, without the first and the last
    most = min(boxes[1], (room - 3 * flash_windows) // 2)
    if most < boxes[0]:
        raise ValueError(f"{seconds} s of video have no room for {boxes[0]} boxes and {flash_windows} flash windows")
    count = int(rng.integers(boxes[0], most + 1))
    sizes = np.array([2] * count + [3] * flash_windows)[rng.permutation(count + flash_windows)]
    gaps = rng.multinomial(room - int(sizes.sum()), np.ones(len(sizes) + 1) / (len(sizes) + 1))
    firsts = 1 + np.cumsum(gaps[:-1]) + np.concatenate([[0], np.cumsum(sizes[:-1])])
    colours = rng.permutation(list(COLOURS))[:count]
    digits = rng.permutation(10)[:count]
    planned: list[Box] = []
    windows: list[FlashWindow] = []
    for first, size in zip(firsts, sizes, strict=True):
        if size == 3:
            windows.append(_plan_flashes(rng, float(first * spacing), spacing))
        else:
            colour, digit = str(colours[len(planned)]), int(digits[len(planned)])
            planned.append(_plan_box(rng, int(first), spacing, colour, digit))
    return Scene(seconds, spacing, tuple(planned), tuple(windows))


def _plan_box(rng: np.random.Generator, pair: int, spacing: int, colour: str, digit: int) -> Box:
    # The box fills pairs `pair` and `pair + 1`. Its first overview frame is the second frame of `pair` (then it may
    # stay until just before pair + 2), or the first frame of `pair`.
    late = bool(rng.integers(2))
    before = (pair if late else pair - 0.5) * spacing
    step = int(rng.integers(1, 5))
    start = before + step * spacing / 10
    end = before + round(float(rng.uniform(1.0, 1.7)) * spacing * FPS) / FPS
    cell = rng.integers(0, SIDE // CELL, size=2)
    x, y = (int(c) * CELL + CELL // 2 + int(rng.integers(-3, 4)) for c in cell)
    return Box(colour, digit, round(before, 1), step, round(start, 1), round(end, 1), x, y)


def _plan_flashes(rng: np.random.Generator, start: float, spacing: int) -> FlashWindow:
    wanted = int(rng.integers(1, 5))
    slots: list[int] = []
    while len(slots) < wanted:
        slots = []
        for slot in rng.permutation(SLOTS):
            if all(abs(int(slot) - other) > 1 for other in slots) and len(slots) < wanted:
                slots.append(int(slot))
    x, y = (int(v) for v in rng.integers(14, SIDE - 14, size=2))
    return FlashWindow(start, start + 2 * spacing, tuple(sorted(slots)), x, y)
