"""LLaVA-OneVision (`LlavaOnevisionForConditionalGeneration`): ChatML, SigLIP frames pooled 2x2, one-axis positions.

A clip is a video of the stock processor's: each frame is stretched to the tower's square (384 pixels), 27 x 27 patches
are pooled to 14 x 14 tokens, and after the last frame stands one learnt row, `image_newline`. A clip of a single frame
is a video of one frame: the family's way of writing images (tiles of several resolutions) is not used. How a clip is
written depends on `timestamps`:
- "none", the stock form: `<video>` once per feature, newline included. The model is not told any time;
- "text": each frame is a video of its own after its time, as in `12s<video>…`, each with a newline of its own: exactly
  what the stock processor makes of one video per frame.

The newline is the last row of the features, so it is trained, cached and fingerprinted with the projector.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from closeup.agent.geometry import VisionGeometry
from closeup.agent.models.adapter import Grid, Media
from closeup.agent.models.chatml_adapter import ChatMLAdapter
from closeup.agent.models.load import ModelError
from closeup.agent.models.patches import pixel_table
from closeup.agent.models.qwen2_5_vl import time_label

PATCHES_PER_FORWARD = 1 << 14  # the tower attends within a frame, so cutting between frames is exact


class Newline(torch.nn.Module):
    """The learnt row after a video, as a module: what makes features is a tuple of modules (`vision_modules`)."""

    def __init__(self, row: torch.nn.Parameter) -> None:
        super().__init__()
        self.image_newline = row


class LlavaOnevisionAdapter(ChatMLAdapter):
    """A LLaVA-OneVision checkpoint; see `Adapter`."""

    family: ClassVar[str] = "llava_onevision"
    axes: ClassVar[int] = 1
    native: ClassVar[str] = "none"
    accepted: ClassVar[tuple[str, ...]] = ("none", "text")
    controls: ClassVar[tuple[str, ...]] = ("<video>", "<image>")
    pads: ClassVar[tuple[tuple[str, str], ...]] = (("<video>", "video_token_id"), ("<image>", "image_token_id"))

    @classmethod
    def model_class(cls) -> Any:
        from transformers import LlavaOnevisionForConditionalGeneration

        return LlavaOnevisionForConditionalGeneration

    def prepare(self, pixel_settings: Mapping[str, Any]) -> None:
        config, name = self.model.config, self.checkpoint.model
        if (text := config.text_config.model_type) != "qwen2":
            raise ModelError(
                f"{name} has a text model of type {text}; LLaVA-OneVision is supported with qwen2, whose prompts are "
                "ChatML"
            )
        side, patch = config.vision_config.image_size, config.vision_config.patch_size
        settings = video_settings(self.checkpoint.path) or pixel_settings
        size = settings.get("size") or {}
        given = (size.get("height"), size.get("width"))
        if given != (side, side):
            raise ModelError(f"{name}: wrong processor: its video frames are {size}, the model's {side}x{side} pixels")
        for switch in ("do_resize", "do_rescale", "do_normalize"):
            if settings.get(switch, True) is not True:
                raise ModelError(f"{name}: wrong processor: {switch} is {settings[switch]!r}, LLaVA-OneVision needs it")
        if settings.get("do_center_crop"):
            raise ModelError(f"{name}: wrong processor: do_center_crop is set, LLaVA-OneVision stretches whole frames")
        self._table = pixel_table(
            settings["image_mean"], settings["image_std"], settings.get("rescale_factor", 1 / 255)
        )
        each = self.timestamps == "text"  # a newline per frame instead of one per clip
        chosen = f"{config.vision_feature_layer}:{config.vision_feature_select_strategy}:{config.projector_hidden_act}"
        how = hashlib.blake2b(f"{self.family} 1:{side}:{each}:{chosen}:".encode(), digest_size=8)
        how.update(self._table.tobytes())
        self.processor_digest = how.hexdigest()
        pooled = math.ceil(side // patch / 2)
        self._pooled = pooled * pooled
        self.geometry = VisionGeometry(
            patch=patch,
            temporal=1,
            tile=side,
            tile_tokens=pooled * pooled + each,
            clip_tokens=int(not each),
            times=self.timestamps,
        )

    # ---- text and clips to ids -------------------------------------------------------------------------------------

    def grids(self, frames: int, size: tuple[int, int]) -> tuple[Grid, ...]:
        side = size[0] // self.geometry.patch
        return ((1, side, side),) * frames if self.timestamps == "text" else ((frames, side, side),)

    def blocks(self, item: Media) -> list[str | int]:
        pad = self._id["<video>"]
        if self.timestamps != "text":
            return [pad] * item.record.tokens
        pieces: list[str | int] = []
        for seconds in item.record.times:
            pieces += [time_label(seconds), *[pad] * self.geometry.tile_tokens]
        return pieces

    def positions(self, ids: Sequence[int], media: Sequence[Media], *, start: int = 0) -> NDArray[np.int64]:
        pads, rows = int(np.isin(np.asarray(ids), self.pad_ids).sum()), sum(item.record.tokens for item in media)
        if pads != rows:
            raise ValueError(f"{pads} pad tokens but {rows} feature rows: media and tokens do not belong together")
        return start + np.arange(len(ids), dtype=np.int64)[None]

    # ---- vision ----------------------------------------------------------------------------------------------------

    def pixel_values(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Frames as the stock processor would give them after its resize: float32 (T, 3, side, side)."""
        out = np.empty((len(frames), 3, *frames.shape[1:3]), dtype=np.float32)
        for channel in range(3):
            out[:, channel] = self._table[channel][frames[..., channel]]
        return out

    def encode_clips(self, clips: Sequence[NDArray[np.uint8]]) -> list[torch.Tensor]:
        if not clips:
            return []
        model, g = self.model.model, self.geometry
        side = g.tile
        for frames in clips:
            if frames.shape[1:3] != (side, side):
                raise ValueError(
                    f"frames are {frames.shape[1]}x{frames.shape[2]} pixels; the tower takes {side}x{side}"
                )
        where, dtype = model.image_newline.device, model.vision_tower.dtype
        at_once = max(1, PATCHES_PER_FORWARD // (side // g.patch) ** 2)
        pixels, parts = np.concatenate([self.pixel_values(frames) for frames in clips]), []
        for begin in range(0, len(pixels), at_once):
            batch = torch.from_numpy(pixels[begin : begin + at_once]).to(device=where, dtype=dtype)
            rows = model.get_video_features(batch[None]).pooler_output
            rows = rows.flatten(0, -2)[: len(batch) * self._pooled]  # from transformers 5.17 on a newline follows
            parts.append(rows.view(len(batch), -1, rows.shape[-1]))
        features = torch.cat(parts)
        newline = model.image_newline.to(features).view(1, 1, -1)
        found = []
        for own in torch.split_with_sizes(features, [len(frames) for frames in clips]):
            if self.timestamps == "text":
                found.append(torch.cat([own, newline.expand(len(own), -1, -1)], dim=1).flatten(0, 1))
            else:
                found.append(torch.cat([own.flatten(0, 1), newline[0]]))
        return found

    @property
    def vision_modules(self) -> tuple[Any, ...]:
        model = self.model.model
        return (model.vision_tower, model.multi_modal_projector, Newline(model.image_newline))


def video_settings(folder: Path) -> dict[str, Any] | None:
    """What the stock library reads for videos: of processor_config.json, else the video processor's own file."""
    for name, key in (("processor_config.json", "video_processor"), ("video_preprocessor_config.json", None)):
        if (folder / name).is_file():
            whole = json.loads((folder / name).read_text(encoding="utf-8"))
            settings = whole.get(key) if key else whole
            if isinstance(settings, dict) and "image_mean" in settings:
                return settings
    return None
