"""Features of what happens in the pool's videos, computed once by the frozen tower, to be recombined without end.

A visual token's feature depends on its own pair of frames alone, so a timeline can be put together from pieces of
different videos: the pair that shows a box, the zoom into it, its onset sampled densely. The language model then never
sees the same episode twice, while every pixel behind it came through the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from closeup.rl.data.needle_world import FPS
from closeup.rl.tiny.forward import Shape, Weights, as_pairs, encode_pairs
from closeup.rl.tiny.pool import SceneItem, first_pair, zoom_times
from closeup.rl.tiny.vision import shown_at

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Zoom:
    """A zoom clip: features (32, D) of two pairs of 16 tokens, and the tokens that hold the box."""

    features: Features
    box: tuple[int, ...]


@dataclass(frozen=True)
class BoxUnit:
    """One box: two overview tokens (2, D), the zooms into both pairs, and its onset at four options (4, D).

    `late`: the box appears in the second half of the pair before... its last dark overview frame is the pair's first.
    """

    colour: str
    digit: int
    step: int
    late: bool
    skim: Features
    zooms: tuple[Zoom, Zoom]
    onset: Features


@dataclass(frozen=True)
class FlashUnit:
    """One flash window: eleven tokens (11, D) of the dense look, and the number of flashes."""

    count: int
    dense: Features


@dataclass(frozen=True)
class SceneUnits:
    """Everything of one video: boxes, flash windows, empty overview tokens (n, D) and empty zooms."""

    boxes: tuple[BoxUnit, ...]
    flashes: tuple[FlashUnit, ...]
    empty: Features
    empty_zooms: tuple[Zoom, ...]


def dense_times(start: float, end: float, count: int) -> list[float]:
    """`count` instants over `[start, end]`, both ends included."""
    return [start + (end - start) * i / (count - 1) for i in range(count)]


def extract(item: SceneItem, weights: Weights, shape: Shape) -> SceneUnits:
    """Features of one pool scene."""
    scene, spacing = item.scene, item.scene.spacing

    def tokens(times: list[float]) -> NDArray[np.uint8]:
        frames = [min(int(np.floor(t * FPS + 1e-6)), len(item.skim) - 1) for t in times]
        return as_pairs(item.skim[frames])

    pairs = len(item.skim) // (spacing * FPS)
    looks = [tokens([(k * spacing) + h * spacing / 2 for k in range(pairs) for h in (0, 1)])]
    looks += [tokens(dense_times(box.before + spacing / 10, box.before + 4 * spacing / 10, 7)) for box in scene.boxes]
    looks += [tokens(dense_times(window.start, window.end, 21)) for window in scene.flashes]
    skim = encode_pairs(weights, shape, np.concatenate(looks)).numpy()[:, 0]
    overview, rest = skim[:pairs], skim[pairs:]
    zoomed = encode_pairs(weights, shape, np.concatenate([as_pairs(z) for z in item.zooms.values()])).numpy()
    zooms = {}
    for n, start in enumerate(item.zooms):
        seen = [shown_at(scene, t) for t in zoom_times(start * spacing, spacing)]
        lit = {16 * (i // 2) + cell for i, (_, digit, cell) in enumerate(seen) if digit >= 0}
        features = zoomed[2 * n : 2 * n + 2].reshape(32, -1)
        zooms[start] = Zoom(features.astype(np.float32), tuple(sorted(lit)))
    boxes: list[BoxUnit] = []
    busy: set[int] = set()
    for n, box in enumerate(scene.boxes):
        k = first_pair(box, spacing)
        busy |= {k, k + 1}
        boxes.append(
            BoxUnit(
                colour=box.colour,
                digit=box.digit,
                step=box.step,
                late=abs(box.before - k * spacing) < 1e-6,
                skim=overview[k : k + 2].copy(),
                zooms=(zooms[k], zooms[k + 1]),
                onset=rest[4 * n : 4 * n + 4].copy(),
            )
        )
    dense = rest[4 * len(scene.boxes) :].reshape(len(scene.flashes), 11, -1)
    return SceneUnits(
        boxes=tuple(boxes),
        flashes=tuple(FlashUnit(len(w.slots), dense[n].copy()) for n, w in enumerate(scene.flashes)),
        empty=overview[[k for k in range(pairs) if k not in busy]],
        empty_zooms=tuple(zoom for start, zoom in zooms.items() if start not in busy),
    )
