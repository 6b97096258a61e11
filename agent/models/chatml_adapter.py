"""`ChatMLAdapter`: what families that speak ChatML share; a family's own file holds its vision and its times.

A message is written `<|im_start|>role`, a newline, its content, `<|im_end|>` and a newline. A system message is written
only when one is given; a `tool` message is written as a user turn, as Qwen's own template does. Clips are resolved
(decoded, measured, named by their pixels) here; how a clip is *written* is the family's (`blocks`).

A new family is a subclass that states its controls and its forms of time, and answers six questions: `model_class`,
`prepare`, `grids`, `blocks`, `positions`, `encode_clips`. See `docs/models.md`.
"""

from __future__ import annotations

import hashlib
import re
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from closeup.agent.messages import ClipPart, Message
from closeup.agent.models.adapter import Adapter, Encoded, EncodeError, Grid, Media
from closeup.agent.models.chatml import TAGS, TextEncoder
from closeup.agent.models.load import Checkpoint, ModelError, Timestamps, read_pixel_settings
from closeup.agent.trajectory import ClipRecord
from closeup.tools.video.clip import Clip
from closeup.tools.video.reader import Video

FLOAT32_BYTES = 2 << 30  # weight files below this are computed in float32 on a CPU; larger ones might not fit
START, END = "<|im_start|>", "<|im_end|>"


