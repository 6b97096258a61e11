"""A timeline as the expert plays it: what the overview's tokens hold, and at which pairs of frames something happens.

Times are written as the agent meets them: before a visual token, and inside a call.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np

from closeup.rl.data.needle_world import Scene
from closeup.rl.tiny.pool import first_pair
from closeup.rl.tiny.units import BoxUnit, Features, FlashUnit, Zoom


def label(seconds: float) -> str:
    """A time as it stands before a visual token: at most one decimal."""
    return f"{seconds:.1f}".removesuffix(".0") + "s"


def number(seconds: float) -> str:
    """A time as it stands in a call: JSON, whole numbers without a point."""
    return json.dumps(round(seconds, 1)).removesuffix(".0")


@dataclass(frozen=True)
class Timeline:
    """A virtual video: overview tokens (P, D) labelled `first + k * spacing` seconds, boxes and flashes at pairs."""

    spacing: int
    first: int
    overview: Features
    boxes: tuple[tuple[int, BoxUnit], ...]
    flashes: tuple[tuple[int, FlashUnit], ...]
    empty: tuple[tuple[int, Zoom], ...]

    def time(self, pair: int) -> float:
        """The label of a pair in seconds."""
        return float(self.first + pair * self.spacing)


def timeline_of(scene: Scene) -> Timeline:
    """The timeline of a real scene, with empty features: for writing down what the expert would say about it."""
    spacing = scene.spacing
    blank = np.zeros((32, 1), dtype=np.float32)
    zooms = (Zoom(blank, (0,)), Zoom(blank, (0,)))
    boxes = []
    for box in scene.boxes:
        pair = first_pair(box, spacing)
        late = abs(box.before - pair * spacing) < 1e-6
        boxes.append((pair, BoxUnit(box.colour, box.digit, box.step, late, blank[:2], zooms, blank[:4])))
    flashes = tuple((int(w.start) // spacing, FlashUnit(len(w.slots), blank[:11])) for w in scene.flashes)
    pairs = math.ceil(math.ceil(scene.seconds * 2 / spacing) / 2)
    return Timeline(spacing, 0, blank[:1].repeat(pairs, axis=0), tuple(boxes), flashes, ())
