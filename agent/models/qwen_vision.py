"""What the vision side of the Qwen2-VL line shares: temporal pairs of patches, 2x2 merging, vision blocks in ChatML.

A subclass says how a clip is divided into blocks (`grids`), what is written before each (`label`), where the tokens
stand (`positions`) and how patches become features (`tower`).
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from closeup.agent.geometry import VisionGeometry
from closeup.agent.models.adapter import Grid, Media
from closeup.agent.models.chatml_adapter import ChatMLAdapter
from closeup.agent.models.load import ModelError
from closeup.agent.models.patches import grid_of, patchify, pixel_table

PATCHES_PER_FORWARD = 1 << 15  # the towers attend within a frame pair, so cutting between pairs is exact


class QwenVisionAdapter(ChatMLAdapter):
    """A checkpoint with a tower of the Qwen2-VL line; see `ChatMLAdapter`."""

    controls: ClassVar[tuple[str, ...]] = ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|image_pad|>")
    pads: ClassVar[tuple[tuple[str, str], ...]] = (
        ("<|video_pad|>", "video_token_id"),
        ("<|image_pad|>", "image_token_id"),
    )

    @abstractmethod
    def label(self, item: Media, row: int) -> str:
        """What is written before vision block `row` of a clip."""

    @abstractmethod
    def tower(self, pixels: torch.Tensor, grid: torch.Tensor) -> Sequence[torch.Tensor]:
        """Features (tokens, hidden) of each chunk of patches; `grid` (chunks, 3) in patches."""

    def prepare(self, pixel_settings: Mapping[str, Any]) -> None:
        vision = self.model.config.vision_config
        patch, merge, temporal = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        for name, value in (("patch_size", patch), ("merge_size", merge), ("temporal_patch_size", temporal)):
            if (given := pixel_settings.get(name, value)) != value:
                raise ModelError(
                    f"{self.checkpoint.model}: wrong processor: its {name} is {given}, the model's {value}"
                )
        self._table = pixel_table(
            pixel_settings["image_mean"], pixel_settings["image_std"], pixel_settings.get("rescale_factor", 1 / 255)
        )
        how = hashlib.blake2b(f"{self.family} 1:{patch}:{merge}:{temporal}:".encode(), digest_size=8)
        how.update(self._table.tobytes())
        self.processor_digest = how.hexdigest()
        size = pixel_settings.get("size") or {}
        smallest = size.get("shortest_edge") or pixel_settings.get("min_pixels") or (patch * merge) ** 2
        self.geometry = VisionGeometry(
            patch=patch, merge=merge, temporal=temporal, min_pixels=int(smallest), times=self.timestamps
        )

    def blocks(self, item: Media) -> list[str | int]:
        opening, closing, pad = (self._id[c] for c in ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>"))
        pieces: list[str | int] = []
        for row, (t, h, w) in enumerate(item.grids):
            if label := self.label(item, row):
                pieces.append(label)
            pieces += [opening, *[pad] * (t * h * w // self.geometry.merge**2), closing]
        return pieces

    def pixel_values(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Patches of a clip as the stock processor would give them: float32 (t * h * w, 3 * temporal * patch ** 2)."""
        g = self.geometry
        return patchify(frames, self._table, patch=g.patch, merge=g.merge, temporal=g.temporal)

    def encode_clips(self, clips: Sequence[NDArray[np.uint8]]) -> list[torch.Tensor]:
        g = self.geometry
        chunks: list[tuple[int, NDArray[np.float32], Grid]] = []
        for index, frames in enumerate(clips):
            t, h, w = grid_of(len(frames), (frames.shape[1], frames.shape[2]), patch=g.patch, temporal=g.temporal)
            patches = self.pixel_values(frames)
            rows = max(1, PATCHES_PER_FORWARD // (h * w))
            for row in range(0, t, rows):
                count = min(rows, t - row)
                chunks.append((index, patches[row * h * w : (row + count) * h * w], (count, h, w)))
        found: list[list[torch.Tensor]] = [[] for _ in clips]
        while chunks:
            size = taken = 0
            while taken < len(chunks) and (taken == 0 or size + len(chunks[taken][1]) <= PATCHES_PER_FORWARD):
                size, taken = size + len(chunks[taken][1]), taken + 1
            batch, chunks = chunks[:taken], chunks[taken:]
            pixels = torch.from_numpy(np.concatenate([patches for _, patches, _ in batch]))
            grid = torch.tensor([grid for _, _, grid in batch])
            visual = self.model.model.visual
            features = self.tower(pixels.to(device=visual.device, dtype=visual.dtype), grid.to(visual.device))
            for (index, _, _), rows_of_clip in zip(batch, features, strict=True):
                found[index].append(rows_of_clip)
        return [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in found]

    @property
    def vision_modules(self) -> tuple[Any, ...]:
        return (self.model.model.visual,)
