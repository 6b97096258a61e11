"""The arithmetic that advantage estimators share: returns, deviations over the rollouts, and checks of weights.

Arrays are (K, G, T) or (G, T) with rollouts on the second axis from the end, or (G,) for one number per episode; `have`
says where there is a number. Everything is 0 where there is none.

Invariant: numbers that are all equal deviate by exactly 0, so that rounding is never blown up into a signal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from closeup.rl.credit import Array, GroupRewards, Mask

Weights = Mapping[str, float]
Gamma = float | Mapping[str, float]
ScaleRewards = Literal["group", "none"]


def returns_to_go(values: Array, reached: Mask, discounts: Array) -> tuple[Array, Mask]:
    """Discounted returns from each step on, (K, G, T), and where there is one; 0 where there is none."""
    returns, have = np.zeros(values.shape), np.zeros(values.shape, np.bool_)
    running, seen = np.zeros(values.shape[:2]), np.zeros(values.shape[:2], np.bool_)
    for t in reversed(range(values.shape[2])):
        scored = ~np.isnan(values[:, :, t])
        running = np.where(scored, values[:, :, t], 0.0) + discounts[:, None] * running
        seen = seen | scored
        have[:, :, t] = seen & reached[:, t]
        returns[:, :, t] = np.where(have[:, :, t], running, 0.0)
    return returns, have


def _rollouts(numbers: Array) -> int:
    """The axis of the rollouts: of (G,) and of (…, G, T)."""
    return 0 if numbers.ndim == 1 else -2


def deviations(numbers: Array, have: Mask) -> tuple[Array, Array]:
    """Deviations from the mean over the rollouts that have a number, 0 elsewhere, and how many have one.

    Exactly 0 where all numbers are equal: they are first taken relative to the smallest.
    """
    axis = _rollouts(numbers)
    n = have.sum(axis=axis, keepdims=True)
    lowest = np.where(have, numbers, np.inf).min(axis=axis, keepdims=True, initial=np.inf)
    above = np.where(have, numbers - np.where(n > 0, lowest, 0.0), 0.0)
    mean = above.sum(axis=axis, keepdims=True) / np.maximum(n, 1)
    return np.where(have, above - mean, 0.0), n.astype(np.float64)


def leave_one_out(numbers: Array, have: Mask) -> Array:
    """Each number minus the mean of the others': n/(n-1) times its deviation from the mean of all. 0 when alone."""
    apart, n = deviations(numbers, have)
    return apart * (n / np.maximum(n - 1, 1))


def normalised(numbers: Array, have: Mask, eps: float) -> Array:
    """(x - mean) / (std + eps) over the rollouts, Bessel-corrected; 0 when alone."""
    apart, n = deviations(numbers, have)
    variance = (apart**2).sum(axis=_rollouts(numbers), keepdims=True) / np.maximum(n - 1, 1)
    return np.asarray(apart / (np.sqrt(variance) + eps))


def divisor(numbers: Array, have: Mask, scale_rewards: ScaleRewards, floor: float) -> Array:
    """What to divide by: per stream the pooled standard deviation of (…, G, T) or (G,), at least `floor`; or 1."""
    check_scale(scale_rewards)
    if not (math.isfinite(floor) and floor > 0):
        raise ValueError(
            f"std_floor is a positive number, got {floor}; to leave rewards unscaled use scale_rewards='none'"
        )
    if scale_rewards == "none":
        return np.ones(())
    apart, n = deviations(numbers, have)
    axes = (0,) if numbers.ndim == 1 else (-2, -1)
    freedom = np.maximum(n - 1, 0).sum(axis=axes, keepdims=True)
    pooled = np.sqrt((apart**2).sum(axis=axes, keepdims=True) / np.maximum(freedom, 1))
    return np.asarray(np.maximum(pooled, floor))


def episode_sums(group: GroupRewards, weights: Weights) -> tuple[Array, Mask]:
    """Per weighted stream the rewards of each episode added up, (K, G), and where any was scored; 0 elsewhere."""
    values = group.values[weighted_rows(group, weights)]
    have = ~np.isnan(values)
    return np.where(have, values, 0.0).sum(axis=2), np.asarray(have.any(axis=2))


def add_streams(numbers: Array, have: Mask, weights: Weights) -> tuple[Array, Mask]:
    """Numbers by stream as one number per rollout: (K, G) to (G,), and where any stream has one.

    A rollout that a stream says nothing of counts there as the mean of those that it does speak of, so that it deviates
    by what was scored of it and by nothing else. Where every stream speaks of every rollout this is the weighted sum.
    """
    means = np.where(have, numbers, 0.0).sum(axis=1, keepdims=True) / np.maximum(have.sum(axis=1, keepdims=True), 1)
    added = (weight_column(weights)[:, 0] * np.where(have, numbers, means)).sum(axis=0)
    spoken = np.asarray(have.any(axis=0))
    return np.where(spoken, added, 0.0), spoken


def to_steps(advantages: Array, group: GroupRewards) -> Array:
    """One number per episode (G,) given to every step that counts."""
    return np.where(group.reached, advantages[:, None], 0.0)


def weighted_rows(group: GroupRewards, weights: Weights) -> list[int]:
    """Rows of the weighted streams in `group.values`, in the order of the weights.

    Raises `ValueError` for weights that are empty, not finite, or of a stream that the group does not have.
    """
    if not weights:
        raise ValueError(f"no stream has a weight, so nothing would be trained; the group has {sorted(group.streams)}")
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise ValueError(f"the weight of stream {name!r} is {weight}; a weight is a finite number")
    return [group.index(name) for name in weights]


def weight_column(weights: Weights) -> Array:
    """The weights as (K, 1, 1), in their order."""
    return np.array(list(weights.values()), np.float64)[:, None, None]


def weight_of(weights: Weights, stream: str) -> float:
    """The weight of one stream. Raises `ValueError` when it has none."""
    if stream not in weights:
        raise ValueError(
            f"this estimator trains on the stream {stream!r}, which has no weight; weights: {dict(weights)}"
        )
    return float(weights[stream])


def check_exactly(weights: Weights, streams: tuple[str, str]) -> None:
    """Raise `ValueError` unless the weights are one finite number for each of two streams."""
    if set(weights) != set(streams) or not all(math.isfinite(w) for w in weights.values()):
        raise ValueError(
            f"this rule has one finite weight for each of {list(streams)}, got {dict(weights)}; leave the weights out"
            " for the paper's"
        )


def gammas(gamma: Gamma, weights: Weights) -> Array:
    """The discount of each weighted stream, (K,). Raises `ValueError` for a stream without weight."""
    if not isinstance(gamma, Mapping):
        return np.full(len(weights), discount(gamma))
    unknown = sorted(set(gamma) - set(weights))
    if unknown:
        raise ValueError(f"gamma names the streams {unknown}, which have no weight; weighted: {sorted(weights)}")
    return np.array([discount(gamma.get(name, 1.0)) for name in weights], np.float64)


def discount(gamma: float) -> float:
    """A discount. Raises `ValueError` outside [0, 1]."""
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma lies in [0, 1], got {gamma}")
    return float(gamma)


def check_scale(scale_rewards: str) -> None:
    """Raise `ValueError` for a scale that does not exist."""
    if scale_rewards not in get_args(ScaleRewards):
        raise ValueError(f"scale_rewards is one of {list(get_args(ScaleRewards))}, got {scale_rewards!r}")
