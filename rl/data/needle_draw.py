"""Pixels of a generated scene: dull moving backgrounds, boxes with digits, a green light.

Design note. Backgrounds move and differ in kind (gradient, scrolling noise, stripes, drifting waves, two layers),
always desaturated, so that colour is the boxes' alone. Ink, plate, digit style, size and shade of a box are random, so
that a box's mean brightness says nothing about its digit. The video is drawn at 112 x 112; a digit is 9 to 11 pixels
tall: readable there, gone at 28 x 28.

Invariant: frames are a pure function of (scene, seed of the generator); frame n is shown from n / FPS seconds on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from closeup.rl.data.needle_glyphs import STYLES, digit_mask
from closeup.rl.data.needle_world import COLOURS, FPS, GREEN, SIDE, Box, Scene

Pixels = NDArray[np.uint8]
Sprite = tuple[NDArray[np.float32], NDArray[np.float32]]  # colour (h, w, 3) 0..255 and coverage (h, w, 1) 0..1
_WORLD = 3 * SIDE  # side of the scrolling texture


def draw_frames(scene: Scene, rng: np.random.Generator) -> Iterator[Pixels]:
    """Every frame of the video, uint8 (112, 112, 3) RGB, `scene.seconds * FPS` of them."""
    background = Background(rng)
    spans = [(box.start, box.end, *place(box_sprite(box, rng), box.x, box.y)) for box in scene.boxes]
    for window in scene.flashes:
        sprite = place(light_sprite(rng), window.x, window.y)
        spans += [(start, end, *sprite) for start, end in window.lit()]
    for number in range(scene.seconds * FPS):
        frame = background.frame(number)
        for start, end, rows, columns, colour, alpha in spans:
            if start - 1e-6 <= number / FPS < end - 1e-6:
                patch = frame[rows, columns].astype(np.float32)
                frame[rows, columns] = (patch + alpha * (colour - patch) + 0.5).astype(np.uint8)
        yield frame


def box_sprite(box: Box, rng: np.random.Generator) -> Sprite:
    """A box in its colour with its digit, in a random hand: shade, size, corners, plate, ink."""
    base = np.array(COLOURS[box.colour], dtype=np.float32)
    fill = np.clip(base * rng.uniform(0.9, 1.06) + rng.uniform(-7, 7, size=3), 0, 255)
    height, width = (int(v) for v in rng.integers(25, 30, size=2))
    colour = np.broadcast_to(fill, (height, width, 3)).astype(np.float32).copy()
    glyph = digit_mask(
        box.digit,
        STYLES[rng.integers(len(STYLES))],
        int(rng.integers(9, 12)),
        int(rng.integers(11, 17)),
        int(rng.integers(-3, 4)),
        int(rng.integers(-3, 4)),
    )
    top, left = (height - glyph.shape[0]) // 2, (width - glyph.shape[1]) // 2
    area = colour[top : top + glyph.shape[0], left : left + glyph.shape[1]]
    backing = fill
    if rng.random() < 0.35:  # a plate behind the digit
        backing = np.full(3, rng.choice([rng.uniform(5, 50), rng.uniform(205, 250)]), dtype=np.float32)
        area[:] = backing
    luma = float(backing @ np.array([0.299, 0.587, 0.114]))
    dark, light = rng.uniform(0, 45), rng.uniform(215, 255)
    if luma - dark < 75:
        ink = light
    elif light - luma < 75:
        ink = dark
    else:
        ink = dark if rng.random() < 0.5 else light
    area += glyph[..., None] * (np.float32(ink) - area)
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, width - 1, height - 1), radius=int(rng.integers(0, 7)), fill=255)
    coverage: NDArray[np.float32] = (np.asarray(mask, dtype=np.float32) / np.float32(255))[..., None]
    return colour, coverage


def light_sprite(rng: np.random.Generator) -> Sprite:
    """The green light: a disc of 9 to 12 pixels radius."""
    radius = int(rng.integers(9, 13))
    colour = np.clip(np.array(GREEN, dtype=np.float32) + rng.uniform(-12, 12, size=3), 0, 255)
    grid = np.arange(-radius, radius + 1, dtype=np.float32)
    distance = np.hypot(grid[:, None], grid[None, :])
    alpha = np.clip(radius - distance + 0.5, 0, 1).astype(np.float32)[..., None]
    return np.broadcast_to(colour, (*alpha.shape[:2], 3)).astype(np.float32), alpha


def place(sprite: Sprite, x: int, y: int) -> tuple[slice, slice, NDArray[np.float32], NDArray[np.float32]]:
    """The sprite centred on (`x`, `y`) and cut at the frame's border: row and column slices, colour, coverage."""
    colour, alpha = sprite
    top, left = y - alpha.shape[0] // 2, x - alpha.shape[1] // 2
    rows = slice(max(0, top), min(SIDE, top + alpha.shape[0]))
    columns = slice(max(0, left), min(SIDE, left + alpha.shape[1]))
    inner = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
    return rows, columns, colour[inner], alpha[inner]


