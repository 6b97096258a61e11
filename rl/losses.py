"""Losses over (source, target) pairs: the policy-gradient losses of GRPO's family, and the likelihood of SFT.

A pair is one sampled token of one row (`closeup.rl.tree`). Nothing is averaged here: each pair comes with its weight,
already divided by the denominator of the whole global batch (`pair_weights`), and a loss is the sum of weight times
per-token loss. So a batch may be cut into groups, ranks and branches, and its loss is the sum of the parts' losses.

Invariants
1. Loss, gradients and metrics add up over disjoint sets of rows (minima and maxima by taking them). With
   `importance_sampling_level="token"` and a `token_…` correction they add up over any disjoint sets of pairs; the
   sequence levels need all pairs of a row in one call, and it is the caller who sees to that.
2. Equal to TRL's `GRPOTrainer._compute_loss` (1.16) on the same log-probabilities: tests/invariants/test_trl_loss.py.
3. A pair with weight 0 (masked, or a dummy that keeps ranks in step) has no gradient and is in no metric, and in no
   mean or product over its row.
4. The log-probabilities in the three passes and in the rollout are of one and the same distribution (temperature,
   suppressed ids); that is for their maker to see to (`closeup.rl.logprobs`).

A row is what `TargetBatch.rows` numbers: a root-to-leaf path, which is a rollout where the context grows and a
(rollout, step) where it is built anew. "Sequence" in a setting means row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from closeup.rl.loss_metrics import Metrics, measure

LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo"]
CorrectionMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


class PolicyLossSettings(BaseModel):
    """How sampled tokens are turned into a loss. Names, meanings and (but for one) defaults are TRL's `GRPOConfig`'s.

    Attributes:
        loss_type: the denominator (`pair_weights`): grpo (mean over each row, then over rows; DeepSeekMath, arXiv
            2402.03300), dr_grpo (a constant per episode; arXiv 2503.20783), dapo (all tokens of the global batch; arXiv
            2503.14476), bnpo (the tokens of each micro-batch, then over micro-batches; a group is a micro-batch here,
            where TRL takes one process's batch of completions). Rows of masked episodes count as rows, as in TRL.
        epsilon: the ratio is clipped from below at 1 - epsilon (PPO, arXiv 1707.06347).
        epsilon_high: and from above at 1 + epsilon_high; None: as epsilon. DAPO uses 0.28.
        delta: upper bound of the unclipped ratio, which bounds the loss of negative advantages (dual clip, arXiv
            1912.09729; two-sided clipping, arXiv 2505.07291). None: off. Meant to be above 1 + epsilon_high.
        beta: weight of the KL divergence to the reference; 0: no reference is needed.
        use_bias_correction_kl: multiply the KL term by the ratio, so that its gradient is that of the reverse KL
            divergence (DeepSeek-V3.2, arXiv 2512.02556).
        importance_sampling_level: "token", or "sequence": one ratio per row, the exponential of its mean log-ratio
            (GSPO, arXiv 2507.18071, eq. 7). GSPO's objective is "sequence" with loss_type="grpo"; the other loss types
            then weigh a row by its length.
        vllm_importance_sampling_correction: multiply the policy term by the ratio of the old log-probability to the one
            that the rollout engine recorded, where engine and trainer differ (truncated importance sampling).
        vllm_importance_sampling_mode: token or sequence (the product over the row), truncate (clip the ratio to the
            bounds) or mask (0 outside them). TRL's default, sequence_mask, throws away most long rows; ours is
            token_truncate.
        vllm_importance_sampling_clip_max, vllm_importance_sampling_clip_min: the bounds; None: unbounded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    loss_type: LossType = "dapo"
    epsilon: float = Field(0.2, ge=0, lt=1)
    epsilon_high: float | None = Field(None, ge=0)
    delta: float | None = Field(None, gt=1)
    beta: float = Field(0.0, ge=0)
    use_bias_correction_kl: bool = True
    importance_sampling_level: Literal["token", "sequence"] = "token"
    vllm_importance_sampling_correction: bool = True
    vllm_importance_sampling_mode: CorrectionMode = "token_truncate"
    vllm_importance_sampling_clip_max: float | None = Field(3.0, gt=0)
    vllm_importance_sampling_clip_min: float | None = Field(None, ge=0)


@dataclass(frozen=True, slots=True, eq=False)
class TargetBatch:
    """What is known of M pairs beside their log-probabilities under the policy. No tensor carries a gradient.

    Attributes:
        advantages: float (M,).
        weights: float (M,), loss weight, divided by the global denominator (`pair_weights`).
        rows: long (M,), which row the pair belongs to; any numbering.
        old: float (M,), log-probability before the first update on this batch, in nats; None in that first update
            itself, where it is the policy's own.
        reference: float (M,), log-probability under the reference; None without one.
        rollout: float (M,), log-probability the rollout engine recorded; NaN where it recorded none (that pair is not
            corrected, and counted); None without a record.

    Raises:
        ValueError: a tensor of another shape, or rows that are not whole numbers.
    """

    advantages: Tensor
    weights: Tensor
    rows: Tensor
    old: Tensor | None = None
    reference: Tensor | None = None
    rollout: Tensor | None = None

    def __post_init__(self) -> None:
        size = self.rows.shape
        if self.rows.dtype != torch.long or len(size) != 1:
            raise ValueError(f"rows is a long (M,), got {self.rows.dtype} {tuple(size)}")
        for name, tensor in self._tensors().items():
            if tensor.shape != size:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but there are {size[0]} pairs")

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Tensor) -> TargetBatch:
        """The pairs at `index`, long (m,) or bool (M,)."""
        return TargetBatch(**{name: tensor[index] for name, tensor in self._tensors().items()})

    def to(self, device: torch.device | str) -> TargetBatch:
        """The same on another device."""
        return TargetBatch(**{name: tensor.to(device) for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        return {name: tensor for name in self.__slots__ if (tensor := getattr(self, name)) is not None}


def policy_loss(logprobs: Tensor, batch: TargetBatch, settings: PolicyLossSettings) -> tuple[Tensor, Metrics]:
    """The sum over pairs of weight times per-token loss.

        r = exp(logprobs - old), or per row exp(mean of logprobs - old)
        loss = -min(min(r, delta) A, clip(r, 1 - epsilon, 1 + epsilon_high) A) c + beta KL
        KL = exp(reference - logprobs) - (reference - logprobs) - 1, times r if corrected      (k3, Schulman 2020)
        c  = exp(old - rollout) within its bounds, or 1                                        (no gradient)

    Args:
        logprobs: (M,), with gradient, in nats. Half precision is computed in float32.

    Returns:
        the loss, a scalar of at least float32, and metrics to be added up by `combine` and read by `summary`.

    Raises:
        ValueError: another number of pairs; beta without reference log-probabilities; the correction without rollout
            log-probabilities; a number (but of `rollout`) that is not finite.
    """
    _check(logprobs, batch, settings)
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    logprobs = logprobs.to(dtype)
    old = logprobs.detach() if batch.old is None else batch.old.to(dtype)
    advantages, weights = batch.advantages.to(dtype), batch.weights.to(dtype)
    counted = batch.weights != 0

    log_ratio = logprobs - old
    if settings.importance_sampling_level == "sequence":
        sums, counts = _row_sums(log_ratio, batch.rows, counted)
        log_ratio = sums / counts.clamp(min=1)
    ratio = log_ratio.exp()
    low = 1 - settings.epsilon
    high = 1 + (settings.epsilon if settings.epsilon_high is None else settings.epsilon_high)
    bounded = ratio if settings.delta is None else ratio.clamp(max=settings.delta)
    per_token = -torch.min(bounded * advantages, ratio.clamp(low, high) * advantages)

    correction = None
    if settings.vllm_importance_sampling_correction:
        correction = _correction(old, _given(batch.rollout).to(dtype), batch.rows, counted, settings)
        per_token = per_token * correction
    kl = None
    if batch.reference is not None:
        gap = batch.reference.to(dtype) - logprobs
        kl = gap.exp() - gap - 1
        if settings.use_bias_correction_kl:
            kl = kl * ratio
        if settings.beta:
            per_token = per_token + settings.beta * kl

    with torch.no_grad():
        columns = {"ratio": ratio, "kl": kl, "sampling/importance_sampling_ratio": correction}
        flags = {
            "clip_ratio/low": (ratio < low) & (advantages < 0),
            "clip_ratio/high": (ratio > high) & (advantages > 0),
        }
        if batch.rollout is not None:
            flags["sampling/unknown"] = unknown = batch.rollout.isnan()
            difference = (old - batch.rollout.to(dtype)).abs()
            columns["sampling/sampling_logp_difference"] = difference.masked_fill(unknown, 0.0)
        metrics = measure(counted, columns, flags)
    return (weights * per_token).sum(), metrics


def nll_loss(logprobs: Tensor, weights: Tensor) -> tuple[Tensor, Metrics]:
    """SFT: the sum over pairs of weight times negative log-likelihood.

    Args:
        logprobs: (M,), with gradient, in nats. weights: (M,), from `pair_weights` ("dapo": the mean over all tokens).

    Returns:
        the loss, a scalar of at least float32, and metrics to be added up by `combine` and read by `summary`.

    Raises:
        ValueError: shapes that differ, or a log-probability that is not finite.
    """
    if logprobs.shape != weights.shape or logprobs.dim() != 1:
        raise ValueError(f"logprobs and weights are both (M,), got {tuple(logprobs.shape)} and {tuple(weights.shape)}")
    _check_finite("logprobs", logprobs)
    per_token = -logprobs.to(torch.promote_types(logprobs.dtype, torch.float32))
    with torch.no_grad():
        metrics = measure(weights != 0, {"nll": per_token}, {})
    return (weights.to(per_token.dtype) * per_token).sum(), metrics


def pair_weights(
    lengths: Sequence[int] | Tensor,
    loss_type: LossType,
    *,
    max_completion_length: int | None = None,
    batches: Sequence[int] | Tensor | None = None,
    completions: int | None = None,
) -> Tensor:
    """The weight of each pair of each row, so that the loss of the whole global batch is a sum.

        grpo     1 / (rows * length of the row)
        dr_grpo  1 / (completions * max_completion_length)
        dapo     1 / (all targets)
        bnpo     1 / (micro-batches * targets of the row's micro-batch)

    Args:
        lengths: (R,), number of targets of each row of the global batch: all ranks, all micro-batches. A row of length
            0 counts among the rows, as TRL counts a masked completion; leave it out to not count it. Where an engine
            averages gradients over ranks, multiply the loss by their number, as with any global denominator.
        max_completion_length: in tokens, for dr_grpo.
        batches: (R,), which micro-batch (here: group) a row belongs to, for bnpo; default: all rows are one, and bnpo
            is dapo.
        completions: episodes of the global batch, for dr_grpo, whose divisor must not depend on how many rows the
            policy made of them; default: one per row.

    Returns:
        float64 (R,), on the CPU; the weights of pairs are `pair_weights(…)[rows]`, with rows counted as `lengths` is.

    Raises:
        ValueError: an unknown loss type, a negative length, no row, batches of another number, or dr_grpo without a
            positive `max_completion_length`, or of no completion.
    """
    if loss_type not in get_args(LossType):
        raise ValueError(f"loss_type is one of {list(get_args(LossType))}, got {loss_type!r}")
    count = torch.as_tensor(lengths, dtype=torch.float64).cpu()
    if count.dim() != 1 or not len(count) or bool((count < 0).any()):
        raise ValueError(f"lengths are the numbers of targets of at least one row, none negative; got {lengths!r}")
    if loss_type == "grpo":
        return 1 / (len(count) * count.clamp(min=1))
    if loss_type == "dr_grpo":
        if max_completion_length is None or max_completion_length < 1:
            raise ValueError(
                f"dr_grpo divides by max_completion_length, a positive number of tokens; got {max_completion_length}"
            )
        number = len(count) if completions is None else completions
        if number < 1:
            raise ValueError(f"dr_grpo divides by the number of completions, which is positive; got {completions}")
        return torch.full_like(count, 1 / (number * max_completion_length))
    if loss_type == "dapo" or batches is None:
        return torch.full_like(count, float(1 / count.sum().clamp(min=1)))
    batch = torch.as_tensor(batches).cpu()
    if batch.shape != count.shape:
        raise ValueError(f"batches names the micro-batch of each of the {len(count)} rows, got {tuple(batch.shape)}")
    names, which = torch.unique(batch, return_inverse=True)
    tokens = torch.zeros(len(names), dtype=torch.float64).index_add_(0, which, count)
    return (1 / (len(names) * tokens.clamp(min=1)))[which]


@dataclass(frozen=True, slots=True)
class RowCounts:
    """What denominators have to know of one group.

    Attributes:
        lengths: targets of each row that is forwarded, 0 where all of its messages are masked.
        masked: rows that are not forwarded because their episode is masked. They count, as TRL's masked completions do.
        completions: episodes that ran. One that failed or was cancelled is none, and has no row.
    """

    lengths: tuple[int, ...]
    masked: int = 0
    completions: int = 0


def group_weights(
    groups: Sequence[RowCounts], loss_type: LossType, *, max_completion_length: int | None = None
) -> list[Tensor]:
    """`pair_weights` of a whole global batch, each group a micro-batch; float64 (rows,) of each group's forwarded rows.

    Raises as `pair_weights`; but a batch without a row has no weights.
    """
    lengths = [length for group in groups for length in (*group.lengths, *[0] * group.masked)]
    if not lengths:
        return [torch.zeros(0, dtype=torch.float64) for _ in groups]
    rows = [len(group.lengths) + group.masked for group in groups]
    weights = pair_weights(
        lengths,
        loss_type,
        max_completion_length=max_completion_length,
        batches=[index for index, count in enumerate(rows) for _ in range(count)],
        completions=sum(group.completions for group in groups),
    )
    return [part[: len(group.lengths)] for part, group in zip(torch.split(weights, rows), groups, strict=True)]


def _check(logprobs: Tensor, batch: TargetBatch, settings: PolicyLossSettings) -> None:
    if logprobs.shape != batch.rows.shape:
        raise ValueError(f"there are {len(batch)} pairs, but logprobs has shape {tuple(logprobs.shape)}")
    if settings.beta and batch.reference is None:
        raise ValueError(
            f"beta is {settings.beta}, which needs reference log-probabilities, and the batch has none; compute them,"
            " or set beta to 0"
        )
    if settings.vllm_importance_sampling_correction and batch.rollout is None:
        raise ValueError(
            "vllm_importance_sampling_correction needs the log-probabilities that the rollout engine recorded, and the"
            " batch has none; record them, or set vllm_importance_sampling_correction to false"
        )
    for name in ("old", "reference", "advantages", "weights"):
        if (tensor := getattr(batch, name)) is not None:
            _check_finite(name, tensor)
    _check_finite("logprobs", logprobs)


def _check_finite(name: str, tensor: Tensor) -> None:
    wrong = ~tensor.detach().isfinite()
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"{int(wrong.sum())} of {len(tensor)} {name} are not finite (pair {first}: {float(tensor[first])}); a"
            " log-probability is so for a token that the policy cannot sample, or when a forward pass overflows"
        )


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # `_check` has seen it
    return tensor


def _row_sums(values: Tensor, rows: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the counted pairs over each pair's row, and their number; both (M,)."""
    names, which = torch.unique(rows, return_inverse=True)
    sums = values.new_zeros(len(names)).index_add(0, which, values.masked_fill(~counted, 0.0))
    counts = values.new_zeros(len(names)).index_add(0, which, counted.to(values.dtype))
    return sums[which], counts[which]


def _correction(old: Tensor, rollout: Tensor, rows: Tensor, counted: Tensor, settings: PolicyLossSettings) -> Tensor:
    """The factor for the difference between trainer and rollout engine, (M,), without gradient."""
    level, _, constraint = settings.vllm_importance_sampling_mode.partition("_")
    gap = (old - rollout).nan_to_num(nan=0.0)
    if level == "sequence":
        gap, _ = _row_sums(gap, rows, counted)
    ratio = gap.exp()
    low, high = settings.vllm_importance_sampling_clip_min, settings.vllm_importance_sampling_clip_max
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if constraint == "truncate":
        return ratio.clamp(low, high)
    return ratio.masked_fill((ratio < low) | (ratio > high), 0.0)
