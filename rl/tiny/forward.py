"""The stock model's forward pass over the stock parameters, written out for batches of many small clips on a CPU.

Design note. Stock Qwen2.5-VL code loops over clips in Python and casts weights at every use; here clips of one size are
a batch dimension and weights are cast to bfloat16 once per step, about five times faster on two cores with bfloat16
units. It also returns attention logits of chosen heads, which training uses as an auxiliary target.

Invariants
1. Equal to the stock modules on the same parameters and positions (a test compares them).
2. All vision layers attend within one temporal pair (`fullatt_block_indexes` holds every layer).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Weights = Mapping[str, Tensor]
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PATCH, MERGE = 14, 2


@dataclass(frozen=True)
class Shape:
    """The numbers the forward pass needs."""

    layers: int
    heads: int
    kv_heads: int
    vision_layers: int
    vision_heads: int
    sections: tuple[int, int, int]
    theta: float
    eps: float = 1e-6


def weights_of(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Parameters by short name ("visual.…", "text.…"), cast to `dtype` (differentiably)."""
    names = {"model.visual.": "visual.", "model.language_model.": "text."}
    out = {}
    for name, value in model.named_parameters():
        for long, short in names.items():
            if name.startswith(long):
                out[short + name.removeprefix(long)] = value.to(dtype)
    return out


def patchify(pairs: NDArray[np.uint8] | Tensor) -> Tensor:
    """Pixels to patches in the stock order, normalised.

    Args:
        pairs: uint8 (B, 2, H, W, 3), H and W multiples of 28.

    Returns:
        float32 (B, H/14 * W/14, 1176): merged 2 x 2 blocks of patches in row order.
    """
    x = torch.as_tensor(pairs)
    batch, two, height, width, _ = x.shape
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    x = (x.to(torch.float32) / 255 - mean) / std
    rows, columns = height // PATCH // MERGE, width // PATCH // MERGE
    x = x.reshape(batch, two, rows, MERGE, PATCH, columns, MERGE, PATCH, 3)
    x = x.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)  # rows, columns, merge row, merge column, channel, time, y, x
    return x.reshape(batch, rows * columns * MERGE * MERGE, 3 * two * PATCH * PATCH)


