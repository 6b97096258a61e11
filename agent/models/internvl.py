"""InternVL3 and InternVL3.5 in Hugging Face format (`InternVLForConditionalGeneration`): ChatML, square tiles, numbers.

A frame is a block `<img>`, one `<IMG_CONTEXT>` per feature, `</img>`. How a clip is written depends on `timestamps`:
- "numbers", the stock form: `Frame1: <img>…</img>`, a newline, `Frame2: <img>…</img>`, …, counted anew in each clip.
  The stock processor joins frames by newlines and its template writes one more after a video; the model card writes
  `Frame1: <image>` and a newline for each frame. Both are one string, as long as a newline follows the clip: the
  dialects write it, so it is no part of the clip here;
- "text": each frame after its time, `12s<img>…</img>`, without numbers and newlines, as other families write it.

A frame whose `pixels` allow one tile is stretched to one tile, as stock videos are. A frame that is allowed more is
stretched to rows x columns tiles (`VisionGeometry`), read row by row, and a last tile shows the whole frame (the
thumbnail). Every frame of a clip has the same tiles.

Departure from the stock image processor: its thumbnail is resized from the original picture, ours from the canvas of
tiles, which is what a decoder hands over. They are equal for pictures of the canvas's size; docs/models.md says how far
apart they are otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from closeup.agent.geometry import VisionGeometry
from closeup.agent.models.adapter import Grid, Media
from closeup.agent.models.chatml_adapter import ChatMLAdapter
from closeup.agent.models.load import Checkpoint, ModelError, Timestamps, read_pixel_settings
from closeup.agent.models.patches import pixel_table
from closeup.agent.models.positions import plain_positions
from closeup.agent.models.qwen2_5_vl import time_label
from closeup.tools.video.pixels import bicubic

PATCHES_PER_FORWARD = 1 << 15  # the tower attends within a tile, so cutting between frames is exact
TEXT_MODELS = ("qwen2", "qwen3")
MAX_TILES = 12  # where the processor's settings name none, as the stock processor has it
OPEN, CLOSE, PAD = "<img>", "</img>", "<IMG_CONTEXT>"


class InternVLAdapter(ChatMLAdapter):
    """An InternVL3 or InternVL3.5 checkpoint in Hugging Face format; see `Adapter`."""

    family: ClassVar[str] = "internvl"
    axes: ClassVar[int] = 1
    native: ClassVar[str] = "numbers"
    accepted: ClassVar[tuple[str, ...]] = ("numbers", "text")
    controls: ClassVar[tuple[str, ...]] = (OPEN, CLOSE, PAD)
    pads: ClassVar[tuple[tuple[str, str], ...]] = ((PAD, "image_token_id"),)

    @classmethod
    def model_class(cls) -> Any:
        from transformers import InternVLForConditionalGeneration

        return InternVLForConditionalGeneration

    @classmethod
    def load(cls, checkpoint: Checkpoint, *, dtype: str, device: str, timestamps: Timestamps) -> ChatMLAdapter:
        """As `ChatMLAdapter.load`; what small files tell is refused before any weight is read."""
        from huggingface_hub.errors import StrictDataclassError
        from transformers import InternVLConfig

        try:
            config = InternVLConfig.from_pretrained(checkpoint.path, local_files_only=True)
        except (OSError, ValueError, TypeError, StrictDataclassError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"{checkpoint.model}: its config.json cannot be used: {reason}") from error
        _check(checkpoint.model, config, read_pixel_settings(checkpoint.path))
        return super().load(checkpoint, dtype=dtype, device=device, timestamps=timestamps)

    def prepare(self, pixel_settings: Mapping[str, Any]) -> None:
        config = self.model.config
        _check(self.checkpoint.model, config, pixel_settings)
        side, patch = config.vision_config.image_size[0], config.vision_config.patch_size[0]
        merge = round(1 / config.downsample_ratio)
        self._table = pixel_table(
            pixel_settings["image_mean"], pixel_settings["image_std"], pixel_settings.get("rescale_factor", 1 / 255)
        )
        # Settings of the whole model that shape features and are part of no vision module's configuration.
        shaping = (config.vision_feature_layer, config.vision_feature_select_strategy, config.projector_hidden_act)
        how = hashlib.blake2b(f"{self.family} 1:{side}:{patch}:{merge}:{shaping}:".encode(), digest_size=8)
        how.update(self._table.tobytes())
        self.processor_digest = how.hexdigest()
        self.geometry = VisionGeometry(
            patch=patch,
            merge=merge,
            temporal=1,
            tile=side,
            tile_tokens=config.image_seq_length,
            max_tiles=int(pixel_settings.get("max_patches") or MAX_TILES),
            times=self.timestamps,
        )

    # ---- text and clips to ids -------------------------------------------------------------------------------------

    def grids(self, frames: int, size: tuple[int, int]) -> tuple[Grid, ...]:
        side = self.geometry.tile // self.geometry.patch
        return ((self.geometry.tiles(size), side, side),) * frames  # one block per frame: (tiles, rows, columns)

    def blocks(self, item: Media) -> list[str | int]:
        opening, closing, pad = (self._id[control] for control in self.controls)
        pieces: list[str | int] = []
        for index, (tiles, _, _) in enumerate(item.grids):
            if self.timestamps == "text":
                pieces.append(time_label(item.record.times[index]))
            else:
                pieces.append(("\n" if index else "") + f"Frame{index + 1}: ")
            pieces += [opening, *[pad] * (tiles * self.geometry.tile_tokens), closing]
        return pieces

    def positions(self, ids: Sequence[int], media: Sequence[Media], *, start: int = 0) -> NDArray[np.int64]:
        end, rope = start + len(ids), getattr(self.text_config, "rope_parameters", None) or {}
        if end > self.max_context and rope.get("rope_type") == "dynamic":
            raise ValueError(
                f"{end} tokens are more than the text model's {self.max_context}, from which on its rotary frequencies "
                "follow the longest path of a forward (rope_type dynamic), so that paths would change each other: use "
                f"fewer or smaller frames, and in training set max_length to {self.max_context} at most"
            )
        blocks = [grid[0] * self.geometry.tile_tokens for item in media for grid in item.grids]
        return start + plain_positions(ids, blocks, self.pad_ids)

    # ---- vision ----------------------------------------------------------------------------------------------------

    def pixel_values(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Tiles of a clip as the stock processor would give them: float32 (T * tiles, 3, tile, tile), frame by frame.

        Args:
            frames: uint8, T x H x W x 3; H and W are multiples of the tile's side.

        Raises:
            ValueError: a side that is not.
        """
        count, height, width, _ = frames.shape
        tile = self.geometry.tile
        if height % tile or width % tile:
            raise ValueError(f"frames are {height}x{width} pixels; both sides must be multiples of {tile}")
        rows, columns, tiles = height // tile, width // tile, self.geometry.tiles((height, width))
        out = np.empty((count, tiles, 3, tile, tile), dtype=np.float32)
        cut = frames.reshape(count, rows, tile, columns, tile, 3).transpose(0, 1, 3, 5, 2, 4)
        cut = cut.reshape(count, rows * columns, 3, tile, tile)
        whole = [bicubic(frame, (tile, tile)) for frame in frames] if tiles > rows * columns else None
        for channel, levels in enumerate(self._table):
            out[:, : rows * columns, channel] = levels[cut[:, :, channel]]
            if whole is not None:
                out[:, -1, channel] = levels[np.stack(whole)[..., channel]]
        return out.reshape(count * tiles, 3, tile, tile)

    def encode_clips(self, clips: Sequence[NDArray[np.uint8]]) -> list[torch.Tensor]:
        g = self.geometry
        most = max(1, PATCHES_PER_FORWARD // (g.tile // g.patch) ** 2)  # tiles
        found: list[list[torch.Tensor]] = [[] for _ in clips]
        waiting: list[tuple[int, NDArray[np.uint8]]] = []  # (clip, some of its frames)
        taken = 0
        for index, frames in enumerate(clips):
            tiles = g.tiles((frames.shape[1], frames.shape[2]))
            begin = 0
            while begin < len(frames):
                count = min(len(frames) - begin, max((most - taken) // tiles, 0 if taken else 1))
                if count == 0:
                    self._encode(waiting, found)
                    waiting, taken = [], 0
                    continue
                waiting.append((index, frames[begin : begin + count]))
                begin, taken = begin + count, taken + count * tiles
        self._encode(waiting, found)
        return [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in found]

    def _encode(self, waiting: Sequence[tuple[int, NDArray[np.uint8]]], found: list[list[torch.Tensor]]) -> None:
        """One forward of the tower; the features (tokens, hidden) are appended to those of their clips."""
        if not waiting:
            return
        model = self.model.model
        pixels = [self.pixel_values(frames) for _, frames in waiting]
        tower = model.vision_tower
        batch = torch.from_numpy(np.concatenate(pixels)).to(device=tower.device, dtype=tower.dtype)
        features = model.get_image_features(
            pixel_values=batch,
            vision_feature_layer=self.model.config.vision_feature_layer,
            vision_feature_select_strategy=self.model.config.vision_feature_select_strategy,
            return_dict=True,
        ).pooler_output
        for (index, _), part in zip(waiting, features.split([len(tiles) for tiles in pixels]), strict=True):
            found[index].append(part.flatten(0, 1))

    @property
    def vision_modules(self) -> tuple[Any, ...]:
        return (self.model.model.vision_tower, self.model.model.multi_modal_projector)


def _check(name: str, config: Any, pixel_settings: Mapping[str, Any]) -> None:
    """Model and processor belong together and can be run here. Raises `ModelError`."""
    if (text := config.text_config.model_type) not in TEXT_MODELS:
        raise ModelError(
            f"{name} has a text model of type {text!r}; InternVL is supported with {' and '.join(TEXT_MODELS)}: give "
            "an -hf checkpoint of InternVL3 or InternVL3.5 that has a Qwen text model"
        )
    (side, other), patches = config.vision_config.image_size, config.vision_config.patch_size
    merge = round(1 / config.downsample_ratio)
    even = side == other and patches[0] == patches[1] and side % (patches[0] * merge) == 0
    if not even or merge * config.downsample_ratio != 1:
        raise ModelError(
            f"{name}: tiles of {side}x{other} pixels in patches of {patches[0]}x{patches[1]}, downsampled by "
            f"{config.downsample_ratio}, are not supported: tiles and patches must be square and divide evenly"
        )
    tokens = (side // patches[0] // merge) ** 2
    if config.image_seq_length != tokens:
        raise ModelError(
            f"{name}: config.json says {config.image_seq_length} tokens per tile (image_seq_length), but its tower "
            f"makes {tokens}"
        )
    size = pixel_settings.get("size") or {}
    if (given := (size.get("height"), size.get("width"))) != (side, side):
        raise ModelError(f"{name}: wrong processor: its tiles are {given} pixels, the model's {(side, side)}")
    for switch in ("do_resize", "do_rescale", "do_normalize"):
        if pixel_settings.get(switch, True) is not True:
            raise ModelError(f"{name}: wrong processor: {switch} is {pixel_settings[switch]!r}, InternVL needs it")
    fewest, most = pixel_settings.get("min_patches") or 1, pixel_settings.get("max_patches") or MAX_TILES
    if fewest != 1 or most < 1:
        raise ModelError(
            f"{name}: wrong processor: it cuts pictures into {fewest} to {most} tiles (min_patches, max_patches); "
            "accepted are 1 to any number"
        )
