"""`TreeBatch`: the rows of a group merged where token, media and position agree, so that each is forwarded once.

Tokens lie in depth-first order, in segments: maximal runs without a fork. A token sees the earlier tokens of its own
segment and all of the segments above; in this order that is `j <= i < last[j]`, with `last[j]` the end of the subtree
below j's segment. Forwards are merged, targets never are: the last shared token may predict G different tokens, and a
token that G rollouts sampled alike is a target G times, each with its own advantage.

Invariants
1. For each row, the tokens on its path are the row's ids, positions and features, in order (`paths`).
2. Two tokens are one only if id, clip (by its pixels), place in the clip and position agree, and so do all before them.
3. `ids[pads]` are the pads, `feature[k]` names the row of the distinct clips' concatenated features that stands at
   `pads[k]`; both have the same length.

Sources: prefix trees for reinforcement learning as in TRL's AsyncGRPO and AReaL (text only); with media: this project.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from closeup.agent.models.adapter import Adapter, Media
from closeup.agent.models.attention import Segment
from closeup.rl.rows import Row

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """M (source, target) pairs: the hidden state of token `source` predicts `token`. All arrays (M,).

    Attributes:
        source: index into the tree's tokens. token: the id that was sampled.
        row: index of the row; rollout, step: which message of which trajectory; offset: place in that message.
        logprob: float32, what the sampling policy recorded; NaN when it recorded nothing.
    """

    source: Ints
    token: Ints
    row: Ints
    rollout: Ints
    step: Ints
    offset: Ints
    logprob: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.source)

    def take(self, index: Ints) -> Targets:
        """The pairs at `index`."""
        return Targets(*(getattr(self, name)[index] for name in self.__slots__))


@dataclass(frozen=True, slots=True, eq=False)
class TreeBatch:
    """A group's rows as one tree (or forest). See the module's invariants.

    Attributes:
        ids: int64 (N,). positions: int64 (axes, N), each computed along its own path.
        segments: in depth-first order. last: int64 (N,), see above.
        media: the distinct clips. pads, feature: int64 (F,), see invariant 3.
        targets: what is learnt. paths: per row, its tokens' places in the tree.
    """

    ids: Ints
    positions: Ints
    segments: tuple[Segment, ...]
    last: Ints
    media: tuple[Media, ...]
    pads: Ints
    feature: Ints
    targets: Targets
    paths: tuple[Ints, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def row_tokens(self) -> int:
        """Tokens that separate forwards of the rows would read."""
        return sum(len(path) for path in self.paths)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.paths)


def build_tree(rows: Sequence[Row], adapter: Adapter) -> TreeBatch:
    """Merge rows into a tree.

    Raises:
        ValueError: no rows, or two clips of one digest whose features differ in number (a bug of the adapter).
    """
    if not rows:
        raise ValueError("a tree needs at least one row; a group whose episodes all failed has nothing to learn from")
    media, keys = _keys(rows, adapter)
    segments, pieces, paths = _grow(keys)
    lasts = np.concatenate([np.full(s.end - s.start, s.last, dtype=np.int64) for s in segments])
    packed = np.concatenate([keys[row][begin:end] for row, begin, end in pieces])
    pads = np.flatnonzero(packed[:, 1] >= 0)
    return TreeBatch(
        ids=np.ascontiguousarray(packed[:, 0]),
        positions=np.ascontiguousarray(packed[:, 2:].T),
        segments=tuple(segments),
        last=lasts,
        media=media,
        pads=pads,
        feature=np.ascontiguousarray(packed[pads, 1]),
        targets=_targets(rows, paths),
        paths=tuple(paths),
    )


def _keys(rows: Sequence[Row], adapter: Adapter) -> tuple[tuple[Media, ...], list[Ints]]:
    """The distinct clips, and per row (N, 2 + axes): id, feature row (-1 for text), position."""
    first: dict[str, tuple[Media, int]] = {}
    total = 0
    for row in rows:
        for item in row.media:
            if item.key not in first:
                first[item.key] = (item, total)
                total += item.record.tokens
            elif first[item.key][0].record.tokens != item.record.tokens:
                raise ValueError(f"two clips with the pixels {item.key} have different numbers of tokens")
    keys = []
    for row in rows:
        feature = np.full(len(row.ids), -1, dtype=np.int64)
        wanted = [np.arange(item.record.tokens) + first[item.key][1] for item in row.media]
        pads = np.flatnonzero(np.isin(row.ids, adapter.pad_ids))
        count = sum(len(block) for block in wanted)
        if count != len(pads):
            raise ValueError(f"a row has {len(pads)} pads and its clips have {count} feature rows")
        if count:
            feature[pads] = np.concatenate(wanted)
        keys.append(np.concatenate([row.ids[:, None], feature[:, None], row.positions.T], axis=1))
    return tuple(item for item, _ in first.values()), keys


def _grow(keys: Sequence[Ints]) -> tuple[list[Segment], list[tuple[int, int, int]], list[Ints]]:
    """Segments in depth-first order, the (row, begin, end) each is copied from, and each row's path."""
    found: list[tuple[int, int, int, int]] = []  # parent, row, begin, end
    routes: list[list[int]] = [[] for _ in keys]
    stack: list[tuple[list[int], int, int]] = [(group, 0, -1) for group in reversed(_fork(keys, range(len(keys)), 0))]
    while stack:
        group, begin, parent = stack.pop()
        model = keys[group[0]]
        end = min(_agree(model, keys[row], begin) for row in group)
        for row in group:
            routes[row].append(len(found))
        rest = [row for row in group if len(keys[row]) > end]
        stack += [(fork, end, len(found)) for fork in reversed(_fork(keys, rest, end))]
        found.append((parent, group[0], begin, end))
    starts = np.concatenate([[0], np.cumsum([end - begin for _, _, begin, end in found])])
    lasts = [int(stop) for stop in starts[1:]]
    for index in range(len(found) - 1, -1, -1):
        parent = found[index][0]
        if parent >= 0:
            lasts[parent] = max(lasts[parent], lasts[index])
    segments = [
        Segment(int(starts[index]), int(starts[index + 1]), parent, lasts[index])
        for index, (parent, _, _, _) in enumerate(found)
    ]
    paths = [np.concatenate([np.arange(segments[i].start, segments[i].end) for i in route]) for route in routes]
    return segments, [(row, begin, end) for _, row, begin, end in found], paths


