"""What every decoder behind `Video` offers. A decoder returns FFmpeg's frame, or refuses the file by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from closeup.tools.video.facts import Probe
from closeup.tools.video.index import StreamIndex


@dataclass(frozen=True)
class Order:
    """Frames wanted: ascending ticks inside the stream, (height, width) in pixels, "exact" or "keyframe".

    `size` None asks for the decoder's own picture, turned for display but not resized.
    """

    ticks: Sequence[int]
    size: tuple[int, int] | None
    mode: str


@dataclass(frozen=True, eq=False)
class Shot:
    """The frame for `tick`: its PTS in ticks and its pixels (uint8, H x W x 3, RGB, as displayed)."""

    tick: int
    pts: int
    pixels: NDArray[np.uint8]


class Backend(Protocol):
    """A decoder. `name` is what users choose; `version` tells apart releases that may make different pixels."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def resizer(self) -> str:
        """What resizes when the order names a size."""

    def check(self, probe: Probe) -> None:
        """Raise `UnsupportedByBackend` when this decoder is known to return wrong frames for the file."""

    def shots(self, probe: Probe, index: StreamIndex, order: Order, threads: int) -> Iterator[Shot]:
        """Yield one shot for each tick of the order, in order; record what is learnt in `index`."""
