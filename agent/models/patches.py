"""Frames to patches for Qwen2-VL-style vision towers, in numpy: no torchvision, no copy of a processor.

Equal to the stock video processor after its resize (rescale, normalise, patchify) to 1e-6. Every pixel is one of 256
values, so rescaling and normalising is a table of 256 x 3 numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pixel_table(mean: Sequence[float], std: Sequence[float], rescale: float = 1 / 255) -> NDArray[np.float32]:
    """Normalised values of the 256 levels of each channel: float32 (3, 256), `(level * rescale - mean) / std`."""
    levels = np.arange(256, dtype=np.float64) * rescale
    table = (levels[None, :] - np.asarray(mean, np.float64)[:, None]) / np.asarray(std, np.float64)[:, None]
    return table.astype(np.float32)


def grid_of(frames: int, size: tuple[int, int], *, patch: int, temporal: int) -> tuple[int, int, int]:
    """`(t, h, w)` in patches of `frames` frames of `size` = (height, width) pixels; a last odd frame is repeated."""
    return -(-frames // temporal), size[0] // patch, size[1] // patch


def patchify(
    frames: NDArray[np.uint8], table: NDArray[np.float32], *, patch: int, merge: int, temporal: int
) -> NDArray[np.float32]:
    """Patches of a clip in the tower's order: float32 (t * h * w, 3 * temporal * patch * patch).

    Args:
        frames: uint8, T x H x W x 3; H and W are multiples of `patch * merge`. A last odd frame is repeated.
        table: from `pixel_table`.

    Raises:
        ValueError: a side that is not a multiple of `patch * merge`.
    """
    count, height, width, _ = frames.shape
    if height % (patch * merge) or width % (patch * merge):
        raise ValueError(f"frames are {height}x{width} pixels; both sides must be multiples of {patch * merge}")
    if missing := -count % temporal:
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    t, h, w = grid_of(count, (height, width), patch=patch, temporal=temporal)
    cut = frames.reshape(t, temporal, h // merge, merge, patch, w // merge, merge, patch, 3)
    cut = cut.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)  # t, h/m, w/m, m, m, channel, temporal, patch row, patch column
    out = np.empty(cut.shape, dtype=np.float32)
    for channel in range(3):
        out[:, :, :, :, :, channel] = table[channel][cut[:, :, :, :, :, channel]]
    return out.reshape(t * h * w, 3 * temporal * patch * patch)
