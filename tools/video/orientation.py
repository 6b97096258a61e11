"""How a stored picture is turned and mirrored for display: a container's display matrix, as quarter turns and flips.

The matrix is nine 32-bit integers; its upper left 2 x 2 part (a b / c d) sends a source column p and row q to the
displayed column x = a p + c q and row y = b p + d q (ISO/IEC 14496-12, track header box). Only right angles and mirrors
are accepted: any other turn leaves corners without a picture.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from closeup.tools.video.errors import NotAVideo


@dataclass(frozen=True)
class Orientation:
    """Transpose first, then reverse rows and columns; the default leaves pictures as they are."""

    transpose: bool = False
    reverse_rows: bool = False
    reverse_columns: bool = False

    @property
    def degrees(self) -> int:
        """Counter-clockwise turn of the stored picture in degrees (0, 90, 180, 270), before a mirror if any."""
        if self.transpose:
            return 90 if self.reverse_rows else 270
        return 180 if self.reverse_rows else 0

    @property
    def mirrored(self) -> bool:
        """Whether the displayed picture is a mirror image of the stored one."""
        return self.transpose ^ self.reverse_rows ^ self.reverse_columns

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The H x W x 3 picture as displayed; a view, not a copy."""
        turned = picture.swapaxes(0, 1) if self.transpose else picture
        return turned[:: -1 if self.reverse_rows else 1, :: -1 if self.reverse_columns else 1]

    def stored(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) before turning for a displayed (height, width), and the other way round."""
        return (size[1], size[0]) if self.transpose else size


UPRIGHT = Orientation()


def from_matrix(matrix: bytes) -> Orientation:
    """Read a display matrix (36 bytes, native byte order, as FFmpeg's side data holds it).

    Raises:
        NotAVideo: the turn is not a multiple of 90 degrees.
    """
    a, b, _, c, d, _, _, _, _ = struct.unpack("=9i", matrix[:36])
    small = max(abs(a), abs(b), abs(c), abs(d)) // 64  # a turn below about one degree is rounding
    if abs(b) <= small and abs(c) <= small and a and d:
        return Orientation(False, d < 0, a < 0)
    if abs(a) <= small and abs(d) <= small and b and c:
        return Orientation(True, b < 0, c < 0)
    raise NotAVideo(
        "the file asks for a turn that is not a multiple of 90 degrees, which is not supported; "
        "turn it for good with `ffmpeg -i in.mp4 out.mp4`"
    )
