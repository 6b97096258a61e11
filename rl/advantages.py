"""Advantages: from the rewards of a group (`closeup.rl.credit`) to one number per rollout and step.

Every estimator is a pure function of `GroupRewards` and of weights per stream, and gives float64 (G, T), to be spread
over the tokens of step t. Streams that the weights do not name train nothing (they are there to be logged).

What an unscored reward (NaN) means, in every estimator
- It contributes nothing to a return. A return in which nothing was scored is no return: where a rollout has no scored
  reward in a stream (from step t on; in the episode), it gets 0 from that stream and is left out of the others'
  baseline in it. Streams are compared one by one and then added up, also where one number per episode comes of it, so
  that an answer whose judge failed is not a wrong answer, whatever else was scored. (TRL adds such a reward as 0; the
  papers' rules leave out a step or an episode that lacks one of their two rewards.)
- So "not scored" stands for "as good as the others", not for 0. A stream that is scored only after some actions (a
  zoom reward exists only for zooms) compares the rollouts that took them, and says nothing about whether to take them.
  To make it say that, score the other actions, with 0 or whatever they are worth.
- Where a return has several rewards and some of them are unscored, they are left out of the sum: a stream that scores
  several steps by something that can fail is best made to score all of them or none.

Invariants
1. A step that was not reached, or does not count, has advantage 0 and changes no other number.
2. `decoupled` at step t never contains a reward earned before t.
3. Rollouts are exchangeable: permuting them permutes the result.
4. Where all rollouts have equal returns in every stream, the advantage is exactly 0 (of `remax`: equal to the greedy
   one's). Where streams that differ add up to equal numbers it is 0 up to rounding, which `has_signal` does not count.

Bias. An estimator is unbiased when the expected sum of advantage times gradient of the log-probability is the gradient
of the expected return. tests/rl/test_advantages_gradients.py enumerates every group there can be in small problems and
finds:
- unbiased: `rloo`, `remax`, and with scale_rewards="none" `episode_sum`, `outcome_only` (of the outcome's return) and
  `decoupled`, as long as every return is scored. Who is alone at a step learns nothing from it, which shortens
  `decoupled`'s gradient of that step by the chance of having company;
- `dr_grpo`: (G - 1)/G times the gradient, because a rollout has a part in its own baseline;
- divided by a standard deviation s (`grpo`, scale_rewards="group"): each group's estimate is the unscaled one over
  max(s, floor), or over s + eps. Of one message whose reward takes two values the expectation is the gradient times
  one number, E[s^2 / max(s, floor)] / E[s^2] (`grpo`: E[s^2 / (s + eps)] / E[s^2] (G - 1)/G): its direction is right,
  and tasks of middling difficulty weigh less than they should. With more values or steps the direction is off, too. A
  `std_floor` above every s leaves nothing but the constant 1 / std_floor;
- `reinforce_plus_plus`, before the division: short of the gradient of the expected mean return of the batch's steps,
  divided by the number of rollouts in the batch;
- `love_r1`: scaled as `grpo`, per step, by those who reached it; a look's credit lacks the format reward of later
  steps. `longvila_r1`: as `grpo`;
- `turn_level` loses what going on leads to, however many rollouts there are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from closeup.rl.advantage_presets import longvila_r1, love_r1
from closeup.rl.credit import Array, GroupRewards, Mask
from closeup.rl.returns import (
    Gamma,
    ScaleRewards,
    Weights,
    add_streams,
    check_scale,
    deviations,
    discount,
    divisor,
    episode_sums,
    gammas,
    leave_one_out,
    normalised,
    returns_to_go,
    to_steps,
    weight_column,
    weight_of,
    weighted_rows,
)

STD_FLOOR = 0.1
"""Standard deviations below this are taken for this: differences much smaller than a reward's range stay small."""