class ChatMLAdapter(Adapter):
    """One loaded checkpoint of a family that speaks ChatML; see `Adapter`."""

    controls: ClassVar[tuple[str, ...]]
    """Tokens of its own that the tokenizer must have, besides `<|im_start|>` and `<|im_end|>`."""
    pads: ClassVar[tuple[tuple[str, str], ...]]
    """Tokens that stand for features, each with the setting of config.json that holds its id; videos' first."""
    native: ClassVar[str]
    """How the family itself tells a frame's time; what `timestamps="native"` means."""
    accepted: ClassVar[tuple[str, ...]]
    """Ways of telling a frame's time that it can be asked for, `native` among them."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        pixel_settings: Mapping[str, Any],
        checkpoint: Checkpoint,
        *,
        timestamps: Timestamps = "native",
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: of `model_class()`. tokenizer: its fast tokenizer.
            pixel_settings: the image processor's settings (`image_mean`, `image_std`, sizes).

        Raises:
            ModelError: tokenizer, processor and model do not belong together, the text model cannot be run here, or
                the family cannot tell times this way.
        """
        self.model, self.checkpoint = model, checkpoint
        self.timestamps = self.native if timestamps == "native" else timestamps
        if self.timestamps not in self.accepted:
            ways = ", ".join(way for way in get_args(Timestamps) if way == "native" or way in self.accepted)
            raise ModelError(
                f"{checkpoint.model} is of family {self.family}, which cannot tell times as {timestamps!r}; accepted: "
                f"{ways} (native is {self.native})"
            )
        self._tokenizer = tokenizer
        self._encoder = TextEncoder(tokenizer)
        self.tokenizer_digest = self._encoder.digest
        known = tokenizer.get_added_vocab()
        for control in (START, END, *self.controls):
            if control not in known:
                raise ModelError(f"{checkpoint.model}: the tokenizer has no {control}; it is none of {self.family}")
        self._id = {control: int(known[control]) for control in (START, END, *self.controls)}
        for pad, setting in self.pads:
            ours, given = self._id[pad], getattr(model.config, setting, None)
            if ours != given:
                raise ModelError(f"{checkpoint.model}: {pad} is {ours} in the tokenizer and {given} in config.json")
        text = self.text_config
        if set(getattr(text, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
            raise ModelError(f"{checkpoint.model}: sliding-window attention is not supported (use_sliding_window)")
        self.max_context = int(text.max_position_embeddings)
        ends = [model.generation_config.eos_token_id] if model.generation_config is not None else []
        flat = [i for e in ends for i in (e if isinstance(e, list) else [e]) if i is not None]
        self.stop_ids = tuple(dict.fromkeys([self._id[END], *flat]))
        self.pad_ids = tuple(dict.fromkeys(self._id[pad] for pad, _ in self.pads))
        self.suppressed_ids = self._suppressed(int(text.vocab_size))
        self.prepare(pixel_settings)

    # ---- what a family answers -------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def model_class(cls) -> Any:
        """The transformers class of its checkpoints, imported when asked for."""

    @abstractmethod
    def prepare(self, pixel_settings: Mapping[str, Any]) -> None:
        """Set `geometry` and `processor_digest`. Raises `ModelError` when the processor is another model's."""

    @abstractmethod
    def grids(self, frames: int, size: tuple[int, int]) -> tuple[Grid, ...]:
        """`(t, h, w)` in patches per vision block of a clip of `frames` frames of `size` = (height, width) pixels."""

    @abstractmethod
    def blocks(self, item: Media) -> list[str | int]:
        """How a clip is written: text and control ids, pads included."""

    # ---- loading ---------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, checkpoint: Checkpoint, *, dtype: str, device: str, timestamps: Timestamps) -> ChatMLAdapter:
        """Load weights and tokenizer of a checkpoint that `find_checkpoint` has looked at. Raises `ModelError`."""
        from transformers import AutoTokenizer
        from transformers.utils import logging

        where = torch_device(device)
        if dtype == "auto" and where.type == "cpu" and _weight_bytes(checkpoint.path) < FLOAT32_BYTES:
            dtype = "float32"  # measured with 2.7 million parameters, batch 16: as fast as bfloat16, and exact
        bar = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            model, report = cls.model_class().from_pretrained(
                checkpoint.path,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                attn_implementation="sdpa",
                output_loading_info=True,
                local_files_only=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True)
        except _faults() as error:
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

    @classmethod
    def empty(cls, checkpoint: Checkpoint, *, timestamps: Timestamps) -> ChatMLAdapter:
        """The adapter around a model without weights (on torch's meta device), from a checkpoint's small files.

        It writes prompts, counts tokens and says where they stand, exactly as the loaded one, and refuses the same
        files; it computes nothing. Raises `ModelError`.
        """
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        try:
            config = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True)
            with torch.device("meta"):
                model = cls.model_class()(config).eval()
            if (checkpoint.path / "generation_config.json").is_file():
                model.generation_config = GenerationConfig.from_pretrained(checkpoint.path, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True)
        except _faults() as error:
            reason = str(error).strip() or type(error).__name__
            raise ModelError(f"{checkpoint.model} cannot be loaded: {reason.splitlines()[0]}") from error
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(f"{checkpoint.model} has no fast tokenizer: tokenizer.json is missing")
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
        start, end = self._id[START], self._id[END]
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
                    pieces += self.blocks(item)
                else:
                    pieces.append(part.text)
            pieces += [end, "\n"]
        if add_generation_prompt:
            pieces += [start, "assistant\n" + assistant_prefix]
        elif assistant_prefix:
            raise ValueError("an assistant_prefix needs add_generation_prompt")
        return Encoded(tuple(self._encoder.join(pieces)), tuple(media), frames)

    def message_ids(self, text: str, *, closed: bool = True) -> tuple[int, ...]:
        return tuple(self._encoder.join([text, self._id[END]] if closed else [text]))

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
        starts = record.times[:: self.geometry.temporal]
        spacing = (starts[-1] - starts[0]) / (len(starts) - 1) if len(starts) > 1 else 1.0
        return Media(record, record.digest, self.grids(len(record.times), record.size), spacing)

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

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def _suppressed(self, vocabulary: int) -> tuple[int, ...]:
        named = set(self._tokenizer.get_vocab().values())
        never = {i for i in range(vocabulary) if i not in named}
        for i, token in self._tokenizer.added_tokens_decoder.items():
            control = token.special or token.content in self._id or re.fullmatch(r"<\|.*\|>", token.content)
            if token.content not in TAGS and control:
                never.add(int(i))
        return tuple(sorted(i for i in never - set(self.stop_ids) if i < vocabulary))

    # ---- the text model --------------------------------------------------------------------------------------------

    def embed(self, ids: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
        embeds: torch.Tensor = self.model.get_input_embeddings()(ids)
        pads = torch.isin(ids, torch.tensor(self.pad_ids, device=ids.device))
        count, rows = int(pads.sum()), sum(len(f) for f in features)
        if count != rows:
            raise ValueError(f"{count} pad tokens but {rows} feature rows: media and tokens do not belong together")
        return self.fill(embeds, pads, torch.cat(list(features))) if rows else embeds

    def fill(self, embeds: torch.Tensor, pads: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """`embeds` (N, hidden) with `rows`, one per true entry of `pads` (N,), in their places."""
        return embeds.masked_scatter(pads.unsqueeze(-1), rows.to(embeds))

    def hidden(
        self, embeds: torch.Tensor, positions: torch.Tensor, *, mask: Any, cache: Any, tree: Any = None
    ) -> torch.Tensor:
        out: torch.Tensor = self.model.model.language_model(
            inputs_embeds=embeds,
            position_ids=positions if self.axes > 1 else positions[0],
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


def _faults() -> tuple[type[Exception], ...]:
    """What the stock library raises of files that are damaged or of another model."""
    from huggingface_hub.errors import StrictDataclassError

    return (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, StrictDataclassError)


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def torch_device(name: str) -> torch.device:
    """The torch device a name means ("auto", "cpu", "cuda", "cuda:N"). Raises `ModelError`."""
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
