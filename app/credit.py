"""Why every step of a rollout group got its advantage, in numbers to be shown.

They are those of `closeup.rl.advantages`, computed by the same functions from the recorded rewards, without torch.

Invariants
1. No number is made up: a stream that is not in the records, an estimator that cannot be run or a step that does not
   count has no credit, and a sentence says so.
2. The parts of a step (`Part.part`) are only given where they really add up to its advantage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from closeup.agent.trajectory import Trajectory
    from closeup.rl.credit import Array, GroupRewards


@dataclass(frozen=True, slots=True)
class Part:
    """One reward stream at one step of one rollout.

    Attributes:
        stream, weight: its name and w_k. reward: at this step, None if not scored.
        to_go: rewards from this step on; others: the mean of the other rollouts' to_go. Both only for `decoupled`.
        part: what the stream adds to the advantage; None where streams do not add up.
    """

    stream: str
    weight: float
    reward: float | None
    to_go: float | None = None
    others: float | None = None
    part: float | None = None


@dataclass(frozen=True, slots=True)
class Credit:
    """Why one step of one rollout got its advantage; None when the step does not count."""

    advantage: float | None
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Crediting:
    """How advantages are made: a name for the weights (w_k by stream) and the estimator with its options."""

    weights: Mapping[str, float]
    estimator: str = "decoupled"
    options: tuple[tuple[str, Any], ...] = ()


def credit_of(
    trajectories: Sequence[Trajectory], crediting: Crediting
) -> tuple[tuple[tuple[Credit, ...], ...], dict[str, float], str]:
    """Credit by rollout and step, the weights that were used, and a sentence on what could not be done, or ""."""
    from closeup.rl.advantages import estimate
    from closeup.rl.credit import group_rewards

    recorded = {name for trajectory in trajectories for step in trajectory.steps for name in step.rewards}
    weights = {name: weight for name, weight in crediting.weights.items() if name in recorded}
    missing = ", ".join(name for name in crediting.weights if name not in recorded)
    if len(trajectories) < 2:
        return (), {}, "One rollout has no others to be compared with, so it has no advantages."
    if not weights:
        have = f"it has {', '.join(sorted(recorded))}" if recorded else "it has none at all"
        return (), {}, f"No advantages: the record has none of the reward streams {missing}; {have}."
    try:
        rewards = group_rewards(trajectories, tuple(sorted(recorded)))
        (advantages,) = estimate(crediting.estimator, [rewards], weights, **dict(crediting.options))
    except ValueError as error:
        return (), {}, f"No advantages: {str(error).rstrip('.')}."
    parts = _parts(rewards, weights, crediting, advantages)
    to_go, others = _compared(rewards, weights, crediting)

    def step(i: int, t: int) -> Credit:
        if not rewards.reached[i, t]:
            return Credit(None)
        shown = tuple(
            Part(
                stream=name,
                weight=weight,
                reward=_number(rewards.stream(name)[i, t]),
                to_go=None if to_go is None else _number(to_go[k, i, t]),
                others=None if others is None else _number(others[k, i, t]),
                part=None if parts is None else float(parts[k][i, t]),
            )
            for k, (name, weight) in enumerate(weights.items())
        )
        return Credit(float(advantages[i, t]), shown)

    table = tuple(tuple(step(i, t) for t in range(len(one.steps))) for i, one in enumerate(trajectories))
    return table, weights, f"Reward streams that are not in the record, and so left out: {missing}." if missing else ""


def _parts(
    rewards: GroupRewards, weights: Mapping[str, float], crediting: Crediting, advantages: Array
) -> list[Array] | None:
    """What each stream adds to the advantages, (G, T) each; None where streams do not simply add up."""
    import numpy as np

    from closeup.rl.advantages import estimate

    try:
        parts = [
            estimate(crediting.estimator, [rewards], {name: weight}, **dict(crediting.options))[0]
            for name, weight in weights.items()
        ]
    except ValueError:  # an estimator that takes its streams together only
        return None
    return parts if np.allclose(np.sum(parts, axis=0), advantages, atol=1e-9) else None


def _compared(
    rewards: GroupRewards, weights: Mapping[str, float], crediting: Crediting
) -> tuple[Array | None, Array | None]:
    """What `decoupled` compares: per stream the return from each step on, and the mean of the others'; (K, G, T), NaN
    where there is none. None for other estimators."""
    if crediting.estimator != "decoupled":
        return None, None
    import numpy as np

    from closeup.rl.returns import gammas, leave_one_out, returns_to_go, weighted_rows

    chosen = rewards.values[weighted_rows(rewards, weights)]
    discounts = gammas(dict(crediting.options).get("gamma", 1.0), weights)
    returns, have = returns_to_go(chosen, rewards.reached, discounts)
    compared = have & (have.sum(axis=1, keepdims=True) > 1)
    others = returns - leave_one_out(returns, have)
    return np.where(have, returns, np.nan), np.where(compared, others, np.nan)


def _number(value: float) -> float | None:
    return None if value != value else float(value)
