"""Whose gradient an advantage estimator gives: small problems in which every group there can be is enumerated.

A group's estimate is the mean over its rollouts of the sum over steps of advantage times gradient of the
log-probability; here its expectation is exact, and the true gradient is known in closed form. Estimators that are
biased by design are shown to have the very bias that `closeup.rl.advantages` tells of.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from closeup.rl.advantages import (
    ESTIMATORS,
    decoupled,
    dr_grpo,
    episode_sum,
    estimate,
    grpo,
    longvila_r1,
    love_r1,
    outcome_only,
    reinforce_plus_plus,
    remax,
    rloo,
    turn_level,
)
from closeup.rl.credit import Array, GroupRewards

Rewards = Mapping[str, Sequence[float | None]]
Estimator = Callable[[GroupRewards], Array]


@dataclass(frozen=True)
class Path:
    """One thing that may happen: its probability, what it earns by stream and step, and the gradient of each step's
    log-probability, (steps, parameters)."""

    probability: float
    rewards: Rewards
    scores: Sequence[Sequence[float]]


def make(paths: Sequence[Path]) -> GroupRewards:
    """The rewards of rollouts that took these paths."""
    lengths = [len(path.scores) for path in paths]
    reached = np.arange(max(lengths)) < np.array(lengths)[:, None]
    streams = tuple(paths[0].rewards)
    values = np.full((len(streams), *reached.shape), math.nan)
    for (k, name), (i, path) in itertools.product(enumerate(streams), enumerate(paths)):
        values[k, i, : lengths[i]] = [math.nan if r is None else r for r in path.rewards[name]]
    return GroupRewards(streams, values, reached)


def everything(paths: Sequence[Path], rollouts: int) -> Iterator[tuple[float, GroupRewards, list[Path]]]:
    """Each possible group with its probability and its rollouts."""
    for chosen in itertools.product(paths, repeat=rollouts):
        yield math.prod(path.probability for path in chosen), make(chosen), list(chosen)


def expected(estimator: Estimator, paths: Sequence[Path], rollouts: int) -> Array:
    """The expected estimate, by parameter."""
    total = np.zeros(len(paths[0].scores[0]))
    for probability, group, chosen in everything(paths, rollouts):
        for row, path in zip(estimator(group), chosen, strict=True):
            total += probability / rollouts * (row[: len(path.scores)] @ np.array(path.scores))
    return total


def cosine(one: Array, two: Array) -> float:
    return float(one @ two / math.sqrt((one @ one) * (two @ two)))


def times(n: int, of: int, p: float) -> float:
    """Probability of n successes among `of`."""
    return math.comb(of, n) * p**n * (1 - p) ** (of - n)


def mean_over(rollouts: int, p: float, worth: float, divided: Callable[[float], float]) -> float:
    """E[s^2 / divided(s)], s the standard deviation (Bessel) of rewards that are `worth` with chance p and else 0."""
    total = 0.0
    for n in range(1, rollouts):
        s = worth * math.sqrt(n * (rollouts - n) / (rollouts * (rollouts - 1)))
        total += times(n, rollouts, p) * s * s / divided(s)
    return total


# ---- one message, right or wrong ------------------------------------------------------------------------------------
#
# Four messages, two of them right; one parameter, a logit, for each. Everything is well-formed.

CHANCES, RIGHT, ROLLOUTS = (0.1, 0.3, 0.15, 0.45), (1.0, 0.0, 1.0, 0.0), 4
RATE = CHANCES[0] + CHANCES[2]


def softmax_paths(rewards: Sequence[Rewards]) -> list[Path]:
    """One step, in which message a is chosen with the chance `CHANCES[a]` and earns `rewards[a]`."""
    chances = np.array(CHANCES)
    return [Path(p, r, [np.eye(4)[a] - chances]) for a, (p, r) in enumerate(zip(CHANCES, rewards, strict=True))]


def softmax_truth(returns: Sequence[float]) -> Array:
    """The gradient of the expected return: p_a (r_a - mean r)."""
    chances, numbers = np.array(CHANCES), np.array(returns)
    return np.asarray(chances * (numbers - chances @ numbers))


ONE = softmax_paths([{"answer": [r], "format": [1.0]} for r in RIGHT])
TRUTH = softmax_truth(RIGHT)
W = 2.0
OWN = (ROLLOUTS - 1) / ROLLOUTS  # a rollout is part of its own baseline


def floored(s: float) -> float:
    return max(s, 0.1)


SCALED: dict[str, tuple[Estimator, float, float, Callable[[float], float]]] = {
    # name: estimator, factor, what a right answer is worth when s is taken, the divisor
    "decoupled": (lambda g: decoupled(g, {"answer": W, "format": 1.0}), W, 1.0, floored),
    "episode_sum": (lambda g: episode_sum(g, {"answer": W, "format": 1.0}), W, W, floored),
    "outcome_only": (lambda g: outcome_only(g, {"answer": W, "format": 1.0}), W, W, floored),
    "turn_level": (lambda g: turn_level(g, {"answer": W}), W * OWN, 1.0, lambda s: s + 1e-4),
    "grpo": (lambda g: grpo(g, {"answer": W, "format": 1.0}), W * OWN, W, lambda s: s + 1e-4),
    "love_r1": (lambda g: love_r1(g, zoom=None), OWN, 1.0, lambda s: s + 1e-4),
    "longvila_r1": (longvila_r1, 0.9 * OWN, 0.9, lambda s: s + 1e-6),
    "reinforce_plus_plus": (
        lambda g: reinforce_plus_plus([g], {"answer": W})[0],
        W * OWN,
        W,
        lambda s: s + 1e-8,
    ),
}
EXACT: dict[str, Estimator] = {
    "decoupled, none": lambda g: decoupled(g, {"answer": 1.0}, scale_rewards="none"),
    "episode_sum, none": lambda g: episode_sum(g, {"answer": 1.0}, scale_rewards="none"),
    "outcome_only, none": lambda g: outcome_only(g, {"answer": 1.0}, scale_rewards="none"),
    "rloo": lambda g: rloo(g, {"answer": 1.0}),
    "remax": lambda g: remax(g, {"answer": 1.0}, greedy=make([ONE[3]])),
    "dr_grpo / own share": lambda g: dr_grpo(g, {"answer": 1.0}) / OWN,
    "turn_level, none / own share": lambda g: turn_level(g, {"answer": 1.0}, scale_rewards="none") / OWN,
}


def test_every_estimator_is_here() -> None:
    assert {name.split(",")[0].split(" /")[0] for name in [*SCALED, *EXACT]} == set(ESTIMATORS)


@pytest.mark.parametrize("name", EXACT)
def test_unscaled_estimators_have_the_true_gradient(name: str) -> None:
    np.testing.assert_allclose(expected(EXACT[name], ONE, ROLLOUTS), TRUTH, atol=1e-12)


@pytest.mark.parametrize("name", SCALED)
def test_of_two_values_the_direction_is_right_and_the_length_is_known(name: str) -> None:
    estimator, factor, worth, divided = SCALED[name]
    length = factor * mean_over(ROLLOUTS, RATE, worth, divided) / (worth**2 * RATE * (1 - RATE))
    found = expected(estimator, ONE, ROLLOUTS)
    np.testing.assert_allclose(found, length * TRUTH, atol=1e-12)
    assert length * worth > 1.5 * factor  # and not that of the truth: 1 / s is more than 1


def test_a_task_of_middling_difficulty_weighs_less_than_it_should() -> None:
    """The gradient of p over the logit is p (1 - p); scaled it falls by less towards p = 0."""
    lengths = [mean_over(8, p, 1.0, floored) / (p * (1 - p)) for p in (0.02, 0.1, 0.3, 0.5)]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > 1.3 * lengths[-1]


# ---- one message, several values ------------------------------------------------------------------------------------

FOUR = [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)]  # answer and format of each message
MANY = softmax_paths([{"answer": [a], "format": [f]} for a, f in FOUR])
NINE_TO_ONE = {"answer": 0.9, "format": 0.1}


@pytest.mark.parametrize(
    ("estimator", "unscaled", "eps"),
    [
        (longvila_r1, lambda g: dr_grpo(g, NINE_TO_ONE), 1e-6),
        (lambda g: grpo(g, NINE_TO_ONE), lambda g: dr_grpo(g, NINE_TO_ONE), 1e-4),
        (lambda g: love_r1(g, zoom=None), None, 1e-4),
        (lambda g: episode_sum(g, NINE_TO_ONE), lambda g: rloo(g, NINE_TO_ONE), None),
    ],
    ids=["longvila_r1", "grpo", "love_r1", "episode_sum"],
)
def test_of_several_values_each_group_is_divided_by_its_own_deviation_and_the_direction_is_off(
    estimator: Estimator, unscaled: Estimator | None, eps: float | None
) -> None:
    def number(a: float, f: float) -> float:
        """love_r1: accuracy + format, and no accuracy without a format."""
        return (a + 1) * f if unscaled is None else 0.9 * a + 0.1 * f

    numbers = {id(path): number(*FOUR[a]) for a, path in enumerate(MANY)}

    def by_hand(chosen: Sequence[Path]) -> Array:
        returns = np.array([numbers[id(path)] for path in chosen])
        apart, s = returns - returns.mean(), returns.std(ddof=1)
        return np.asarray(apart / (s + eps) if eps is not None else apart / OWN / max(s, 0.1))

    for _, group, chosen in everything(MANY, ROLLOUTS):
        np.testing.assert_allclose(estimator(group)[:, 0], by_hand(chosen), atol=1e-9)
    truth = softmax_truth([number(*pair) for pair in FOUR])
    assert 0.9 < cosine(expected(estimator, MANY, ROLLOUTS), truth) < 0.9995
    if unscaled is not None:
        assert cosine(expected(unscaled, MANY, ROLLOUTS), truth) == pytest.approx(1, abs=1e-12)


# ---- two steps ------------------------------------------------------------------------------------------------------
#
# Step 0: go on with probability P. Step 1, if there is one: say 1 with probability Q. A step taken earns 1 in `zoom`;
# the answer is worth what was said, or HERE for stopping. The parameters are the two logits.

P, Q, HERE, GROUP = 0.3, 0.8, 0.4, 5
WEIGHTS = {"zoom": 0.7, "answer": 2.0}
TRUE = np.array([P * (1 - P) * (0.7 + 2.0 * (Q - HERE)), P * Q * (1 - Q) * 2.0])
COMPANY = np.array([1.0, 1 - (1 - P) ** (GROUP - 1)])  # the chance that another rollout reached the step


def two_steps(p: float = P, q: float = Q, stopping: float | None = 0.0) -> list[Path]:
    return [
        Path(1 - p, {"zoom": [stopping], "answer": [HERE]}, [[-p, 0.0]]),
        Path(p * (1 - q), {"zoom": [stopping, 1.0], "answer": [None, 0.0]}, [[1 - p, 0.0], [0.0, -q]]),
        Path(p * q, {"zoom": [stopping, 1.0], "answer": [None, 1.0]}, [[1 - p, 0.0], [0.0, 1 - q]]),
    ]


GREEDY = make(two_steps()[:1])  # stops


@pytest.mark.parametrize(
    "estimator",
    [
        lambda g: episode_sum(g, WEIGHTS, scale_rewards="none"),
        lambda g: rloo(g, WEIGHTS),
        lambda g: remax(g, WEIGHTS, greedy=GREEDY),
        lambda g: dr_grpo(g, WEIGHTS) * GROUP / (GROUP - 1),
        lambda g: episode_sum(g, WEIGHTS, std_floor=9.0) * 9,
    ],
    ids=["episode_sum", "rloo", "remax", "dr_grpo times G/(G-1)", "episode_sum under a high floor"],
)
def test_episode_level_estimators_have_the_true_gradient(estimator: Estimator) -> None:
    np.testing.assert_allclose(expected(estimator, two_steps(), GROUP), TRUE, atol=1e-12)


@pytest.mark.parametrize(
    "estimator",
    [
        lambda g: decoupled(g, WEIGHTS, scale_rewards="none"),
        lambda g: decoupled(g, WEIGHTS, std_floor=9.0) * 9,
    ],
    ids=["unscaled", "under a high floor"],
)
def test_decoupled_has_the_true_gradient_up_to_who_is_alone(estimator: Estimator) -> None:
    np.testing.assert_allclose(expected(estimator, two_steps(), GROUP), TRUE * COMPANY, atol=1e-12)


def test_scaled_decoupled_divides_each_stream_of_a_group_by_one_number_and_its_direction_is_off() -> None:
    """By hand: per stream the unscaled estimate over the pooled deviation of the returns, at least the floor."""
    total = np.zeros(2)
    for probability, group, chosen in everything(two_steps(), GROUP):
        for name, weight in WEIGHTS.items():
            plain = decoupled(group, {name: weight}, scale_rewards="none")
            squares, freedom = 0.0, 0
            for t in range(group.reached.shape[1]):
                ahead = [sum(r or 0.0 for r in path.rewards[name][t:]) for path in chosen if len(path.scores) > t]
                squares += float(np.var(ahead)) * len(ahead) if ahead else 0.0
                freedom += max(len(ahead) - 1, 0)
            s = max(math.sqrt(squares / freedom), 0.1)
            for row, path in zip(plain, chosen, strict=True):
                total += probability / GROUP / s * (row[: len(path.scores)] @ np.array(path.scores))
    found = expected(lambda g: decoupled(g, WEIGHTS), two_steps(), GROUP)
    np.testing.assert_allclose(found, total, atol=1e-12)
    assert (found > 0).all() and 0.9 < cosine(found, TRUE * COMPANY) < 0.9999


def test_outcome_only_has_the_gradient_of_the_outcome() -> None:
    found = expected(lambda g: outcome_only(g, WEIGHTS, scale_rewards="none"), two_steps(), GROUP)
    np.testing.assert_allclose(found, [P * (1 - P) * 2.0 * (Q - HERE), TRUE[1]], atol=1e-12)


def test_discounting_is_the_gradient_of_the_discounted_return() -> None:
    found = expected(lambda g: decoupled(g, WEIGHTS, gamma=0.5, scale_rewards="none"), two_steps(), GROUP)
    assert found[0] == pytest.approx(P * (1 - P) * (0.5 * 0.7 + 2.0 * (0.5 * Q - HERE)), abs=1e-12)


def test_centring_immediate_rewards_per_turn_loses_a_gradient() -> None:
    for scale in ("none", "group"):
        found = expected(
            lambda g, s=scale: turn_level(g, {"zoom": 1.0}, scale_rewards=s),  # type: ignore[misc]
            two_steps(),
            GROUP,
        )
        np.testing.assert_allclose(found, 0, atol=1e-12)  # the truth is P (1 - P) = 0.21
    found = expected(lambda g: turn_level(g, WEIGHTS, scale_rewards="none"), two_steps(), GROUP)
    assert abs(found[0] - TRUE[0]) > 0.1 * TRUE[0]


def test_an_unscored_stream_says_nothing_about_whether_to_go_on() -> None:
    """The zoom stream unscored, not 0, for stopping: it does not speak for going on any more, only the answer does."""
    silent_stop = two_steps(stopping=None)
    for estimator in (lambda g, w: decoupled(g, w, scale_rewards="none"), rloo):
        found = expected(lambda g, e=estimator: e(g, WEIGHTS), silent_stop, GROUP)  # type: ignore[misc]
        silent = expected(lambda g, e=estimator: e(g, {"answer": 2.0}), silent_stop, GROUP)  # type: ignore[misc]
        np.testing.assert_allclose(found, silent, atol=1e-12)
        assert abs(found[0] - TRUE[0]) > 0.1


def test_a_judge_that_fails_at_random_leaves_the_gradient_its_direction() -> None:
    """One answer in three is not judged; the rest say the same as before, less by who has nobody to compare with."""
    failing = 1 / 3
    paths = [
        Path(path.probability * chance, {"format": [1.0], "judge": [r]}, path.scores)
        for path, right in zip(ONE, RIGHT, strict=True)
        for chance, r in ((1 - failing, right), (failing, None))
    ]
    weights = {"format": 0.2, "judge": 1.0}
    judged = 1 - failing
    company = 1 - failing ** (3 - 1)
    for estimator in (rloo, lambda g, w: decoupled(g, w, scale_rewards="none")):
        found = expected(lambda g, e=estimator: e(g, weights), paths, 3)  # type: ignore[misc]
        np.testing.assert_allclose(found, judged * company * TRUTH, atol=1e-12)
    own = sum(times(n, 3, judged) * max(n - 1, 0) / 3 for n in range(4))
    np.testing.assert_allclose(expected(lambda g: dr_grpo(g, weights), paths, 3), own * TRUTH, atol=1e-12)


def test_reinforce_plus_plus_lacks_the_gradient_of_the_batchs_mean_return() -> None:
    """The mean over all steps is a baseline that depends on what was done: E[b sum of scores] = gradient of E[b]."""

    def pooled(group: GroupRewards) -> tuple[float, float]:
        """Mean and deviation of all steps' returns, by loops."""
        returns = [
            sum(
                weight * float(np.nan_to_num(group.stream(name)[i, u]))
                for name, weight in WEIGHTS.items()
                for u in range(t, group.reached.shape[1])
            )
            for i, t in np.argwhere(group.reached)
        ]
        return float(np.mean(returns)), float(np.std(returns, ddof=1))

    def mean_return(p: float, q: float) -> float:
        return sum(chance * pooled(group)[0] for chance, group, _ in everything(two_steps(p, q), GROUP))

    def unscaled(group: GroupRewards) -> Array:
        return reinforce_plus_plus([group], WEIGHTS)[0] * (pooled(group)[1] + 1e-8)

    step = 1e-5
    slopes = np.array(
        [
            P * (1 - P) * (mean_return(P + step, Q) - mean_return(P - step, Q)) / (2 * step),
            Q * (1 - Q) * (mean_return(P, Q + step) - mean_return(P, Q - step)) / (2 * step),
        ]
    )
    found = expected(unscaled, two_steps(), GROUP)
    np.testing.assert_allclose(found, TRUE - slopes / GROUP, atol=1e-8)
    assert np.abs(slopes / GROUP).min() > 0.01  # a bias that one can see