def decoupled(
    group: GroupRewards,
    weights: Weights,
    *,
    gamma: Gamma = 1.0,
    scale_rewards: ScaleRewards = "group",
    std_floor: float = STD_FLOOR,
) -> Array:
    """Step credit: per stream the return from step t on, against the other rollouts' returns from step t on.

        G[i,t,k] = sum over u >= t of gamma_k^(u-t) r[i,u,k]                 (never what was earned before t)
        A[i,t]   = sum over k of w_k (G[i,t,k] - mean over j != i of G[j,t,k]) / s_k

    The mean is over the other rollouts that reached step t and have a return there (leave-one-out, Kool et al. 2019,
    and RLOO, Ahmadian et al. 2024, arXiv 2402.14740; here per step and stream). A rollout that is alone at its step
    has no baseline and gets 0 (see `lone`). s_k is the standard deviation of the stream's returns around their mean at
    each step, pooled over the steps of the group (one number per stream, so that steps keep their proportions; with one
    step it is GRPO's group standard deviation), and at least `std_floor`; or 1 with scale_rewards="none".

    Args:
        group: the rewards. weights: w_k by stream.
        gamma: discount per step, for all streams or by stream (streams not named: 1).
        scale_rewards: "group" or "none" (TRL's names). std_floor: used with "group" only.

    Raises:
        ValueError: weights that are empty, not finite or name no stream of the group; a gamma outside [0, 1] or of an
            unweighted stream; an unknown scale; a floor that is not positive.
    """
    chosen = weighted_rows(group, weights)
    returns, have = returns_to_go(group.values[chosen], group.reached, gammas(gamma, weights))
    scaled = leave_one_out(returns, have) / divisor(returns, have, scale_rewards, std_floor)
    return np.asarray((weight_column(weights) * scaled).sum(axis=0))


def lone(group: GroupRewards, weights: Weights) -> Mask:
    """Where `decoupled` had no baseline, bool (G, T): a return in some weighted stream, and no other rollout's in any.

    For counting: such a step learns nothing. Raises as `decoupled`.
    """
    values = group.values[weighted_rows(group, weights)]
    _, have = returns_to_go(values, group.reached, np.ones(len(values)))
    others = have.sum(axis=1, keepdims=True) - have
    return np.asarray(have.any(axis=0) & ~(have & (others > 0)).any(axis=0))


def has_signal(advantages: Array) -> bool:
    """Whether a group teaches anything: some advantage is not 0 (beyond rounding)."""
    return bool((np.abs(advantages) > 1e-8).any())


def episode_sum(
    group: GroupRewards, weights: Weights, *, scale_rewards: ScaleRewards = "group", std_floor: float = STD_FLOOR
) -> Array:
    """The same streams as one number per episode: all weighted rewards added up, against the others' mean.

        A[i,t] = sum over k of w_k (R_ik - mean over j != i of R_jk) / s,  R_ik = sum over t of r[i,t,k]

    Baseline and floor are those of `decoupled`, so that only the credit differs: every step of an episode gets the
    credit of all of them. Where every stream is scored, the sum is R_i - mean over j != i of R_j, R_i the weighted sum.
    s is the standard deviation of the rollouts' weighted sums (one number per group), an unscored stream counting there
    as the mean of the scored ones. An episode in which nothing was scored has no number: 0, and left out of s. Raises
    as `decoupled`.
    """
    sums, scored = episode_sums(group, weights)
    apart = np.stack([leave_one_out(of_stream, have) for of_stream, have in zip(sums, scored, strict=True)])
    scale = divisor(*add_streams(sums, scored, weights), scale_rewards, std_floor)
    return to_steps((weight_column(weights)[:, 0] * apart).sum(axis=0) / scale, group)


def outcome_only(
    group: GroupRewards,
    weights: Weights,
    *,
    outcome: str = "answer",
    scale_rewards: ScaleRewards = "group",
    std_floor: float = STD_FLOOR,
) -> Array:
    """`episode_sum` of the outcome stream alone, with its weight; the other weighted streams train nothing.

    Raises as `decoupled`, and `ValueError` when the weights do not name `outcome`.
    """
    weighted_rows(group, weights)
    return episode_sum(group, {outcome: weight_of(weights, outcome)}, scale_rewards=scale_rewards, std_floor=std_floor)


