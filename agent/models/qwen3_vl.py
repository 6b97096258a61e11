"""Qwen3-VL (`Qwen3VLForConditionalGeneration`): times in text, a vision block per pair of frames, deepstack features.

A clip is written pair by pair, each a vision block of its own with grid row (1, h, w) after its time:
- "seconds" (native): `<0.5 seconds><|vision_start|><|video_pad|>…<|vision_end|>`, the mean of the pair's two times;
- "text": `0s<|vision_start|>…`, the time of its first frame, as closeup writes it for every family that can.

The tower gives, besides each visual token's embedding, one more feature per *deepstack level*, which the text model
adds to the hidden states after its first layers. Here all levels lie side by side: `encode_clips` gives (tokens,
hidden * (1 + levels)), `embed` (N, hidden * (1 + levels)) with zeros behind the embeddings of text, and `hidden` takes
them apart again. What stands between (trees, batches, caches, two-phase training) sees features that are merely wide.

Invariants
1. The levels of a text token are zeros, and adding zero is exact: which tokens are visual need not be told.
2. Positions are three rows. (Four would name a row of text positions, which transformers searches for packed rows.)

Departure from transformers 5.10 to 5.23 (and vLLM with them): their processor replaces the chat template's
`<|video_pad|>` alone and so leaves a second `<|vision_start|>` before a clip's first time and a second `<|vision_end|>`
behind its last block. The processor the models were published with (4.57) replaced the template's whole block, and so
do we.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from closeup.agent.models.adapter import Grid, Media
from closeup.agent.models.chatml_adapter import ChatMLAdapter
from closeup.agent.models.load import Checkpoint, ModelError, Timestamps, read_pixel_settings, read_video_settings
from closeup.agent.models.mrope import mrope_positions
from closeup.agent.models.patches import grid_of
from closeup.agent.models.qwen2_5_vl import time_label
from closeup.agent.models.qwen_vision import QwenVisionAdapter

__all__ = ["Qwen3VLAdapter", "Qwen3VLMoeAdapter", "seconds_label"]


class Qwen3VLAdapter(QwenVisionAdapter):
    """A Qwen3-VL checkpoint; see `Adapter`."""

    family: ClassVar[str] = "qwen3_vl"
    native: ClassVar[str] = "seconds"
    accepted: ClassVar[tuple[str, ...]] = ("seconds", "text")

    @classmethod
    def model_class(cls) -> Any:
        from transformers import Qwen3VLForConditionalGeneration

        return Qwen3VLForConditionalGeneration

    @classmethod
    def load(cls, checkpoint: Checkpoint, *, dtype: str, device: str, timestamps: Timestamps) -> ChatMLAdapter:
        """As `ChatMLAdapter.load`; processors that disagree are refused before weights are read."""
        _one_kind_of_pixels(checkpoint)
        return super().load(checkpoint, dtype=dtype, device=device, timestamps=timestamps)

    @property
    def levels(self) -> int:
        """Deepstack features per visual token."""
        return len(self.model.config.vision_config.deepstack_visual_indexes)

    def prepare(self, pixel_settings: Mapping[str, Any]) -> None:
        _one_kind_of_pixels(self.checkpoint)
        super().prepare(pixel_settings)
        # The stock video processor bounds the pixels of a whole video from below; a frame may be a single token.
        self.geometry = self.geometry.model_copy(update={"min_pixels": self.geometry.factor**2})

    def grids(self, frames: int, size: tuple[int, int]) -> tuple[Grid, ...]:
        t, h, w = grid_of(frames, size, patch=self.geometry.patch, temporal=self.geometry.temporal)
        return ((1, h, w),) * t

    def label(self, item: Media, row: int) -> str:
        begin = row * self.geometry.temporal
        times = item.record.times[begin : begin + self.geometry.temporal]
        return time_label(times[0]) if self.timestamps == "text" else seconds_label(times[0], times[-1])

    def positions(self, ids: Sequence[int], media: Sequence[Media], *, start: int = 0) -> NDArray[np.int64]:
        grids = [grid for item in media for grid in item.grids]
        return start + mrope_positions(
            ids, grids, pad_id_video=self.pad_ids[0], pad_id_image=self.pad_ids[1], merge=self.geometry.merge
        )

    def tower(self, pixels: torch.Tensor, grid: torch.Tensor) -> Sequence[torch.Tensor]:
        found = self.model.model.get_video_features(pixels, grid)
        counts = [len(rows) for rows in found.pooler_output]
        # transformers 5.17 leaves the deepstack levels of all chunks in one tensor; 5.19 and later divide them too
        levels = [level if isinstance(level, torch.Tensor) else torch.cat(level) for level in found.deepstack_features]
        wide: torch.Tensor = torch.cat([torch.cat(found.pooler_output), *levels], dim=-1)
        return torch.split_with_sizes(wide, counts)

    def embed(self, ids: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Input embeddings (N, hidden * (1 + levels)) of N ids; see the module and `Adapter.embed`."""
        embeds = super().embed(ids, features)
        return self._widened(embeds) if embeds.shape[-1] == self.text_config.hidden_size else embeds

    def fill(self, embeds: torch.Tensor, pads: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return super().fill(self._widened(embeds), pads, rows)

    def _widened(self, embeds: torch.Tensor) -> torch.Tensor:
        """Embeddings of text (..., hidden) with the zeros that are its deepstack features behind them."""
        return torch.nn.functional.pad(embeds, (0, self.text_config.hidden_size * self.levels))

    def hidden(
        self, embeds: torch.Tensor, positions: torch.Tensor, *, mask: Any, cache: Any, tree: Any = None
    ) -> torch.Tensor:
        """As `Adapter.hidden`; `embeds` are as wide as `embed` makes them, or (B, N, hidden) of text alone."""
        main, *levels = embeds.reshape(*embeds.shape[:2], -1, self.text_config.hidden_size).unbind(-2)
        deep: dict[str, Any] = {}
        if levels:
            everywhere = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
            deep = {
                "visual_pos_masks": everywhere,
                "deepstack_visual_embeds": [level.reshape(-1, level.shape[-1]) for level in levels],
            }
        out: torch.Tensor = self.model.model.language_model(
            inputs_embeds=main,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
            **deep,
            **({} if tree is None else {"tree": tree}),
        ).last_hidden_state
        return out


class Qwen3VLMoeAdapter(Qwen3VLAdapter):
    """A Qwen3-VL checkpoint whose text model is a mixture of experts; see `Adapter`."""

    family: ClassVar[str] = "qwen3_vl_moe"

    @classmethod
    def model_class(cls) -> Any:
        from transformers import Qwen3VLMoeForConditionalGeneration

        return Qwen3VLMoeForConditionalGeneration


def seconds_label(first: float, last: float) -> str:
    """The time written before a pair of frames: the mean of their times, one decimal, as in "<12.5 seconds>"."""
    return f"<{(first + last) / 2:.1f} seconds>"


def _one_kind_of_pixels(checkpoint: Checkpoint) -> None:
    """Raise `ModelError` where the checkpoint's processors make different patches of a video's frame and an image.

    vLLM normalises both by the image processor's values; so do we, and a checkpoint where that matters is refused.
    """
    usual = {"rescale_factor": 1 / 255}
    image, video = usual | read_pixel_settings(checkpoint.path), read_video_settings(checkpoint.path)
    video = usual | video if video else {}
    for name in ("image_mean", "image_std", "rescale_factor", "patch_size", "merge_size", "temporal_patch_size"):
        if name in image and name in video and image[name] != video[name]:
            raise ModelError(
                f"{checkpoint.model}: its image processor has {name} {image[name]} and its video processor "
                f"{video[name]}; they must agree, since images and videos go through one tower in one way. Correct "
                "preprocessor_config.json or video_preprocessor_config.json (or the two parts of processor_config.json)"
            )
