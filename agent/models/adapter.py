"""`Adapter`: all that is particular to one model family, behind one interface.

A policy, a trainer and an evaluator ask an adapter for token ids, positions, vision features and embeddings; none of
them knows a chat template, a patch order or a position rule.

Invariants
1. `encode` renders only the messages it is given, and rendering is prefix-stable: the ids of a conversation are the ids
   of its first messages followed by the ids of the later ones.
2. Control tokens come from the adapter alone. Text may spell `<|im_end|>` or `<|video_pad|>`: plain characters.
3. The number of pad tokens equals the number of feature rows, clip by clip, in order of appearance.
4. Positions are computed here (`mrope.py`) and passed explicitly everywhere; the model's own are never used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from closeup.agent.geometry import VisionGeometry
from closeup.agent.messages import Message
from closeup.agent.trajectory import ClipRecord
from closeup.tools.video.reader import Video

if TYPE_CHECKING:
    import torch

    from closeup.agent.models.featurecache import ClipRecords
    from closeup.agent.models.load import Checkpoint

Grid = tuple[int, int, int]


class EncodeError(ValueError):
    """A conversation that cannot be put to this model; the message says which part and why."""


@dataclass(frozen=True, slots=True)
class Media:
    """One clip as it was rendered.

    Attributes:
        record: the clip, its real times, frame size and token count.
        key: digest of the very pixels; two clips with one key have equal features under equal weights.
        grids: `(t, h, w)` in patches, one per vision block of this clip.
        seconds_per_grid: seconds between two temporal rows of a block, for families that encode time in positions.
    """

    record: ClipRecord
    key: str
    grids: tuple[Grid, ...]
    seconds_per_grid: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Messages as token ids.

    Attributes:
        ids: token ids, pads expanded.
        media: the clips, in order of appearance.
        frames: decoded frames by `Media.key`: uint8, T x H x W x 3; a clip that `Adapter.records` knows is not decoded.
    """

    ids: tuple[int, ...]
    media: tuple[Media, ...] = ()
    frames: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


class Adapter(ABC):
    """One loaded checkpoint of one family.

    Attributes:
        checkpoint: where it came from.
        model: the transformers model, in eval mode.
        geometry: how frames become tokens.
        suppressed_ids: ids that are never sampled (vision and turn tokens, ids without a token), ascending. Rollout and
            trainer leave them out of the distribution alike.
        stop_ids: ids that end a message; the first is the one this adapter writes.
        pad_ids: ids that stand for features.
        max_context: most tokens the model takes. axes: rows of `positions`.
        timestamps: how a frame's time reaches the model ("text", "position", …); never "native", which was resolved.
        tokenizer_digest: names the tokenizer, for records.
        processor_digest: names how pixels become the tower's input (normalisation, patches), for caches.
        records: what requests for clips became earlier; with it `encode` decodes only clips it does not know.
    """

    family: ClassVar[str]
    axes: ClassVar[int] = 3
    checkpoint: Checkpoint
    model: Any
    geometry: VisionGeometry
    suppressed_ids: tuple[int, ...]
    stop_ids: tuple[int, ...]
    pad_ids: tuple[int, ...]
    max_context: int
    timestamps: str
    tokenizer_digest: str
    processor_digest: str
    records: ClipRecords | None = None

    @abstractmethod
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
        """Render new messages.

        Args:
            messages: the messages to render, oldest first.
            videos: opened videos by identity, for the clips.
            first: nothing was rendered before. Otherwise the ids continue right after an assistant message.
            closed: that assistant message ended with its end token (it was not cut).
            add_generation_prompt: end with the opening of an assistant message.
            assistant_prefix: text that assistant message begins with.

        Raises:
            EncodeError: a clip of a video that is not there. VideoError: a video that cannot be decoded.
        """

    @abstractmethod
    def message_ids(self, text: str, *, closed: bool = True) -> tuple[int, ...]:
        """Ids of an assistant message as a model would have to sample it, the end token included when `closed`.

        For records whose policy gave no ids (experts, remote models); ids that were sampled are never made again.
        """

    @abstractmethod
    def media(self, record: ClipRecord) -> Media:
        """The clip a record tells of, without decoding it. Raises `EncodeError` when no policy looked at the clip."""

    @abstractmethod
    def frames(self, media: Media, videos: Mapping[str, Video]) -> NDArray[np.uint8]:
        """The pixels of a clip that was rendered earlier, decoded again.

        Raises as `encode` does, and `EncodeError` when the pixels are not those that were rendered.
        """

    @abstractmethod
    def positions(self, ids: Sequence[int], media: Sequence[Media], *, start: int = 0) -> NDArray[np.int64]:
        """Positions (axes, N) of ids that begin at position `start`; `media` are the clips among them, in order."""

    @abstractmethod
    def encode_clips(self, clips: Sequence[NDArray[np.uint8]]) -> list[torch.Tensor]:
        """Features (tokens, hidden) of each clip's frames (uint8, T x H x W x 3), in the model's dtype and device."""

    @abstractmethod
    def embed(self, ids: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Input embeddings (N, hidden) of N ids, with `features` in the place of the pads, in order of appearance."""

    @abstractmethod
    def hidden(
        self, embeds: torch.Tensor, positions: torch.Tensor, *, mask: Any, cache: Any, tree: Any = None
    ) -> torch.Tensor:
        """Last hidden states (B, N, hidden) of the text model.

        Args:
            embeds: (B, N, hidden). positions: (axes, B, N), explicit.
            mask: what the text model's attention takes, verbatim; None is plain causal without a past.
            cache: an object with the `update(keys, values, layer)` of a transformers cache, or None.
            tree: an `attention.TreePlan` when the tokens are a tree; the text model then attends by it.
        """

    @abstractmethod
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (..., vocabulary) of hidden states (..., hidden)."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled ids; control tokens other than a final stop token are spelled out."""

    @property
    @abstractmethod
    def text_config(self) -> Any:
        """The transformers configuration of the text model: layers, heads, attention implementation."""

    @property
    @abstractmethod
    def vision_modules(self) -> tuple[Any, ...]:
        """Modules whose weights shape a clip's features (tower and merger), adapters included."""