def rloo(group: GroupRewards, weights: Weights) -> Array:
    """REINFORCE leave-one-out: `episode_sum` without scaling (Ahmadian et al. 2024, arXiv 2402.14740)."""
    return episode_sum(group, weights, scale_rewards="none")


def grpo(group: GroupRewards, weights: Weights, *, eps: float = 1e-4) -> Array:
    """GRPO: one number per episode, (R_i - mean R) / (std R + eps), the rollout itself included in both.

    R_i is the weighted sum of the streams, an unscored one counting as the mean of the rollouts that it is scored for.

    DeepSeekMath (Shao et al. 2024, arXiv 2402.03300, section 4.1.2, outcome supervision). The standard deviation is
    Bessel-corrected and eps added to it, as TRL does. A rollout alone in its group gets 0.
    """
    return to_steps(normalised(*add_streams(*episode_sums(group, weights), weights), eps), group)


def dr_grpo(group: GroupRewards, weights: Weights) -> Array:
    """Dr. GRPO: one number per episode minus the group's mean, not scaled (Liu et al. 2025, arXiv 2503.20783, sec. 3).

    This is (G - 1)/G times `rloo`: the rollout is part of its own baseline. An unscored stream is as in `grpo`. The
    paper's other half, the constant
    divisor of the loss, is `loss_type="dr_grpo"` in `closeup.rl.losses`.
    """
    return to_steps(deviations(*add_streams(*episode_sums(group, weights), weights))[0], group)


def turn_level(
    group: GroupRewards, weights: Weights, *, gamma: Gamma = 1.0, scale_rewards: ScaleRewards = "group"
) -> Array:
    """Immediate rewards centred per turn index, then summed to go. BIASED; here because others train with it.

        A[i,t] = sum over k, u >= t of gamma_k^(u-t) w_k (r[i,u,k] - mean_u r[.,u,k]) / (std_u + 1e-4)

    The mean at turn u is taken over the rollouts that reached it, and whether a rollout reaches turn u is a consequence
    of what it did at t < u: the baseline depends on the action, and a reward that everyone gets who goes on cancels out
    of the decision to go on (proposed in verl-project/verl#7244; a test shows the gradient it loses). Use `decoupled`.
    Raises as `decoupled`.
    """
    chosen = weighted_rows(group, weights)
    check_scale(scale_rewards)
    values = group.values[chosen]
    have = ~np.isnan(values)
    rewards = np.where(have, values, 0.0)
    immediate = normalised(rewards, have, 1e-4) if scale_rewards == "group" else deviations(rewards, have)[0]
    returns, _ = returns_to_go(np.where(have, immediate, np.nan), group.reached, gammas(gamma, weights))
    return np.asarray((weight_column(weights) * returns).sum(axis=0))


def reinforce_plus_plus(groups: Sequence[GroupRewards], weights: Weights, *, gamma: float = 1.0) -> list[Array]:
    """REINFORCE++: weighted return to go, normalised over all steps of the global batch.

        A[i,t] = (G[i,t] - mean G) / (std G + 1e-8),  G[i,t] = sum over u >= t, k of gamma^(u-t) w_k r[i,u,k]

    Hu et al. 2025, arXiv 2501.03262 (there per token with the KL penalty inside the reward; here the KL is
    part of the loss and each step counts once, however long its message). Give all groups of all ranks: the estimator
    has no other baseline. A stream without a return at a step counts there as its mean over the steps that have one.
    Returns one (G, T) per group. Raises as `decoupled`.
    """
    if not groups:
        return []
    discounts = np.full(len(weights), discount(gamma))
    found = [returns_to_go(g.values[weighted_rows(g, weights)], g.reached, discounts) for g in groups]
    returns = np.concatenate([of_group.reshape(len(weights), -1) for of_group, _ in found], axis=1)
    scored = np.concatenate([of_group.reshape(len(weights), -1) for _, of_group in found], axis=1)
    flat, have = add_streams(returns, scored, weights)
    flat = normalised(flat, have, 1e-8)
    cuts = np.cumsum([group.reached.size for group in groups])[:-1]
    return [part.reshape(group.reached.shape) for part, group in zip(np.split(flat, cuts), groups, strict=True)]


