"""Three-axis rotary positions of Qwen2-VL and Qwen2.5-VL prompts, by the original rule, without torch.

Design note. Stock libraries disagree on where the text after a video starts, so this project computes positions once,
here, and passes them everywhere (rollout, training, evaluation). The rule: a text token advances all three axes
(temporal, height, width) by one. A vision block that begins at position p gives its token at (frame, row, column)

    t = p + floor(frame * seconds_per_grid * tokens_per_second),   h = p + row,   w = p + column

and the next text token starts one after the largest position used so far on any axis.

Invariants
1. Pure: token ids and grids in, positions out; no model, no tensor library.
2. Every pad token belongs to exactly one grid row; a grid row without pads, or pads without a grid row, is an error.
3. Prefix-stable: the positions of a prefix that ends on a block boundary do not change when more is appended.

Source: Qwen2-VL (arXiv 2409.12191, section 2.1) and Qwen2.5-VL (arXiv 2502.13923, section 2.1.2: absolute time).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def mrope_positions(
    token_ids: Sequence[int] | NDArray[np.integer],
    grids: Sequence[Sequence[int]],
    *,
    pad_id_video: int,
    pad_id_image: int,
    merge: int = 2,
    tokens_per_second: float = 2,
    seconds_per_grid: float | Sequence[float] = 1.0,
) -> NDArray[np.int64]:
    """Positions (3, N) int64 of N token ids: rows are temporal, height, width.

    Args:
        token_ids: N ids; the pads of one vision block are consecutive and equal.
        grids: one (t, h, w) per vision block in order of appearance, in patches (before merging), images and videos
            alike.
        pad_id_video, pad_id_image: ids of `<|video_pad|>` and `<|image_pad|>`.
        merge: patches merged per side into one token.
        tokens_per_second: temporal positions per second of video (the vision config's value).
        seconds_per_grid: seconds between two temporal rows of a video block; one number, or one per block. An image
            has one temporal row, so the value does not matter there.

    Raises:
        ValueError: pads and grids do not match in number, or a grid is not a multiple of `merge`.
    """
    ids = np.asarray(token_ids, dtype=np.int64).reshape(-1)
    per_block = (
        [float(seconds_per_grid)] * len(grids)
        if isinstance(seconds_per_grid, int | float)
        else [float(value) for value in seconds_per_grid]
    )
    if len(per_block) != len(grids):
        raise ValueError(f"got {len(per_block)} seconds_per_grid for {len(grids)} grids; give one number or one each")
    out = np.empty((3, ids.size), dtype=np.int64)
    is_pad = (ids == pad_id_video) | (ids == pad_id_image)
    cursor = position = block = 0
    while cursor < ids.size:
        if not is_pad[cursor]:
            ahead = np.flatnonzero(is_pad[cursor:])
            length = int(ahead[0]) if ahead.size else ids.size - cursor
            out[:, cursor : cursor + length] = position + np.arange(length)
            cursor, position = cursor + length, position + length
            continue
        if block == len(grids):
            raise ValueError(f"token {cursor} is a vision pad, but all {len(grids)} grids are used up")
        frames, rows, columns = (int(value) for value in grids[block])
        if frames < 1 or rows < merge or columns < merge or rows % merge or columns % merge:
            raise ValueError(f"grid {block} is {(frames, rows, columns)}; sides must be positive multiples of {merge}")
        rows, columns = rows // merge, columns // merge
        length = frames * rows * columns
        if not (ids[cursor : cursor + length] == ids[cursor]).all() or cursor + length > ids.size:
            raise ValueError(
                f"grid {block} needs {length} consecutive pad tokens from token {cursor} on; fewer are there"
            )
        step = per_block[block] * tokens_per_second if ids[cursor] == pad_id_video else 0.0
        out[:, cursor : cursor + length] = position + _block(frames, rows, columns, step)
        position = int(out[:, cursor : cursor + length].max()) + 1
        cursor, block = cursor + length, block + 1
    if block != len(grids):
        raise ValueError(f"{len(grids)} grids were given, but the tokens hold only {block} vision blocks")
    return out


@lru_cache(maxsize=256)
def _block(frames: int, rows: int, columns: int, step: float) -> NDArray[np.int64]:
    """Offsets (3, frames * rows * columns) within one vision block."""
    times = np.floor(np.arange(frames) * step + 1e-9).astype(np.int64)
    t, h, w = np.meshgrid(times, np.arange(rows), np.arange(columns), indexing="ij")
    offsets = np.stack([t.ravel(), h.ravel(), w.ravel()])
    offsets.flags.writeable = False
    return offsets