def test_love_r1_compares_each_step_with_those_who_reached_it_and_leaves_later_formats_out() -> None:
    """Stop and be right with chance H, or look and then answer rightly with chance Q, or else break the format."""
    h, rollouts = 0.6, 4
    stop, go = [[-P, 0.0]], [1 - P, 0.0]
    paths = [
        Path((1 - P) * h, {"format": [1.0], "answer": [1.0]}, stop),
        Path((1 - P) * (1 - h), {"format": [1.0], "answer": [0.0]}, stop),
        Path(P * Q, {"format": [1.0, 1.0], "answer": [None, 1.0]}, [go, [0.0, 1 - Q]]),
        Path(P * (1 - Q), {"format": [1.0, 0.0], "answer": [None, None]}, [go, [0.0, -Q]]),
    ]

    def divided(s: float) -> float:
        return s + 1e-4

    right = (1 - P) * h + P * Q  # step 0 earns 2 where the answer it led to is right, else 1
    length = (rollouts - 1) / rollouts * mean_over(rollouts, right, 1.0, divided) / (right * (1 - right))
    of_accuracy = P * (1 - P) * (Q - h)
    whole = of_accuracy + P * (1 - P) * Q  # with the format reward that going on earns as well
    second = sum(  # step 1 earns 2 or 0; m rollouts reach it
        times(m, rollouts, P) * (m - 1) / rollouts * mean_over(m, Q, 2.0, divided) / 2 for m in range(2, rollouts + 1)
    )
    found = expected(lambda g: love_r1(g, zoom=None), paths, rollouts)
    np.testing.assert_allclose(found, [length * of_accuracy, second], atol=1e-12)
    assert found[0] < 0.5 * length * whole


