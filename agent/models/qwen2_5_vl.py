"""Qwen2.5-VL (`Qwen2_5_VLForConditionalGeneration`): ChatML, 2x2-merged patches, three-axis positions.

How a clip is written depends on `timestamps`:
- "text": each pair of frames is a vision block of its own after the time of its first frame, as in
  `12s<|vision_start|><|video_pad|>…<|vision_end|>`, one grid row (1, h, w) each;
- "position": the stock form, one block per clip with grid (t, h, w); time is in the temporal axis of the positions.

Departure from transformers 5.19 to 5.23: the text after a video starts one after its largest position on *any* axis
(the original rule, also vLLM's), see `mrope.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from closeup.agent.models.adapter import Grid, Media
from closeup.agent.models.mrope import mrope_positions
from closeup.agent.models.patches import grid_of
from closeup.agent.models.qwen_vision import QwenVisionAdapter

__all__ = ["Qwen25VLAdapter", "time_label"]


class Qwen25VLAdapter(QwenVisionAdapter):
    """A Qwen2.5-VL checkpoint; see `Adapter`."""

    family: ClassVar[str] = "qwen2_5_vl"
    native: ClassVar[str] = "position"
    accepted: ClassVar[tuple[str, ...]] = ("position", "text")

    @classmethod
    def model_class(cls) -> Any:
        from transformers import Qwen2_5_VLForConditionalGeneration

        return Qwen2_5_VLForConditionalGeneration

    def grids(self, frames: int, size: tuple[int, int]) -> tuple[Grid, ...]:
        t, h, w = grid_of(frames, size, patch=self.geometry.patch, temporal=self.geometry.temporal)
        return ((1, h, w),) * t if self.timestamps == "text" else ((t, h, w),)

    def label(self, item: Media, row: int) -> str:
        return time_label(item.record.times[row * self.geometry.temporal]) if self.timestamps == "text" else ""

    def positions(self, ids: Sequence[int], media: Sequence[Media], *, start: int = 0) -> NDArray[np.int64]:
        grids = [grid for item in media for grid in item.grids]
        spacing = [item.seconds_per_grid for item in media for _ in item.grids]
        return start + mrope_positions(
            ids,
            grids,
            pad_id_video=self.pad_ids[0],
            pad_id_image=self.pad_ids[1],
            merge=self.geometry.merge,
            tokens_per_second=float(self.model.config.vision_config.tokens_per_second),
            seconds_per_grid=spacing,
        )

    def tower(self, pixels: torch.Tensor, grid: torch.Tensor) -> Sequence[torch.Tensor]:
        found: Sequence[torch.Tensor] = self.model.model.get_video_features(pixels, grid).pooler_output
        return found


def time_label(seconds: float) -> str:
    """A time as it is written before a pair of frames: at most one decimal, as in "12s" or "12.5s"."""
    return f"{seconds:.1f}".removesuffix(".0") + "s"
