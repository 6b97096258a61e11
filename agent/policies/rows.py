"""The generation loop: contexts in, sampled ids out, for a batch of rows of different lengths.

A row brings its whole context and, when it has spoken before, the keys and values of the part the model has already
read; only the rest is read (prefill), then one token per row and step is drawn until every row has ended. Positions
are passed explicitly at every forward.

Invariants
1. A row's result does not depend on the other rows, up to the rounding of differently shaped matrix products.
2. After a row has ended, `kept` holds the keys and values of its context and output except the last sampled token,
   which the model has not read yet; the next turn reads it first.
3. Rows with the same context (the rollouts of one task at their first turn) are read once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from closeup.agent.models.adapter import Adapter, Media
from closeup.agent.policies.base import Finish
from closeup.agent.policies.rowcache import RowCache
from closeup.agent.policies.sampler import Sampler

TOKENS_PER_FORWARD = 1 << 14
MASK_NUMBERS = 1 << 25  # numbers of an attention mask built at once


@dataclass(slots=True, eq=False)
class Row:
    """One message to be written.

    Attributes:
        ids: the whole context. media: its clips, in order.
        kept: keys and values of the first ids, (layers, 2, kv heads, N, size), or None.
        unread: index in `media` of the first clip whose pads lie behind `kept`.
        limit: most tokens to draw.
        on_id: called with each drawn id that is not a stop token.
        drawn, logprobs, finish: the result.
    """

    ids: list[int]
    media: list[Media]
    kept: torch.Tensor | None
    unread: int
    limit: int
    on_id: Callable[[int], None] | None = None
    drawn: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Finish | None = None

    @property
    def read(self) -> int:
        """Ids the model has read already."""
        return 0 if self.kept is None else self.kept.shape[3]


def write_rows(
    adapter: Adapter,
    rows: Sequence[Row],
    sampler: Sampler,
    features: Callable[[Sequence[Media]], list[torch.Tensor]],
    *,
    cancel: threading.Event | None = None,
) -> None:
    """Fill in `drawn`, `logprobs`, `finish` and `kept` of every row. `features` gives clips' features, in order."""
    device = adapter.model.device
    cache = _cache_for(adapter, rows)
    for index, row in enumerate(rows):
        if row.kept is not None:
            cache.load(index, row.kept)
    hidden, following = _prefill(adapter, rows, cache, features)
    lengths = torch.tensor([len(row.ids) for row in rows], device=device)
    places = list(range(len(rows)))  # places[j]: the row that sits at j in the cache
    live = list(places)  # cache positions of rows that still write
    step = 0
    while True:
        if cancel is not None and cancel.is_set():
            for j in live:
                rows[places[j]].finish = "cancelled"
        else:
            scores = adapter.logits(hidden if len(live) == len(places) else hidden[live])
            ids, logprobs = sampler(scores, [places[j] for j in live], step)
            for j, token, logprob in zip(live, ids, logprobs, strict=True):
                _take(rows[places[j]], token, logprob, adapter.stop_ids)
        for j in live:
            row = rows[places[j]]
            if row.finish is not None:  # all but the last drawn token have been read
                row.kept = cache.read(j, len(row.ids) + max(len(row.drawn) - 1, 0))
        live = [j for j in live if rows[places[j]].finish is None]
        if not live:
            return
        if 2 * len(live) <= len(places):  # ended rows are carried along until they are half of the batch
            cache.keep(live)
            lengths, following = lengths[live], following[live]
            places, live = [places[j] for j in live], list(range(len(live)))
        hidden = _step(adapter, rows, cache, places, live, lengths, following)
        step += 1
        moved = torch.tensor([int(rows[p].finish is None) for p in places], device=device)
        lengths, following = lengths + moved, following + moved


def _take(row: Row, token: int, logprob: float, stops: Sequence[int]) -> None:
    row.drawn.append(token)
    row.logprobs.append(logprob)
    if token in stops:
        row.finish = "stop"
        return
    if row.on_id is not None:
        row.on_id(token)
    if len(row.drawn) >= row.limit:
        row.finish = "length"


def _cache_for(adapter: Adapter, rows: Sequence[Row]) -> RowCache:
    config = adapter.text_config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    capacity = max(len(row.ids) + row.limit for row in rows)
    like = adapter.model.get_input_embeddings().weight
    # Prefill pads a group's rows to its longest; what is written behind a row's end needs a place too.
    capacity += max(len(row.ids) - row.read for row in rows)
    return RowCache(config.num_hidden_layers, len(rows), config.num_key_value_heads, capacity, size, like=like)


