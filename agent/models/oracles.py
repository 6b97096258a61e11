"""The stock model of each family as an oracle: logits of a whole conversation from its pixels, with our positions.

A family adds its function to `ORACLES` and its forms (family, how it tells times) to `FORMS`; every invariant of trees
and of generation then holds it to its own stock forward (`tests/invariants`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch


def stock_logits(adapter: Any, ids: Any, media: Sequence[Any], frames: Sequence[Any], positions: Any) -> torch.Tensor:
    """Logits (N, vocabulary) of the stock model.

    Args:
        ids: N token ids. media, frames: the clips in order, and the pixels of each (uint8, T x H x W x 3).
        positions: (axes, N), from the adapter.
    """
    tokens, where = torch.as_tensor(np.asarray(ids)), torch.as_tensor(np.asarray(positions))
    return ORACLES[adapter.family](adapter, tokens, media, frames, where)


def qwen2_5_vl(
    adapter: Any, ids: torch.Tensor, media: Sequence[Any], frames: Sequence[Any], positions: torch.Tensor
) -> torch.Tensor:
    pixels = np.concatenate([adapter.pixel_values(clip) for clip in frames])
    logits: torch.Tensor = adapter.model(
        input_ids=ids[None],
        pixel_values_videos=torch.from_numpy(pixels).to(adapter.model.dtype),
        video_grid_thw=torch.tensor([grid for item in media for grid in item.grids]),
        position_ids=positions[:, None],
        use_cache=False,
    ).logits[0]
    return logits


ORACLES: dict[str, Callable[..., torch.Tensor]] = {
    "qwen2_5_vl": qwen2_5_vl,
}
FORMS = [
    ("qwen2_5_vl", "text"),
    ("qwen2_5_vl", "position"),
]
