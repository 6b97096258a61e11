"""`Frames`: decoded pictures with the time at which each is really shown.

Invariants
1. `pixels[i]` is the picture whose presentation time is `times[i]`; it was asked for as `requested[i]`.
2. In exact mode `times[i] <= requested[i]`, unless `requested[i]` lies before the first frame.
3. The arrays belong to the caller: nothing else holds a reference to them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Frames:
    """The answer to `Video.frames`.

    Attributes:
        pixels: uint8, T x H x W x 3, RGB, C-contiguous.
        times: float64 (T,), presentation time of each frame, seconds from the stream's start.
        requested: float64 (T,), the times that were asked for, seconds.
        bad_packets: distinct packets of this file that this process has found undecodable so far.
        backend: name of the decoder that made the pixels.
        mode: "exact" or "keyframe".
    """

    pixels: NDArray[np.uint8]
    times: NDArray[np.float64]
    requested: NDArray[np.float64]
    bad_packets: int
    backend: str
    mode: str

    def __len__(self) -> int:
        return len(self.times)