def remax(group: GroupRewards, weights: Weights, *, greedy: GroupRewards) -> Array:
    """ReMax: one number per episode minus that of the task's greedy rollout (Li et al. 2023, arXiv 2310.10505).

    Args:
        greedy: the rewards of the one greedy rollout, in the same streams. A stream that is not scored in it has no
            baseline and trains nothing; if nothing in it was scored or counts, every advantage is 0.

    Raises as `decoupled`, and `ValueError` when `greedy` does not hold one rollout.
    """
    if greedy.reached.shape[0] != 1:
        raise ValueError(
            f"greedy holds the one greedy rollout of the group's task, got {greedy.reached.shape[0]} rollouts; run each"
            " task once at temperature 0"
        )
    sums, scored = episode_sums(group, weights)
    baseline, known = episode_sums(greedy, weights)
    apart = np.where(scored & known, sums - baseline, 0.0)
    return to_steps((weight_column(weights)[:, 0] * apart).sum(axis=0), group)


ESTIMATORS: Mapping[str, Callable[..., Any]] = {
    "decoupled": decoupled,
    "episode_sum": episode_sum,
    "outcome_only": outcome_only,
    "turn_level": turn_level,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce_plus_plus": reinforce_plus_plus,
    "remax": remax,
    "love_r1": love_r1,
    "longvila_r1": longvila_r1,
}
"""Estimators by the name a configuration gives them."""


def options_of(name: str) -> tuple[str, ...]:
    """Names of the options an estimator takes beside rewards and weights. Raises `ValueError` for an unknown one."""
    if name not in ESTIMATORS:
        raise ValueError(f"no advantage estimator is called {name!r}; known: {', '.join(ESTIMATORS)}")
    parameters = inspect.signature(ESTIMATORS[name]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def estimate(
    name: str,
    groups: Sequence[GroupRewards],
    weights: Weights | None = None,
    *,
    greedy: Sequence[GroupRewards] | None = None,
    **options: Any,
) -> list[Array]:
    """Advantages of every group by the estimator of a configuration, float64 (G, T) each.

    Args:
        name: a key of `ESTIMATORS`. weights: by stream; None takes the paper's for `love_r1` and `longvila_r1`.
        greedy: for `remax`, each group's greedy rollout, in the order of the groups.
        options: what the estimator takes (`options_of`).

    Raises:
        ValueError: an unknown estimator (the message lists the known ones) or option; no weights for an estimator that
            has none of its own; greedy rollouts that are missing, too many, or not asked for; and what the estimator
            raises.
    """
    accepted = tuple(o for o in options_of(name) if o != "greedy")
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ValueError(f"the estimator {name!r} takes no {unknown}; it takes {list(accepted)}")
    if (greedy is not None) != (name == "remax") or (greedy is not None and len(greedy) != len(groups)):
        given = "none" if greedy is None else str(len(greedy))
        raise ValueError(
            f"greedy rollouts are for 'remax', one for each of the {len(groups)} groups; got {given} for {name!r}"
        )
    estimator = ESTIMATORS[name]
    if weights is None:
        if inspect.signature(estimator).parameters["weights"].default is inspect.Parameter.empty:
            raise ValueError(f"the estimator {name!r} needs a weight for each reward stream it shall train on")
    else:
        options = {"weights": weights, **options}
    if name == "reinforce_plus_plus":
        return list(estimator(groups, **options))
    if greedy is not None:
        return [estimator(g, greedy=one, **options) for g, one in zip(groups, greedy, strict=True)]
    return [estimator(group, **options) for group in groups]
