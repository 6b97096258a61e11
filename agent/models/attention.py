"""Attention over a prefix tree: one function registered with transformers, several cores behind it.

The text model runs unchanged. A `TreePlan` travels as a keyword argument through its layers, so gradient checkpointing
recomputes with the plan it was run with, and two models or two trees never meet in a global.

Cores (all give the same numbers up to rounding; `dense` is the oracle)
- `dense`: one masked attention over all tokens; N x N mask.
- `split`: the first segment attends causally, all other tokens attend to everything under a mask; good when the
  branches together are short.
- `segment`: each segment attends to its path from the root; work and memory follow the paths. The general one.
- `flex`: FlexAttention with a block mask made from the rule below, for GPUs.

Invariant: token i sees token j exactly when `j <= i < last[j]` (depth-first order; `last[j]` ends the subtree below
j's segment), and all of the past, if there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from torch.nn.functional import scaled_dot_product_attention

ATTENTION = "closeup_tree"
Core = Literal["dense", "split", "segment", "flex"]
CORES: tuple[Core, ...] = ("dense", "split", "segment", "flex")
KeysValues = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens [start, end) without a fork; `parent` is a segment's index or -1; `last` ends the subtree below."""

    start: int
    end: int
    parent: int
    last: int


@dataclass(eq=False)
class TreePlan:
    """How the tokens of one tree attend.

    Attributes:
        segments: in depth-first order, together all N tokens.
        core: see the module.
        past: keys and values (1, kv heads, P, size) by layer, which every token sees: the prefix of two-phase training.
        collect: when given, each layer puts its keys and values here, by layer: what `past` is made from.
    """

    segments: Sequence[Segment]
    core: Core = "segment"
    past: dict[int, KeysValues] | None = None
    collect: dict[int, KeysValues] | None = None
    _made: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.core not in CORES:
            raise ValueError(f"core is one of {', '.join(CORES)}, got {self.core!r}")

    def visible(self, device: torch.device, begin: int = 0) -> torch.Tensor:
        """Bool (N - begin, P + N): which keys the tokens from `begin` on see. Made once per plan and device."""
        key = ("visible", device, begin)
        if key not in self._made:
            lasts = self._lasts(device)
            here = torch.arange(len(lasts), device=device)
            seen = (here <= here[begin:, None]) & (here[begin:, None] < lasts)
            past = 0 if self.past is None else next(iter(self.past.values()))[0].shape[2]
            self._made[key] = torch.nn.functional.pad(seen, (past, 0), value=True)
        found: torch.Tensor = self._made[key]
        return found

    def block_mask(self, device: torch.device) -> Any:
        """The rule as a FlexAttention block mask. Made once per plan and device."""
        from torch.nn.attention.flex_attention import create_block_mask

        key = ("block", device)
        if key not in self._made:
            lasts = self._lasts(device)
            count = len(lasts)
            past = 0 if self.past is None else next(iter(self.past.values()))[0].shape[2]
            padded = torch.nn.functional.pad(lasts + past, (past, 0), value=past + count)

            def rule(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
                return (key <= query + past) & (query + past < padded[key])

            self._made[key] = create_block_mask(
                rule, None, None, count, past + count, device=device, _compile=device.type == "cuda"
            )
        return self._made[key]

    def routes(self) -> list[list[tuple[int, int]]]:
        """Per segment, the token ranges above it from the root down, neighbours joined."""
        if "routes" not in self._made:
            routes: list[list[tuple[int, int]]] = []
            for segment in self.segments:
                above: list[tuple[int, int]] = []
                if segment.parent >= 0:
                    parent = self.segments[segment.parent]
                    above = list(routes[segment.parent])
                    if above and above[-1][1] == parent.start:
                        above[-1] = (above[-1][0], parent.end)
                    else:
                        above.append((parent.start, parent.end))
                routes.append(above)
            self._made["routes"] = routes
        found: list[list[tuple[int, int]]] = self._made["routes"]
        return found

    def _lasts(self, device: torch.device) -> torch.Tensor:
        lengths = torch.tensor([s.end - s.start for s in self.segments], device=device)
        return torch.tensor([s.last for s in self.segments], device=device).repeat_interleave(lengths)


def tree_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    tree: TreePlan | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a transformers layer over the tokens of a tree; `attention_mask` is not used.

    Args:
        query: (1, heads, N, size). key, value: (1, kv heads, N, size), rotary positions applied.

    Returns:
        (1, N, heads, size), and no weights.

    Raises:
        ValueError: no plan, more than one row, or another number of tokens than the plan has.
    """
    if tree is None:
        raise ValueError("tree attention needs a TreePlan: pass tree=… to Adapter.hidden")
    if query.shape[0] != 1:
        raise ValueError(f"a tree is a batch of one, got {query.shape[0]} rows")
    if tree.segments[-1].end != query.shape[2]:
        raise ValueError(f"the tree has {tree.segments[-1].end} tokens, the layer got {query.shape[2]}")
    layer = module.layer_idx
    if tree.collect is not None and layer not in tree.collect:  # a recomputation must not replace the graph's own
        tree.collect[layer] = (key, value)
    if tree.past is not None:
        before_keys, before_values = tree.past[layer]
        key, value = torch.cat([before_keys, key], dim=2), torch.cat([before_values, value], dim=2)
    out = _CORES[tree.core](tree, query, key, value, scaling)
    return out.transpose(1, 2).contiguous(), None


def _sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    mask: torch.Tensor | None = None,
    *,
    causal: bool = False,
) -> torch.Tensor:
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=grouped
    )


def _dense(
    plan: TreePlan, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    return _sdpa(query, key, value, scaling, plan.visible(query.device))


def _split(
    plan: TreePlan, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    first, count = plan.segments[0].end, query.shape[2]
    if plan.past is not None:  # no segment is plainly causal: all see the past
        return _dense(plan, query, key, value, scaling)
    trunk = _sdpa(query[:, :, :first], key[:, :, :first], value[:, :, :first], scaling, causal=True)
    if first == count:
        return trunk
    rest = _sdpa(query[:, :, first:], key, value, scaling, plan.visible(query.device, first))
    return torch.cat([trunk, rest], dim=2)


def _segment(
    plan: TreePlan, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    past = key.shape[2] - query.shape[2]
    pieces = []
    for segment, above in zip(plan.segments, plan.routes(), strict=True):
        count = segment.end - segment.start
        ranges = [(0, past)] if past else []
        for begin, end in (*above, (segment.start, segment.end)):
            if ranges and ranges[-1][1] == begin + past:
                ranges[-1] = (ranges[-1][0], end + past)
            else:
                ranges.append((begin + past, end + past))
        keys, values = (_gather(tensor, ranges) for tensor in (key, value))
        length = keys.shape[2]
        mine = query[:, :, segment.start : segment.end]
        if length == count:
            pieces.append(_sdpa(mine, keys, values, scaling, causal=True))
        else:
            mask = _lower_right(count, length, query.device) if count > 1 else None
            pieces.append(_sdpa(mine, keys, values, scaling, mask))
    return torch.cat(pieces, dim=2)


def _gather(tensor: torch.Tensor, ranges: Sequence[tuple[int, int]]) -> torch.Tensor:
    if len(ranges) == 1:
        return tensor[:, :, ranges[0][0] : ranges[0][1]]
    return torch.cat([tensor[:, :, begin:end] for begin, end in ranges], dim=2)


def _lower_right(count: int, length: int, device: torch.device) -> torch.Tensor:
    """Bool (count, length): the last `count` of `length` tokens, each seeing itself and all before."""
    return torch.ones(count, length, dtype=torch.bool, device=device).tril_(length - count)


def _flex(
    plan: TreePlan, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    run = _flex_attention(query.device.type == "cuda")
    grouped = query.shape[1] != key.shape[1]
    out: torch.Tensor = run(
        query, key, value, block_mask=plan.block_mask(query.device), scale=scaling, enable_gqa=grouped
    )
    return out


@cache
def _flex_attention(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention


_CORES = {"dense": _dense, "split": _split, "segment": _segment, "flex": _flex}


@contextmanager
def attention_of_trees(text_config: Any) -> Iterator[None]:
    """Within it the text model of this configuration attends by `tree_attention`; afterwards as before.

    Backward passes that recompute (gradient checkpointing) must lie within it too.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, tree_attention)
    before = text_config._attn_implementation
    text_config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        text_config._attn_implementation = before
