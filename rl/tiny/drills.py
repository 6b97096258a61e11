"""Drill videos: many boxes and lights at once, so that one decoded frame teaches sixteen glyphs.

The vision tower sees the same boxes, backgrounds and compression as in the real tasks; only the timeline differs. Each
of the 16 cells shows, for a random stretch of frames, a box, a green light, or nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from closeup.rl.data.needle_draw import Background, Pixels, box_sprite, light_sprite, place
from closeup.rl.data.needle_world import CELL, COLOURS, SIDE, Box

GRID = SIDE // CELL
Span = tuple[int, int, slice, slice, NDArray[np.float32], NDArray[np.float32]]  # frames, place, colour and coverage
NOTHING, LIGHT = 0, len(COLOURS) + 1  # colour labels: 0 nothing, 1..8 the colours in order, 9 the green light


def draw_drill(
    rng: np.random.Generator, frames: int
) -> tuple[Iterator[Pixels], NDArray[np.int16], NDArray[np.int16], NDArray[np.int16]]:
    """A drill video's frames (uint8 112 x 112 x 3), and per frame and cell: colour label, digit (or -1), sprite number.

    Labels are int16 (frames, 16), cells in row order; two frames with equal sprite numbers show the same sprite.
    """
    colours = np.zeros((frames, GRID * GRID), dtype=np.int16)
    digits = np.full((frames, GRID * GRID), -1, dtype=np.int16)
    sprites = np.zeros((frames, GRID * GRID), dtype=np.int16)
    spans: list[Span] = []
    names = list(COLOURS)
    for cell in range(GRID * GRID):
        frame = 0
        while frame < frames:
            stop = min(frames, frame + int(rng.integers(3, 10)))
            kind = rng.random()
            row, column = divmod(cell, GRID)
            x, y = (int(v) * CELL + CELL // 2 + int(rng.integers(-3, 4)) for v in (column, row))
            if kind < 0.55:
                colour, digit = int(rng.integers(len(names))), int(rng.integers(10))
                sprite = box_sprite(Box(names[colour], digit, 0, 1, 0, 0, x, y), rng)
                colours[frame:stop, cell], digits[frame:stop, cell] = colour + 1, digit
            elif kind < 0.62:
                sprite = light_sprite(rng)
                colours[frame:stop, cell] = LIGHT
            if kind < 0.62:
                sprites[frame:stop, cell] = len(spans) + 1
                spans.append((frame, stop, *place(sprite, x, y)))
            frame = stop
    return _render(Background(rng), spans, frames), colours, digits, sprites


def draw_skim(rng: np.random.Generator, frames: int) -> tuple[Iterator[Pixels], NDArray[np.int16]]:
    """A video in which one thing at a time comes and goes quickly: its frames, and a colour label per frame (int16).

    Seen at 28 x 28, its many onsets teach the pairs in which only one of two frames shows something, and its
    background, a new one per video, teaches what is nothing.
    """
    labels = np.zeros(frames, dtype=np.int16)
    spans, frame, names = [], 0, list(COLOURS)
    while frame < frames:
        stop, kind = min(frames, frame + int(rng.integers(1, 8))), rng.random()
        x, y = (int(v) for v in rng.integers(11, SIDE - 11, size=2))
        if kind < 0.35:
            label = int(rng.integers(len(names)))
            sprite = box_sprite(Box(names[label], int(rng.integers(10)), 0, 1, 0, 0, x, y), rng)
            labels[frame:stop] = label + 1
            spans.append((frame, stop, *place(sprite, x, y)))
        elif kind < 0.6:
            stop = min(stop, frame + int(rng.integers(1, 4)))
            labels[frame:stop] = LIGHT
            spans.append((frame, stop, *place(light_sprite(rng), x, y)))
        frame = stop
    return _render(Background(rng), spans, frames), labels


def _render(background: Background, spans: list[Span], frames: int) -> Iterator[Pixels]:
    for number in range(frames):
        frame = background.frame(number)
        for start, stop, rows, columns, colour, alpha in spans:
            if start <= number < stop:
                patch = frame[rows, columns].astype(np.float32)
                frame[rows, columns] = (patch + alpha * (colour - patch) + 0.5).astype(np.uint8)
        yield frame