def _fork(keys: Sequence[Ints], rows: Sequence[int], at: int) -> list[list[int]]:
    """Rows by their token at `at`, in order of first appearance."""
    forks: dict[bytes, list[int]] = {}
    for row in rows:
        forks.setdefault(keys[row][at].tobytes(), []).append(row)
    return list(forks.values())


def _agree(one: Ints, other: Ints, begin: int) -> int:
    """Where two rows that agree up to `begin` stop agreeing."""
    size = min(len(one), len(other))
    differs = np.flatnonzero((one[begin:size] != other[begin:size]).any(axis=1))
    return begin + int(differs[0]) if len(differs) else size


def _targets(rows: Sequence[Row], paths: Sequence[Ints]) -> Targets:
    columns: list[list[Ints]] = [[] for _ in range(6)]
    logprobs: list[NDArray[np.float32]] = []
    for index, (row, path) in enumerate(zip(rows, paths, strict=True)):
        for span in row.spans:
            count = span.end - span.begin
            parts = (
                path[span.begin - 1 : span.end - 1],
                row.ids[span.begin : span.end],
                np.full(count, index),
                np.full(count, row.rollout),
                np.full(count, span.step),
                np.arange(count),
            )
            for column, part in zip(columns, parts, strict=True):
                column.append(part)
            logprobs.append(np.full(count, np.nan, dtype=np.float32) if span.logprobs is None else span.logprobs)
    source, token, row_of, rollout, step, offset = (np.concatenate(column) for column in columns)
    return Targets(source, token, row_of, rollout, step, offset, np.concatenate(logprobs))