def _patch_positions(side: int) -> Tensor:
    grid = np.arange(side)
    y, x = (v.reshape(side // MERGE, MERGE, side // MERGE, MERGE) for v in np.meshgrid(grid, grid, indexing="ij"))
    return torch.from_numpy(np.stack([v.transpose(0, 2, 1, 3).reshape(-1) for v in (y, x)], axis=1))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin


def vision(weights: Weights, shape: Shape, patches: Tensor) -> Tensor:
    """Features of B square pairs: patches (B, n, 1176) to merged tokens (B, n / 4, text width)."""
    w = weights
    dtype = w["visual.patch_embed.proj.weight"].dtype
    proj = w["visual.patch_embed.proj.weight"]
    x = F.linear(patches.to(dtype), proj.reshape(proj.shape[0], -1))
    batch, n, width = x.shape
    head = width // shape.vision_heads
    freqs = 1.0 / (10000.0 ** (torch.arange(0, head // 2, 2, dtype=torch.float32) / (head // 2)))
    angles = (_patch_positions(round(n**0.5))[..., None].float() * freqs).reshape(n, -1)
    cos, sin = (torch.cat([v, v], dim=-1).to(dtype) for v in (angles.cos(), angles.sin()))
    for i in range(shape.vision_layers):
        p = f"visual.blocks.{i}."
        y = F.rms_norm(x, (width,), w[p + "norm1.weight"], shape.eps)
        qkv = F.linear(y, w[p + "attn.qkv.weight"], w[p + "attn.qkv.bias"])
        q, k, v = qkv.view(batch, n, 3, shape.vision_heads, head).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v)
        y = y.transpose(1, 2).reshape(batch, n, width)
        x = x + F.linear(y, w[p + "attn.proj.weight"], w[p + "attn.proj.bias"])
        y = F.rms_norm(x, (width,), w[p + "norm2.weight"], shape.eps)
        gate = F.silu(F.linear(y, w[p + "mlp.gate_proj.weight"], w[p + "mlp.gate_proj.bias"]))
        y = gate * F.linear(y, w[p + "mlp.up_proj.weight"], w[p + "mlp.up_proj.bias"])
        x = x + F.linear(y, w[p + "mlp.down_proj.weight"], w[p + "mlp.down_proj.bias"])
    x = F.rms_norm(x, (width,), w["visual.merger.ln_q.weight"], shape.eps).reshape(batch, n // 4, 4 * width)
    x = F.gelu(F.linear(x, w["visual.merger.mlp.0.weight"], w["visual.merger.mlp.0.bias"]))
    return F.linear(x, w["visual.merger.mlp.2.weight"], w["visual.merger.mlp.2.bias"])


def rotary(shape: Shape, positions: Tensor, head: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, 1, N, head) of three-axis positions (3, B, N)."""
    freqs = 1.0 / (shape.theta ** (torch.arange(0, head, 2, dtype=torch.float32) / head))
    angles = positions[..., None].float() * freqs
    parts = [part[i % 3] for i, part in enumerate(torch.split(angles, list(shape.sections), dim=-1))]
    angle = torch.cat(parts, dim=-1)
    angle = torch.cat([angle, angle], dim=-1)[:, None]
    return angle.cos().to(dtype), angle.sin().to(dtype)


Watcher = Callable[[int, Tensor, Tensor], None]


def text(
    weights: Weights,
    shape: Shape,
    x: Tensor,
    positions: Tensor,
    *,
    watch: Watcher | None = None,
    past: list[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Final hidden states (B, N, D) of input embeddings x (B, N, D) at positions (3, B, N), causal, right-padded.

    Args:
        watch: called as `watch(layer, queries, keys)` with rotated queries (B, heads, N, head) and keys
            (B, kv, N, head).
        past: keys and values per layer to extend in place (batch of one; empty list at the start).
    """
    w = weights
    batch, n, width = x.shape
    head = width // shape.heads
    cos, sin = rotary(shape, positions, head, x.dtype)
    for i in range(shape.layers):
        p = f"text.layers.{i}."
        y = F.rms_norm(x, (width,), w[p + "input_layernorm.weight"], shape.eps)
        q, k, v = (
            F.linear(y, w[f"{p}self_attn.{name}_proj.weight"], w[f"{p}self_attn.{name}_proj.bias"])
            .view(batch, n, -1, head)
            .transpose(1, 2)
            for name in "qkv"
        )
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        if watch is not None:
            watch(i, q, k)
        causal, mask = True, None
        if past is not None:
            if len(past) <= i:
                past.append((k, v))
            else:
                old = past[i][0].shape[2]
                k, v = torch.cat([past[i][0], k], dim=2), torch.cat([past[i][1], v], dim=2)
                past[i] = (k, v)
                causal, mask = False, torch.ones(n, old + n, dtype=torch.bool).tril(old)
        group = shape.heads // shape.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        x = x + F.linear(y.transpose(1, 2).reshape(batch, n, width), w[p + "self_attn.o_proj.weight"])
        y = F.rms_norm(x, (width,), w[p + "post_attention_layernorm.weight"], shape.eps)
        y = F.silu(F.linear(y, w[p + "mlp.gate_proj.weight"])) * F.linear(y, w[p + "mlp.up_proj.weight"])
        x = x + F.linear(y, w[p + "mlp.down_proj.weight"])
    return F.rms_norm(x, (width,), w["text.norm.weight"], shape.eps)


def logits(weights: Weights, hidden: Tensor) -> Tensor:
    """Next-token logits (…, vocabulary) of hidden states (…, D); the embedding is tied."""
    return F.linear(hidden, weights["text.embed_tokens.weight"])


def encode_pairs(weights: Weights, shape: Shape, pairs: NDArray[np.uint8], *, chunk: int = 512) -> Tensor:
    """Features (B, tokens, D) float32 of uint8 pairs (B, 2, H, W, 3), without gradients, `chunk` pairs at a time."""
    with torch.no_grad():
        parts = [vision(weights, shape, patchify(pairs[i : i + chunk])).float() for i in range(0, len(pairs), chunk)]
    return torch.cat(parts)


def as_pairs(frames: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Frames (T, H, W, 3) as temporal pairs (ceil(T / 2), 2, H, W, 3); a last odd frame is repeated."""
    array = np.asarray(frames)
    if len(array) % 2:
        array = np.concatenate([array, array[-1:]])
    return array.reshape(len(array) // 2, 2, *array.shape[1:])