@pytest.mark.parametrize("reward", [1.0, -1.0])
def test_monte_carlo_in_large_groups(reward: float) -> None:
    """Go on with probability 1/2 and earn `reward` at the next step: the true gradient is a quarter of it."""
    draws = np.random.default_rng(7)
    goes = draws.random((2500, 8)) < 0.5
    on, off = Path(0.5, {"zoom": [0.0, reward]}, [[0.5], [0.0]]), Path(0.5, {"zoom": [0.0]}, [[-0.5]])
    made = [make([on if one else off for one in row]) for row in goes]
    gradients = np.where(goes, 0.5, -0.5)

    def error(advantages: Sequence[Array], scale: float = 1.0) -> float:
        """Distance of the estimate from the true gradient, in standard errors."""
        per_group = scale * (np.stack([a[:, 0] for a in advantages]) * gradients).mean(axis=1)
        assert 0 < per_group.std() < 0.5 or scale == 0
        return float(abs(per_group.mean() - 0.25 * reward) / (per_group.std(ddof=1) / math.sqrt(len(per_group))))

    def of(name: str, **options: Any) -> list[Array]:
        return estimate(name, made, {"zoom": 1.0}, **options)

    for name in ("decoupled", "episode_sum"):
        assert error(of(name, scale_rewards="none")) < 4
    assert error(of("rloo")) < 4
    assert error(of("remax", greedy=[make([off])] * len(made))) < 4
    assert error(of("dr_grpo"), 8 / 7) < 4
    assert error(of("dr_grpo")) > 4  # short by the factor 7/8, which the test can see
    spread = np.concatenate([np.where(one, reward, 0.0).repeat(1 + int(one)) for one in goes.ravel()]).std(ddof=1)
    assert error(of("reinforce_plus_plus"), float(spread)) < 4  # a batch of 20 000 rollouts: its bias is gone
    biased = of("turn_level", scale_rewards="none")
    assert max(np.abs(a).max() for a in biased) == 0  # nothing at all is left of the gradient