class Background:
    """A dull moving background; `frame(n)` is a fresh writable (112, 112, 3) uint8 array."""

    STYLES = ("gradient", "noise", "stripes", "waves", "layers")

    def __init__(self, rng: np.random.Generator) -> None:
        style = str(rng.choice(self.STYLES))
        first = {"layers": "noise"}.get(style, style)
        self._layers = [(_texture(rng, first), rng.uniform(-0.9, 0.9, size=2), rng.uniform(0, SIDE, size=2))]
        if style == "layers":
            self._layers.append((_texture(rng, "waves"), rng.uniform(-1.2, 1.2, size=2), rng.uniform(0, SIDE, size=2)))
        self._movers = [_Mover(rng) for _ in range(int(rng.integers(0, 5)) if style != "gradient" else 4)]

    def frame(self, number: int) -> Pixels:
        """The background at frame `number`."""
        views = []
        for texture, velocity, offset in self._layers:
            y, x = (_bounce(o + v * number, _WORLD - SIDE) for o, v in zip(offset, velocity, strict=True))
            views.append(texture[y : y + SIDE, x : x + SIDE])
        total = np.sum(views, axis=0, dtype=np.uint16)
        frame: Pixels = np.asarray(total // len(views), dtype=np.uint8)
        for mover in self._movers:
            mover.draw(frame, number)
        return frame


class _Mover:
    """A dull rectangle or disc that drifts and bounces."""

    def __init__(self, rng: np.random.Generator) -> None:
        size = int(rng.integers(8, 34))
        shape = Image.new("L", (size, size))
        draw = ImageDraw.Draw(shape)
        if rng.random() < 0.5:
            draw.ellipse((0, 0, size - 1, size - 1), fill=255)
        else:
            draw.rectangle((0, int(rng.integers(0, size // 2)), size - 1, size - 1), fill=255)
        self._alpha = ((np.asarray(shape, dtype=np.float32) / 255) * rng.uniform(0.5, 0.9))[..., None]
        self._colour = _dull(rng)
        self._start, self._velocity = rng.uniform(0, SIDE, size=2), rng.uniform(-2.5, 2.5, size=2)

    def draw(self, frame: Pixels, number: int) -> None:
        y, x = (
            _bounce(o + v * number, SIDE - self._alpha.shape[0])
            for o, v in zip(self._start, self._velocity, strict=True)
        )
        patch = frame[y : y + self._alpha.shape[0], x : x + self._alpha.shape[1]]
        patch[:] = (patch + self._alpha * (self._colour - patch)).astype(np.uint8)


def _bounce(position: float, limit: int) -> int:
    inside = math.fmod(abs(position), 2 * limit)
    return int(inside if inside <= limit else 2 * limit - inside)


def _dull(rng: np.random.Generator) -> NDArray[np.float32]:
    grey = rng.uniform(40, 190)
    return np.clip(grey + rng.uniform(-18, 18, size=3), 0, 255).astype(np.float32)


def _texture(rng: np.random.Generator, style: str) -> Pixels:
    a, b = _dull(rng), _dull(rng)
    yy, xx = np.mgrid[0:_WORLD, 0:_WORLD].astype(np.float32)
    if style == "gradient":
        angle = rng.uniform(0, 2 * math.pi)
        ramp = (math.cos(angle) * xx + math.sin(angle) * yy) / _WORLD
        level = (ramp - ramp.min()) / (ramp.max() - ramp.min())
    elif style == "noise":
        cells = int(rng.integers(16, 60))
        small = Image.fromarray(rng.integers(0, 256, size=(cells, cells), dtype=np.uint8))
        level = np.asarray(small.resize((_WORLD, _WORLD), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    elif style == "stripes":
        angle, period = rng.uniform(0, math.pi), rng.uniform(10, 40)
        phase = (math.cos(angle) * xx + math.sin(angle) * yy) / period
        level = (np.floor(phase) % 2) if rng.random() < 0.5 else 0.5 + 0.5 * np.sin(phase * 2 * math.pi)
    else:
        level = np.zeros_like(xx)
        for _ in range(3):
            fx, fy = rng.uniform(-0.12, 0.12, size=2)
            level += np.sin(fx * xx + fy * yy + rng.uniform(0, 6.3)) / 6
        level += 0.5
    texture: Pixels = np.clip(a + level[..., None] * (b - a), 0, 255).astype(np.uint8)
    return texture
