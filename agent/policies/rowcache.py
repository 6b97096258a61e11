"""Keys and values of a batch whose rows have contexts of different lengths, and the attention that reads them.

Rows are aligned to the left: entry j of a row is its token j. New tokens of a row are written from its own length on,
so rows never have to be shifted, and what lies behind a row's length is masked until it is overwritten. The stock
text model runs unchanged: this object stands where its cache would, and the attention function below is chosen in its
configuration for the time of a generation.

Invariant: buffers are zero before they are written, so a masked entry contributes exactly nothing (0 x 0, never 0 x
NaN).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

ATTENTION = "closeup_rows"


class RowCache:
    """Keys and values (layers, 2, rows, kv heads, capacity, head size) of up to `capacity` tokens per row."""

    def __init__(self, layers: int, rows: int, heads: int, capacity: int, size: int, *, like: torch.Tensor) -> None:
        self.data = like.new_zeros((layers, 2, rows, heads, capacity, size))
        self._at: tuple[torch.Tensor, torch.Tensor] | None = None
        self._rows: torch.Tensor | None = None
        self._visible = 0

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.data.shape[2]

    @property
    def capacity(self) -> int:
        """Tokens a row can hold."""
        return self.data.shape[4]

    def aim(self, rows: torch.Tensor | None, slots: torch.Tensor, visible: int) -> None:
        """Say where the next forward's keys go.

        Args:
            rows: (B,) the rows it is for; None = all, in order.
            slots: (B, N) entry of each new token in its row.
            visible: entries from the front that attention gets to see.
        """
        at = torch.arange(self.rows, device=slots.device) if rows is None else rows
        self._at, self._rows, self._visible = (at.unsqueeze(1), slots), rows, visible

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values (B, kv heads, N, size) of a layer; give back all that is visible, of the same rows."""
        assert self._at is not None, "aim() comes first"
        row, slot = self._at
        found = []
        for kind, new in enumerate((keys, values)):
            store = self.data[layer, kind]
            store[row, :, slot] = new.transpose(1, 2)
            shown = store[:, :, : self._visible]
            found.append(shown if self._rows is None else shown[self._rows])
        return found[0], found[1]

    def copy(self, source: int, target: int, length: int) -> None:
        """Make a row's first `length` entries those of another."""
        self.data[:, :, target, :, :length] = self.data[:, :, source, :, :length]

    def load(self, row: int, kept: torch.Tensor) -> None:
        """Put back what `read` gave: (layers, 2, kv heads, N, size)."""
        self.data[:, :, row, :, : kept.shape[3]] = kept

    def read(self, row: int, length: int) -> torch.Tensor:
        """A copy of a row's first `length` entries: (layers, 2, kv heads, length, size)."""
        return self.data[:, :, row, :, :length].clone()

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these, which become 0, 1, …"""
        self.data = self.data[:, :, rows]


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a transformers layer: one query token per row in grouped form, anything else as PyTorch does it.

    Args:
        query: (B, heads, N, size). key, value: (B, kv heads, S, size).
        attention_mask: (B, 1, N, S) numbers added to the scores; None = causal without a past (N > 1), all visible (1).

    Returns:
        (B, N, heads, size), and no weights.
    """
    batch, heads, count, size = query.shape
    groups, length = key.shape[1], key.shape[2]
    if count > 1:
        out = torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_mask,
            scale=scaling,
            is_causal=attention_mask is None,
            enable_gqa=groups != heads,
        )
        return out.transpose(1, 2).contiguous(), None
    # One token: the heads of a group share their keys, so a group is one small matrix product and nothing is repeated.
    scale = size**-0.5 if scaling is None else scaling
    grouped = query.reshape(batch * groups, heads // groups, size)
    flat = key.reshape(batch * groups, length, size)
    if attention_mask is None:
        scores = torch.bmm(grouped, flat.transpose(1, 2)) * scale
    else:
        bias = attention_mask.expand(batch, groups, 1, length).reshape(batch * groups, 1, length)
        scores = torch.baddbmm(bias, grouped, flat.transpose(1, 2), alpha=scale)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    out = torch.bmm(weights, value.reshape(batch * groups, length, size))
    return out.view(batch, 1, heads, size), None


@contextmanager
def attention_of_rows(text_config: Any) -> Iterator[None]:
    """Within it, the text model of this configuration attends by `attend`; afterwards as before."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
    before = text_config._attn_implementation
    text_config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        text_config._attn_implementation = before
