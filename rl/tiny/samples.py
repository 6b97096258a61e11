"""From text with marks to training samples: token ids, features, loss weights and attention targets.

Design note. A sample is written as text; places in it are remembered as marks (character positions) and turned into
token positions once the whole text is tokenised exactly as at run time. Attention targets ("from the token before this
mark, look at those marks") make lookups learnable in minutes; they are auxiliary and unknown to the trained model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from closeup.agent.models.mrope import mrope_positions
from closeup.rl.tiny import vocabulary as v

VARYING = 8.0  # loss weight of tokens that differ between tasks; wording weighs 1


@dataclass(frozen=True)
class Guide:
    """In `layer`, `head` attends from token `query` to the tokens `sources`, evenly."""

    layer: int
    head: int
    query: int
    sources: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """ids and weights (N,), features (pads, D), positions (3, N), guides; weight i is for predicting token i."""

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    features: NDArray[np.float32]
    positions: NDArray[np.int64]
    guides: tuple[Guide, ...]


@dataclass
class Writer:
    """Collects the text of one sample."""

    tokenizer: Tokenizer
    width: int
    _segments: list[str] = field(default_factory=lambda: [""])
    _length: int = 0
    _learn: list[tuple[int, int, float]] = field(default_factory=list)
    _features: list[NDArray[np.float32]] = field(default_factory=list)
    _grids: list[tuple[int, int, int]] = field(default_factory=list)
    _guides: list[tuple[int, int, int, bool, tuple[int, ...]]] = field(default_factory=list)

    def add(self, text: str, weight: float = 0.0) -> int:
        """Append text whose tokens are learned with `weight`; returns the mark of its first character."""
        mark = self._length
        self._segments[-1] += text
        self._length += len(text)
        if weight and text:
            self._learn.append((mark, self._length, weight))
        return mark

    def cut(self) -> None:
        """Tokenise what follows on its own, as if generation had begun here."""
        self._segments.append("")

    def pads(self, features: NDArray[np.float32]) -> list[int]:
        """Append one vision block with these features (n, D), n square; returns a mark per pad."""
        count, side = len(features), 2 * round(len(features) ** 0.5)
        self.add("<|vision_start|>")
        marks = [self.add("<|video_pad|>") for _ in range(count)]
        self.add("<|vision_end|>")
        self._features.append(features)
        self._grids.append((1, side, side))
        return marks

    def guide(self, layer: int, head: int, mark: int, sources: Iterable[int], *, before: bool = False) -> None:
        """Attention target from the token at `mark` (or the one before it: the one that predicts it)."""
        self._guides.append((layer, head, mark, before, tuple(sources)))

    def finish(self) -> Sample:
        """Tokenise and resolve every mark."""
        ids: list[int] = []
        starts: list[int] = []
        offset = 0
        for segment in self._segments:
            encoding = self.tokenizer.encode(segment, add_special_tokens=False)
            ids += encoding.ids
            starts += [offset + start for start, _ in encoding.offsets]
            offset += len(segment)
        begins = np.array(starts)

        def token(mark: int) -> int:
            return int(np.searchsorted(begins, mark, side="right")) - 1

        weights = np.zeros(len(ids), dtype=np.float32)
        for start, stop, weight in self._learn:
            weights[token(start) : token(stop - 1) + 1] = weight
        positions = mrope_positions(
            ids, self._grids, pad_id_video=v.VIDEO_PAD, pad_id_image=v.IMAGE_PAD, tokens_per_second=2
        )
        blank = np.zeros((0, self.width), dtype=np.float32)
        features = np.concatenate(self._features) if self._features else blank
        guides = tuple(
            Guide(layer, head, token(mark) - before, tuple(token(s) for s in sources))
            for layer, head, mark, before, sources in self._guides
        )
        return Sample(np.array(ids), weights, features, positions, guides)


@dataclass(frozen=True)
class GuideBatch:
    """Targets of one head: queried tokens `rows` (B, G), and per (row, source) pair: sample, row, source, weight."""

    rows: Tensor
    sample: Tensor
    row: Tensor
    source: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Batch:
    """Samples padded to one length: ids, weights (B, N); positions (3, B, N); features (pads, D) in reading order.

    `guides` holds the attention targets per (layer, head).
    """

    ids: Tensor
    weights: Tensor
    positions: Tensor
    features: Tensor
    guides: dict[tuple[int, int], GuideBatch]


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad on the right."""
    longest = max(len(s.ids) for s in samples)
    ids = np.full((len(samples), longest), v.PAD)
    weights = np.zeros(ids.shape, dtype=np.float32)
    positions = np.zeros((3, *ids.shape), dtype=np.int64)
    found: dict[tuple[int, int], list[list[Guide]]] = {}
    for n, sample in enumerate(samples):
        size = len(sample.ids)
        ids[n, :size], weights[n, :size], positions[:, n, :size] = sample.ids, sample.weights, sample.positions
        for guide in sample.guides:
            found.setdefault((guide.layer, guide.head), [[] for _ in samples])[n].append(guide)
    features = torch.from_numpy(np.concatenate([s.features for s in samples]))
    guides = {key: _guides(lists) for key, lists in found.items()}
    return Batch(torch.from_numpy(ids), torch.from_numpy(weights), torch.from_numpy(positions), features, guides)


def _guides(lists: list[list[Guide]]) -> GuideBatch:
    rows = np.zeros((len(lists), max(len(guides) for guides in lists)), dtype=np.int64)
    entries = []
    for n, guides in enumerate(lists):
        for g, guide in enumerate(guides):
            rows[n, g] = guide.query
            entries += [(n, g, source, 1 / len(guide.sources)) for source in guide.sources]
    sample, row, source, weight = (torch.tensor(column) for column in zip(*entries, strict=True))
    return GuideBatch(torch.from_numpy(rows), sample, row, source, weight.float())
