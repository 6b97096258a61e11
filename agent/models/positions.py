"""Positions of text models with plain rotary attention: one axis, one position per token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def plain_positions(
    token_ids: Sequence[int] | NDArray[np.integer], blocks: Sequence[int], pads: Sequence[int]
) -> NDArray[np.int64]:
    """Positions (1, N) int64 of N token ids, counted from 0, once their pads have been found to be those of the clips.

    Args:
        blocks: tokens of each vision block, in order; blocks have text or control tokens between them.
        pads: ids that stand for features.

    Raises:
        ValueError: the runs of pads are not the blocks, one by one.
    """
    ids = np.asarray(token_ids, dtype=np.int64).reshape(-1)
    edges = np.diff(np.isin(ids, np.asarray(pads)).astype(np.int8), prepend=0, append=0)
    runs = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    if len(runs) != len(blocks):
        raise ValueError(f"the ids have {len(runs)} runs of vision pads, the clips {len(blocks)} vision blocks")
    for index, (run, block) in enumerate(zip(runs, blocks, strict=True)):
        if run != block:
            raise ValueError(f"vision block {index} has {block} tokens, but {run} pads stand for it")
    return np.arange(ids.size, dtype=np.int64)[None]