def _step(
    adapter: Adapter,
    rows: Sequence[Row],
    cache: RowCache,
    places: list[int],
    live: list[int],
    lengths: torch.Tensor,
    following: torch.Tensor,
) -> torch.Tensor:
    """Read each row's last token; hidden states (rows in the cache, hidden)."""
    tokens = torch.tensor([rows[p].drawn[-1] for p in places], device=lengths.device).unsqueeze(1)
    spans = [len(rows[places[j]].ids) + len(rows[places[j]].drawn) for j in live]
    cache.aim(None, lengths.unsqueeze(1), max(spans))
    embeds = adapter.model.get_input_embeddings()(tokens)
    mask = None
    if min(spans) != max(spans) or len(live) != len(places):
        mask = _mask(lengths.unsqueeze(1), max(spans), embeds.dtype)
    positions = following.view(1, -1, 1).expand(adapter.axes, -1, 1)
    return adapter.hidden(embeds, positions, mask=mask, cache=cache)[:, 0]


def _mask(last: torch.Tensor, visible: int, dtype: torch.dtype) -> torch.Tensor:
    """Numbers to add to scores, (B, 1, N, visible): 0 up to entry `last` (B, N) inclusive, -inf behind it."""
    hidden = torch.arange(visible, device=last.device) > last.unsqueeze(-1)
    return torch.zeros(hidden.shape, dtype=dtype, device=last.device).masked_fill_(hidden, -torch.inf).unsqueeze(1)


def _prefill(
    adapter: Adapter,
    rows: Sequence[Row],
    cache: RowCache,
    features: Callable[[Sequence[Media]], list[torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read what each row has not read. Last hidden states (B, hidden) and the position that follows each row (B,)."""
    device = adapter.model.device
    first_with: dict[object, int] = {}
    like = [
        index if row.read else first_with.setdefault((tuple(row.ids), tuple(m.key for m in row.media)), index)
        for index, row in enumerate(rows)
    ]
    own = sorted(set(like), key=lambda i: (rows[i].read > 0, len(rows[i].ids) - rows[i].read))
    wanted = [item for i in own for item in rows[i].media[rows[i].unread :]]
    found = iter(features(wanted))
    embeds: dict[int, torch.Tensor] = {}
    positions: dict[int, torch.Tensor] = {}
    for i in own:
        row = rows[i]
        clips = [next(found) for _ in row.media[row.unread :]]
        embeds[i] = adapter.embed(torch.tensor(row.ids[row.read :], device=device), clips)
        positions[i] = torch.from_numpy(np.ascontiguousarray(adapter.positions(row.ids, row.media))).to(device)
    last: dict[int, torch.Tensor] = {}
    for group in _groups(rows, own):
        _read_group(adapter, rows, cache, group, embeds, positions, last)
    for index, source in enumerate(like):
        if source != index:
            cache.copy(source, index, len(rows[index].ids))
    following = torch.stack([positions[source].max() + 1 for source in like])
    return torch.stack([last[source] for source in like]), following


def _groups(rows: Sequence[Row], own: Sequence[int]) -> list[list[int]]:
    """Rows to read together: like with like (with or without a past), padded tokens bounded."""
    groups: list[list[int]] = []
    for i in own:
        count = len(rows[i].ids) - rows[i].read
        fits = groups and (rows[groups[-1][0]].read > 0) == (rows[i].read > 0)
        if fits and count * (len(groups[-1]) + 1) <= TOKENS_PER_FORWARD:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _read_group(
    adapter: Adapter,
    rows: Sequence[Row],
    cache: RowCache,
    group: list[int],
    embeds: dict[int, torch.Tensor],
    positions: dict[int, torch.Tensor],
    last: dict[int, torch.Tensor],
) -> None:
    device = adapter.model.device
    counts = [len(embeds[i]) for i in group]
    longest, past = max(counts), [rows[i].read for i in group]
    padded = torch.nn.utils.rnn.pad_sequence([embeds[i] for i in group], batch_first=True)
    where = torch.nn.utils.rnn.pad_sequence([positions[i][:, rows[i].read :].T for i in group], batch_first=True)
    where = where.permute(2, 0, 1)  # (axes, rows, tokens)
    start = torch.tensor(past, device=device).unsqueeze(1)
    target = torch.tensor(group, device=device)
    begin = 0
    while begin < longest:
        plain = begin == 0 and not any(past)
        most = TOKENS_PER_FORWARD if plain else max(1, MASK_NUMBERS // (len(group) * (max(past) + longest)))
        end = min(longest, begin + most)
        slots = start + torch.arange(begin, end, device=device)
        visible = max(past) + end
        cache.aim(target, slots, visible)
        mask = None if plain else _mask(slots, visible, padded.dtype)
        hidden = adapter.hidden(padded[:, begin:end], where[:, :, begin:end], mask=mask, cache=cache)
        for g, (i, count) in enumerate(zip(group, counts, strict=True)):
            if begin < count <= end:
                last[i] = hidden[g, count - 1 - begin]
        begin = end
