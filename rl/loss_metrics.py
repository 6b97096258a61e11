"""What a loss reports beside its value: sums, counts and extremes that add up over calls, micro-batches and ranks.

`measure` makes them for one call, `combine` adds calls up, `summary` turns the total into means under TRL's names.

Invariant: the combined metrics of disjoint parts of a batch are those of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Metrics = dict[str, float]
"""Sums and counts by name; names that end in `/min` and `/max` are extremes."""

_MEANS = {
    "ratio/sum": "ratio/mean",
    "kl/sum": "kl",
    "nll/sum": "nll",
    "clip_ratio/low/count": "clip_ratio/low_mean",
    "clip_ratio/high/count": "clip_ratio/high_mean",
    "sampling/importance_sampling_ratio/sum": "sampling/importance_sampling_ratio/mean",
    "sampling/sampling_logp_difference/sum": "sampling/sampling_logp_difference/mean",
    "sampling/unknown/count": "sampling/unknown",
}
_EXTREMES = (
    "ratio/min",
    "ratio/max",
    "sampling/importance_sampling_ratio/min",
    "sampling/importance_sampling_ratio/max",
    "sampling/sampling_logp_difference/max",
)


def measure(counted: Tensor, columns: Mapping[str, Tensor | None], flags: Mapping[str, Tensor]) -> Metrics:
    """Sum and extremes of each column and the count of each flag over the counted pairs, in one read from the device.

    Args:
        counted: bool (M,). columns: numbers (M,) by name; None is left out. flags: bool (M,) by name.

    Returns:
        `tokens` (how many are counted), `<column>/sum`, `<column>/min`, `<column>/max`, `<flag>/count`; no extremes of
        nothing.
    """
    names, numbers = ["tokens"], [counted.sum()]
    for name, column in columns.items():
        if column is None:
            continue
        names.append(f"{name}/sum")
        numbers.append(column.masked_fill(~counted, 0.0).sum())
        if len(column):
            names += [f"{name}/min", f"{name}/max"]
            numbers += [column.masked_fill(~counted, math.inf).amin(), column.masked_fill(~counted, -math.inf).amax()]
    for name, flag in flags.items():
        names.append(f"{name}/count")
        numbers.append((flag & counted).sum())
    values = torch.stack([number.double() for number in numbers]).tolist()
    found = dict(zip(names, values, strict=True))
    return {name: value for name, value in found.items() if values[0] or not name.endswith(("/min", "/max"))}


def combine(metrics: Sequence[Mapping[str, float]]) -> Metrics:
    """Metrics of several calls as those of one: extremes by taking them, all else by adding."""
    total: Metrics = {}
    for one in metrics:
        for name, value in one.items():
            if name not in total:
                total[name] = value
            elif name.endswith("/min"):
                total[name] = min(total[name], value)
            elif name.endswith("/max"):
                total[name] = max(total[name], value)
            else:
                total[name] += value
    return total


def summary(metrics: Mapping[str, float]) -> dict[str, float]:
    """Combined metrics for a log, under TRL's names where it has them; what was not measured is left out.

    Means and shares are over the pairs that count: `tokens` (their number), `ratio/mean|min|max`,
    `clip_ratio/low_mean|high_mean|region_mean`, `kl`, `nll`, `sampling/importance_sampling_ratio/mean|min|max`,
    `sampling/unknown` (share without a recorded log-probability) and, over the others,
    `sampling/sampling_logp_difference/mean|max`.
    """
    tokens = metrics.get("tokens", 0.0)
    found = {"tokens": tokens}
    for name, reported in _MEANS.items():
        over = tokens
        if name == "sampling/sampling_logp_difference/sum":
            over -= metrics.get("sampling/unknown/count", 0.0)
        if name in metrics and over:
            found[reported] = metrics[name] / over
    found.update({name: metrics[name] for name in _EXTREMES if name in metrics})
    if "clip_ratio/low_mean" in found:
        found["clip_ratio/region_mean"] = found["clip_ratio/low_mean"] + found["clip_ratio/high_mean"]
    return found
