"""Qwen2.5-VL (`Qwen2_5_VLForConditionalGeneration`): ChatML, 2x2-merged patches, three-axis positions.

How a clip is written depends on `timestamps`:
- "text": each pair of frames is a vision block of its own after the time of its first frame, as in
  `12s<|vision_start|><|video_pad|>…<|vision_end|>`, one grid row (1, h, w) each;
- "position": the stock form, one block per clip with grid (t, h, w); time is in the temporal axis of the positions.

A system message is written only when one is given; a `tool` message is written as a user turn, as Qwen's own template
does. Departure from transformers 5.19 to 5.23: the text after a video starts one after its largest position on *any*
axis (the original rule, also vLLM's), see `mrope.py`.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from closeup.agent.geometry import VisionGeometry
from closeup.agent.messages import ClipPart, Message
from closeup.agent.models.adapter import Adapter, Encoded, EncodeError, Grid, Media
from closeup.agent.models.chatml import TAGS, TextEncoder
from closeup.agent.models.load import Checkpoint, ModelError, Timestamps, read_pixel_settings
from closeup.agent.models.mrope import mrope_positions
from closeup.agent.models.patches import grid_of, patchify, pixel_table
from closeup.agent.trajectory import ClipRecord
from closeup.tools.video.clip import Clip
from closeup.tools.video.reader import Video

PATCHES_PER_FORWARD = 1 << 15  # the tower attends within a frame, so cutting between frames is exact
FLOAT32_BYTES = 2 << 30  # weight files below this are computed in float32 on a CPU; larger ones might not fit
_CONTROLS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|image_pad|>")


class Qwen25VLAdapter(Adapter):
    """A Qwen2.5-VL checkpoint; see `Adapter`."""

    family: ClassVar[str] = "qwen2_5_vl"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        pixel_settings: Mapping[str, Any],
        checkpoint: Checkpoint,
        *,
        timestamps: Timestamps = "text",
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: a `Qwen2_5_VLForConditionalGeneration`. tokenizer: its fast tokenizer.
            pixel_settings: the image processor's settings (`image_mean`, `image_std`, patch sizes).

        Raises:
            ModelError: tokenizer, processor and model do not belong together, or the text model has sliding windows.
        """
        self.model, self.checkpoint = model, checkpoint
        self.timestamps: str = timestamps
        self._tokenizer = tokenizer
        self._encoder = TextEncoder(tokenizer)
        self.tokenizer_digest = self._encoder.digest
        vision, text = model.config.vision_config, model.config.text_config
        known = tokenizer.get_added_vocab()
        for control in _CONTROLS:
            if control not in known:
                raise ModelError(f"{checkpoint.model}: the tokenizer has no {control}; it is no Qwen2.5-VL tokenizer")
        self._id = {control: int(known[control]) for control in _CONTROLS}
        for control, given in (
            ("<|video_pad|>", model.config.video_token_id),
            ("<|image_pad|>", model.config.image_token_id),
        ):
            if self._id[control] != given:
                raise ModelError(
                    f"{checkpoint.model}: {control} is {self._id[control]} in the tokenizer and {given} in config.json"
                )
        if set(text.layer_types) != {"full_attention"}:
            raise ModelError(f"{checkpoint.model}: sliding-window attention is not supported (use_sliding_window)")
        patch, merge, temporal = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        for name, value in (("patch_size", patch), ("merge_size", merge), ("temporal_patch_size", temporal)):
            if pixel_settings.get(name, value) != value:
                raise ModelError(
                    f"{checkpoint.model}: wrong processor: its {name} is {pixel_settings[name]}, the model's {value}"
                )
        self._table = pixel_table(
            pixel_settings["image_mean"], pixel_settings["image_std"], pixel_settings.get("rescale_factor", 1 / 255)
        )
        how = hashlib.blake2b(f"{self.family} 1:{patch}:{merge}:{temporal}:".encode(), digest_size=8)
        how.update(self._table.tobytes())
        self.processor_digest = how.hexdigest()
        size = pixel_settings.get("size") or {}
        smallest = size.get("shortest_edge") or pixel_settings.get("min_pixels") or (patch * merge) ** 2
        self.geometry = VisionGeometry(patch=patch, merge=merge, temporal=temporal, min_pixels=int(smallest))
        self._tokens_per_second = float(vision.tokens_per_second)
        self.max_context = int(text.max_position_embeddings)
        ends = [model.generation_config.eos_token_id] if model.generation_config is not None else []
        flat = [i for e in ends for i in (e if isinstance(e, list) else [e]) if i is not None]
        self.stop_ids = tuple(dict.fromkeys([self._id["<|im_end|>"], *flat]))
        self.pad_ids = (self._id["<|video_pad|>"], self._id["<|image_pad|>"])
        self.suppressed_ids = self._suppressed(int(text.vocab_size))

    @classmethod
    def load(cls, checkpoint: Checkpoint, *, dtype: str, device: str, timestamps: Timestamps) -> Qwen25VLAdapter:
        """Load weights and tokenizer of a checkpoint that `find_checkpoint` has looked at. Raises `ModelError`."""
        from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
        from transformers.utils import logging

        where = _device(device)
        if dtype == "auto" and where.type == "cpu" and _weight_bytes(checkpoint.path) < FLOAT32_BYTES:
            dtype = "float32"  # measured with 2.7 million parameters, batch 16: as fast as bfloat16, and exact
        bar = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                checkpoint.path,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                attn_implementation="sdpa",
                output_loading_info=True,
                local_files_only=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ModelError(f"{checkpoint.model} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
        finally:
            if bar:
                logging.enable_progress_bar()
        if missing := sorted(report["missing_keys"]):
            raise ModelError(f"{checkpoint.model} lacks the weights of {len(missing)} tensors, first {missing[0]}")
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(f"{checkpoint.model} has no fast tokenizer: tokenizer.json is missing")
        model = model.to(where).eval()
        return cls(model, tokenizer, read_pixel_settings(checkpoint.path), checkpoint, timestamps=timestamps)

    # ---- text and clips to ids -------------------------------------------------------------------------------------

    def encode(
        self,
        messages: Sequence[Message],
        videos: Mapping[str, Video],
        *,
        first: bool = True,
        closed: bool = True,
        add_generation_prompt: bool = True,
        assistant_prefix: str = "",
    ) -> Encoded:
        start, end = self._id["<|im_start|>"], self._id["<|im_end|>"]
        pieces: list[str | int] = []
        media: list[Media] = []
        frames: dict[str, NDArray[np.uint8]] = {}
        if not first:
            pieces += ["\n"] if closed else [end, "\n"]
        for message in messages:
            role = "user" if message.role == "tool" else message.role
            pieces += [start, role + "\n"]
            for part in message.content:
                if isinstance(part, ClipPart):
                    item, pixels = self._resolve(part.clip, videos)
                    media.append(item)
                    if pixels is not None:
                        frames[item.key] = pixels
                    pieces += self._blocks(item)
                else:
                    pieces.append(part.text)
            pieces += [end, "\n"]
        if add_generation_prompt:
            pieces += [start, "assistant\n" + assistant_prefix]
        elif assistant_prefix:
            raise ValueError("an assistant_prefix needs add_generation_prompt")
        return Encoded(tuple(self._encoder.join(pieces)), tuple(media), frames)

    def message_ids(self, text: str, *, closed: bool = True) -> tuple[int, ...]:
        return tuple(self._encoder.join([text, self._id["<|im_end|>"]] if closed else [text]))

    def frames(self, media: Media, videos: Mapping[str, Video]) -> NDArray[np.uint8]:
        found, pixels = self._resolve(media.record.clip, videos, decode=True)
        assert pixels is not None
        if found.key != media.key:
            raise EncodeError(
                f"the clip from {media.record.clip.start:g} s to {media.record.clip.end:g} s of video "
                f"{media.record.clip.video} has other pixels ({found.key}) than when it was recorded ({media.key}): "
                "another decoder or resizer made them; generate the trajectories again"
            )
        return pixels

    def media(self, record: ClipRecord) -> Media:
        if not record.times or not record.digest:
            raise EncodeError(
                f"no policy looked at the clip from {record.clip.start:g} s to {record.clip.end:g} s of video "
                f"{record.clip.video}: its record has no frames; run the episode with a policy that sees"
            )
        g = self.geometry
        t, h, w = grid_of(len(record.times), record.size, patch=g.patch, temporal=g.temporal)
        starts = record.times[:: g.temporal]
        grids: tuple[Grid, ...] = ((1, h, w),) * t if self.timestamps == "text" else ((t, h, w),)
        spacing = (starts[-1] - starts[0]) / (t - 1) if t > 1 else 1.0
        return Media(record, record.digest, grids, spacing)

    def _resolve(
        self, clip: Clip, videos: Mapping[str, Video], *, decode: bool = False
    ) -> tuple[Media, NDArray[np.uint8] | None]:
        """What a clip becomes, and its pixels; None when its record is known and `decode` does not ask for them."""
        video = videos.get(clip.video)
        if video is None:
            raise EncodeError(
                f"a clip is of video {clip.video}, which is not open (open: {', '.join(videos) or 'none'})"
            )
        size = self.geometry.size(video.width, video.height, clip.pixels)
        if self.records is not None and not decode and (known := self.records.find(clip, video, size)) is not None:
            return self.media(known), None
        begun = time.perf_counter()
        shown = video.frames(clip, size)
        digest = hashlib.blake2b(str(shown.pixels.shape).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(shown.pixels).data)
        record = ClipRecord(
            clip=clip,
            times=tuple(float(x) for x in shown.times),
            size=size,
            tokens=self.geometry.tokens(len(shown), size),
            bad_packets=shown.bad_packets,
            backend=shown.backend,
            seconds=time.perf_counter() - begun,
            digest=digest.hexdigest(),
        )
        if self.records is not None:
            self.records.remember(record, video)
        return self.media(record), shown.pixels

    def _blocks(self, item: Media) -> list[str | int]:
        opening, closing, pad = (self._id[c] for c in ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>"))
        pieces: list[str | int] = []
        for i, (t, h, w) in enumerate(item.grids):
            if self.timestamps == "text":
                pieces.append(time_label(item.record.times[i * self.geometry.temporal]))
            pieces += [opening, *[pad] * (t * h * w // self.geometry.merge**2), closing]
        return pieces

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def _suppressed(self, vocabulary: int) -> tuple[int, ...]:
        named = set(self._tokenizer.get_vocab().values())
        never = {i for i in range(vocabulary) if i not in named}
        for i, token in self._tokenizer.added_tokens_decoder.items():
            if token.content not in TAGS and (token.special or re.fullmatch(r"<\|.*\|>", token.content)):
                never.add(int(i))
        return tuple(sorted(i for i in never - set(self.stop_ids) if i < vocabulary))

    # ---- positions, features, hidden states ------------------------------------------------------------------------

    def positions(self, ids: Sequence[int], media: Sequence[Media], *, start: int = 0) -> NDArray[np.int64]:
        grids = [grid for item in media for grid in item.grids]
        spacing = [item.seconds_per_grid for item in media for _ in item.grids]
        return start + mrope_positions(
            ids,
            grids,
            pad_id_video=self._id["<|video_pad|>"],
            pad_id_image=self._id["<|image_pad|>"],
            merge=self.geometry.merge,
            tokens_per_second=self._tokens_per_second,
            seconds_per_grid=spacing,
        )

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
            features = self.model.model.get_video_features(
                pixels.to(device=visual.device, dtype=visual.dtype), grid.to(visual.device)
            ).pooler_output
            for (index, _, _), rows_of_clip in zip(batch, features, strict=True):
                found[index].append(rows_of_clip)
        return [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in found]

    def embed(self, ids: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
        embeds: torch.Tensor = self.model.get_input_embeddings()(ids)
        pads = (ids == self.pad_ids[0]) | (ids == self.pad_ids[1])
        count, rows = int(pads.sum()), sum(len(f) for f in features)
        if count != rows:
            raise ValueError(f"{count} pad tokens but {rows} feature rows: media and tokens do not belong together")
        if not rows:
            return embeds
        return embeds.masked_scatter(pads.unsqueeze(-1), torch.cat(list(features)).to(embeds))

    def hidden(
        self, embeds: torch.Tensor, positions: torch.Tensor, *, mask: Any, cache: Any, tree: Any = None
    ) -> torch.Tensor:
        out: torch.Tensor = self.model.model.language_model(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask={"full_attention": mask},
            past_key_values=cache,
            use_cache=cache is not None,
            **({} if tree is None else {"tree": tree}),
        ).last_hidden_state
        return out

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model.lm_head(hidden)
        return out

    @property
    def text_config(self) -> Any:
        return self.model.model.language_model.config

    @property
    def vision_modules(self) -> tuple[Any, ...]:
        return (self.model.model.visual,)


def time_label(seconds: float) -> str:
    """A time as it is written before a pair of frames: at most one decimal, as in "12s" or "12.5s"."""
    return f"{seconds:.1f}".removesuffix(".0") + "s"


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _device(name: str) -> torch.device:
    """The torch device a name means. Raises `ModelError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:(0|[1-9][0-9]*))?", name):
        raise ModelError(f"device is auto, cpu, cuda or cuda:N, got {name!r}")
    if name == "cpu":
        return torch.device(name)
    if not torch.cuda.is_available():
        raise ModelError(f"device {name!r} was asked for, but torch sees no CUDA device; use auto or cpu")
    count = torch.cuda.device_count()
    if int(name.partition(":")[2] or 0) >= count:  # torch itself would take 256 for 0
        raise ModelError(
            f"device {name!r} was asked for, but torch sees {count} CUDA devices, cuda:0 to cuda:{count - 1}; "
            "name one of these"
        )
    return torch.device(name)
