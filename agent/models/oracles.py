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


def llava_onevision(
    adapter: Any,
    ids: torch.Tensor,
    media: Sequence[Any],
    frames: Sequence[Any],
    positions: torch.Tensor,
    *,
    whole: bool = True,
) -> torch.Tensor:
    """The stock forward takes videos of one length alone; for others, or when not `whole`, its halves are joined."""
    model = adapter.model
    pixels = [torch.from_numpy(adapter.pixel_values(clip)).to(model.dtype) for clip in frames]
    if adapter.timestamps == "text":  # every frame is a video
        pixels = [frame for clip in pixels for frame in clip.unsqueeze(1)]
    if whole and len({len(video) for video in pixels}) == 1:
        given = {"input_ids": ids[None], "pixel_values_videos": torch.stack(pixels)}
    else:
        embeds = model.get_input_embeddings()(ids[None])
        rows = torch.cat([_with_newline(adapter, video) for video in pixels])
        _, where = model.model.get_placeholder_mask(ids[None], inputs_embeds=embeds, video_features=rows)
        given = {"inputs_embeds": embeds.masked_scatter(where, rows.to(embeds))}
    logits: torch.Tensor = model(**given, position_ids=positions, use_cache=False).logits[0]
    return logits


def _with_newline(adapter: Any, video: torch.Tensor) -> torch.Tensor:
    """Rows of one video as the stock forward puts them in; up to transformers 5.16 the newline is added there."""
    rows: torch.Tensor = adapter.model.model.get_video_features(video[None]).pooler_output.flatten(0, -2)
    per_frame = adapter.geometry.tile_tokens - (adapter.timestamps == "text")
    if len(rows) == len(video) * per_frame:
        rows = torch.cat([rows, adapter.model.model.image_newline[None].to(rows)])
    return rows


def qwen3_vl(
    adapter: Any, ids: torch.Tensor, media: Sequence[Any], frames: Sequence[Any], positions: torch.Tensor
) -> torch.Tensor:
    """The grids are those the stock processor gives: one (t, h, w) per clip, however many blocks it is written in."""
    videos = {}
    if frames:
        grids = [(len(item.grids), *item.grids[0][1:]) for item in media]
        pixels = torch.from_numpy(np.concatenate([adapter.pixel_values(clip) for clip in frames]))
        videos = {"pixel_values_videos": pixels.to(adapter.model.dtype), "video_grid_thw": torch.tensor(grids)}
    logits: torch.Tensor = adapter.model(
        input_ids=ids[None], position_ids=positions[:, None], use_cache=False, **videos
    ).logits[0]
    return logits


def internvl(
    adapter: Any, ids: torch.Tensor, media: Sequence[Any], frames: Sequence[Any], positions: torch.Tensor
) -> torch.Tensor:
    tiles = [torch.from_numpy(adapter.pixel_values(clip)).to(adapter.model.dtype) for clip in frames]
    logits: torch.Tensor = adapter.model(
        input_ids=ids[None],
        pixel_values=torch.cat(tiles) if tiles else None,
        position_ids=positions,
        use_cache=False,
    ).logits[0]
    return logits


ORACLES: dict[str, Callable[..., torch.Tensor]] = {
    "internvl": internvl,
    "llava_onevision": llava_onevision,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl,
}
FORMS = [
    ("qwen2_5_vl", "text"),
    ("qwen2_5_vl", "position"),
    ("internvl", "native"),
    ("llava_onevision", "native"),
    ("llava_onevision", "text"),
    ("qwen3_vl", "native"),
    ("qwen3_vl", "text"),
]
