"""Advantage estimators: their formulas against loops, what they promise, and whether their gradient is the true one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from closeup.rl.advantages import (
    ESTIMATORS,
    decoupled,
    dr_grpo,
    episode_sum,
    estimate,
    grpo,
    has_signal,
    lone,
    longvila_r1,
    love_r1,
    options_of,
    outcome_only,
    reinforce_plus_plus,
    remax,
    rloo,
    turn_level,
)
from closeup.rl.credit import Array, GroupRewards

Rows = Sequence[Sequence[float | None]]
ONE_GROUP = [name for name in ESTIMATORS if name not in ("reinforce_plus_plus", "remax")]


def make(streams: Mapping[str, Rows]) -> GroupRewards:
    """A group from rewards by stream, rollout and step; None is unscored; the lengths say which steps there were."""
    lengths = [len(row) for row in next(iter(streams.values()))]
    reached = np.array([[t < n for t in range(max(lengths))] for n in lengths])
    values = np.full((len(streams), *reached.shape), math.nan)
    for k, rows in enumerate(streams.values()):
        for i, row in enumerate(rows):
            values[k, i, : len(row)] = [math.nan if reward is None else reward for reward in row]
    return GroupRewards(tuple(streams), values, reached)


@st.composite
def groups(draw: st.DrawFn, streams: Sequence[str] = ("format", "zoom", "answer")) -> GroupRewards:
    """Any group: steps that were not reached or are masked, rewards that were not scored."""
    rollouts, steps = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    shape = (len(streams), rollouts, steps)
    reached = np.array(draw(st.lists(st.booleans(), min_size=rollouts * steps, max_size=rollouts * steps)))
    reached = reached.reshape(rollouts, steps)
    numbers = st.sampled_from([math.nan, 0.0, 0.5, 1.0, -2.0])
    values = np.array(draw(st.lists(numbers, min_size=math.prod(shape), max_size=math.prod(shape)))).reshape(shape)
    return GroupRewards(tuple(streams), np.where(reached, values, math.nan), reached)


def with_defaults(name: str) -> Callable[[GroupRewards], Array]:
    """A one-group estimator on the streams of `groups()`, with the weights it takes."""
    weights = None if name in ("love_r1", "longvila_r1") else {"format": 0.5, "zoom": -1.0, "answer": 2.0}
    return lambda group: estimate(name, [group], weights)[0]


def by_loops(group: GroupRewards, weights: Mapping[str, float], gamma: float, scaled: bool, floor: float) -> Array:
    """`decoupled`, written as its docstring reads."""
    rollouts, steps = group.reached.shape
    total = np.zeros((rollouts, steps))
    for name, weight in weights.items():
        returns: dict[tuple[int, int], float] = {}
        for i, t in itertools.product(range(rollouts), range(steps)):
            rewards = [(u - t, float(group.stream(name)[i, u])) for u in range(t, steps)]
            scored = [gamma**ahead * reward for ahead, reward in rewards if not math.isnan(reward)]
            if group.reached[i, t] and scored:
                returns[i, t] = sum(scored)
        squares, freedom = 0.0, 0
        for t in range(steps):
            here = [value for (_, at), value in returns.items() if at == t]
            if here:
                squares += sum((value - sum(here) / len(here)) ** 2 for value in here)
                freedom += len(here) - 1
        scale = max(floor, math.sqrt(squares / freedom) if freedom else 0.0) if scaled else 1.0
        for (i, t), value in returns.items():
            others = [other for (j, at), other in returns.items() if at == t and j != i]
            if others:
                total[i, t] += weight * (value - sum(others) / len(others)) / scale
    return total


@given(groups(), st.sampled_from([0.0, 0.5, 1.0]), st.booleans(), st.sampled_from([0.01, 0.6]))
def test_decoupled_is_its_formula(group: GroupRewards, gamma: float, scaled: bool, floor: float) -> None:
    weights = {"answer": 1.0, "zoom": 0.3, "format": -0.5}
    found = decoupled(group, weights, gamma=gamma, scale_rewards="group" if scaled else "none", std_floor=floor)
    np.testing.assert_allclose(found, by_loops(group, weights, gamma, scaled, floor), atol=1e-12)
    assert found.dtype == np.float64 and found.shape == group.reached.shape


@pytest.mark.parametrize("name", ONE_GROUP)
@given(group=groups(), data=st.data())
def test_rollouts_are_exchangeable(name: str, group: GroupRewards, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(group.reached))))
    moved = GroupRewards(group.streams, group.values[:, order], group.reached[order])
    compute = with_defaults(name)
    np.testing.assert_allclose(compute(moved), compute(group)[order], atol=1e-9)


@pytest.mark.parametrize("name", ONE_GROUP)
@given(group=groups())
def test_what_does_not_count_gets_0_and_changes_nothing(name: str, group: GroupRewards) -> None:
    compute = with_defaults(name)
    alone = compute(group)
    assert (alone[~group.reached] == 0).all() and np.isfinite(alone).all()
    rollouts, steps = group.reached.shape
    more = GroupRewards(
        group.streams,
        np.concatenate([group.values, np.full((3, 1, steps), math.nan)], axis=1),
        np.concatenate([group.reached, np.zeros((1, steps), bool)]),
    )
    np.testing.assert_allclose(compute(more)[:rollouts], alone, rtol=1e-12, atol=1e-12)
    assert (compute(more)[rollouts] == 0).all()


@given(groups(), st.lists(st.floats(-5, 5), min_size=4, max_size=4), st.sampled_from(["group", "none"]))
def test_a_constant_stream_contributes_exactly_nothing(
    group: GroupRewards, levels: list[float], scale_rewards: Any
) -> None:
    steps = group.reached.shape[1]
    whole = np.ones_like(group.reached)  # who goes on longer earns more of a constant: all go equally far here
    values = np.broadcast_to(levels[:steps], (1, *whole.shape))
    constant = GroupRewards(("zoom",), values, whole)
    assert (decoupled(constant, {"zoom": 1e6}, scale_rewards=scale_rewards, std_floor=1e-6) == 0).all()
    assert not has_signal(decoupled(constant, {"zoom": 1e6}))
    assert (episode_sum(constant, {"zoom": 1.0}) == 0).all() and (grpo(constant, {"zoom": 1.0}) == 0).all()


@given(groups(), st.integers(0, 3), st.sampled_from([0.5, 1.0]))
def test_no_reward_that_was_earned_before(group: GroupRewards, t: int, gamma: float) -> None:
    values = np.array(group.values)
    values[:, :, :t] += 17.0
    values[:, ::2, :t] = np.where(group.reached[::2, :t], -3.0, math.nan)  # unscored rewards become scored ones, too
    changed = GroupRewards(group.streams, values, group.reached)
    weights = {"format": 0.5, "zoom": -1.0, "answer": 2.0}
    before, after = (decoupled(g, weights, gamma=gamma, scale_rewards="none") for g in (group, changed))
    np.testing.assert_array_equal(before[:, t:], after[:, t:])


def test_credit_of_a_hand_made_group() -> None:
    group = make({"zoom": [[1, 0], [0, 0], [0]], "answer": [[None, 1], [None, 0], [0]]})
    found = decoupled(group, {"zoom": 1.0, "answer": 10.0}, scale_rewards="none")
    zoom = [[1, 0], [-0.5, 0], [-0.5, 0]]  # step 1: both 0
    answer = [[1, 1], [-0.5, -1], [-0.5, 0]]  # the answer is credited from the first step on
    np.testing.assert_allclose(found, np.array(zoom) + 10 * np.array(answer))
    np.testing.assert_allclose(
        episode_sum(group, {"zoom": 1.0, "answer": 10.0}, scale_rewards="none"),
        [[11, 11], [-5.5, -5.5], [-5.5, 0]],
    )
    np.testing.assert_allclose(
        outcome_only(group, {"zoom": 1.0, "answer": 10.0}, scale_rewards="none"), [[10, 10], [-5, -5], [-5, 0]]
    )


def test_an_unscored_return_gets_0_and_is_left_out_of_the_baseline_of_the_others() -> None:
    group = make({"zoom": [[4.0], [1.0], [None]]})
    np.testing.assert_allclose(decoupled(group, {"zoom": 1.0}, scale_rewards="none"), [[3], [-3], [0]])
    np.testing.assert_allclose(rloo(group, {"zoom": 1.0}), [[3], [-3], [0]])
    np.testing.assert_allclose(dr_grpo(group, {"zoom": 1.0}), [[1.5], [-1.5], [0]])
    later = make({"zoom": [[None, 4.0], [None, 1.0], [2.0, None]]})
    found = decoupled(later, {"zoom": 1.0}, scale_rewards="none")
    np.testing.assert_allclose(found[:, 0], [4 - 1.5, 1 - 3, 2 - 2.5])  # unscored adds nothing to a scored return
    np.testing.assert_allclose(found[:, 1], [3, -3, 0])


def test_who_is_alone_gets_0_and_is_counted() -> None:
    group = make({"zoom": [[0.0, 1.0], [0.0], [0.0]], "answer": [[None, None], [1.0], [0.0]]})
    found = decoupled(group, {"zoom": 1.0, "answer": 1.0})
    assert found[0, 1] == 0 and found[0, 0] > 0
    np.testing.assert_array_equal(lone(group, {"zoom": 1.0, "answer": 1.0}), [[False, True], [False] * 2, [False] * 2])
    # in the answer stream rollout 0 has no return at all: it is unscored there, not alone
    np.testing.assert_array_equal(lone(group, {"answer": 1.0}), np.zeros((3, 2), bool))
    for name in ONE_GROUP:
        single = make({"format": [[1.0, 1.0]], "zoom": [[1.0, None]], "answer": [[None, 1.0]]})
        assert (with_defaults(name)(single) == 0).all(), name


def test_the_floor_keeps_small_differences_small() -> None:
    group = make({"cost": [[0.010], [0.011], [0.012], [0.013]]})
    weights = {"cost": 1.0}
    plain = decoupled(group, weights, scale_rewards="none")
    np.testing.assert_allclose(decoupled(group, weights), plain / 0.1)
    deviation = np.std(group.values, ddof=1)
    np.testing.assert_allclose(decoupled(group, weights, std_floor=1e-6), plain / deviation)
    assert np.abs(grpo(group, weights)).max() > 1  # GRPO blows them up


def test_discounts_by_stream() -> None:
    group = make({"zoom": [[0, 0, 8], [0, 0, 0]], "answer": [[0, 0, 8], [0, 0, 0]]})
    found = decoupled(group, {"zoom": 1.0, "answer": 100.0}, gamma={"zoom": 0.5}, scale_rewards="none")
    np.testing.assert_allclose(found[0], [802, 804, 808])


@given(groups(), groups())
def test_normalising_estimators_are_their_formulas(one: GroupRewards, two: GroupRewards) -> None:
    weights = {"format": 0.5, "answer": 2.0}
    numbers = [
        [sum(w * np.nansum(g.stream(n)[i]) for n, w in weights.items()) for i in range(len(g.reached))]
        for g in (one, two)
    ]
    scored = [
        [any(~np.isnan(g.stream(n)[i]).all() for n in weights) for i in range(len(g.reached))] for g in (one, two)
    ]
    for group, number, have in zip((one, two), numbers, scored, strict=True):
        some = [x for x, h in zip(number, have, strict=True) if h]
        mean, std = (np.mean(some), np.std(some, ddof=1)) if len(some) > 1 else (number, 0.0)
        wanted = np.where(have, np.subtract(number, mean), 0.0)
        np.testing.assert_allclose(dr_grpo(group, weights), wanted[:, None] * group.reached, atol=1e-9)
        np.testing.assert_allclose(
            grpo(group, weights), wanted[:, None] / (std + 1e-4) * group.reached, rtol=1e-6, atol=1e-9
        )

    returns = []
    for group in (one, two):
        rollouts, steps = group.reached.shape
        for i, t in itertools.product(range(rollouts), range(steps)):
            ahead = [(u - t, n) for u in range(t, steps) for n in weights if not np.isnan(group.stream(n)[i, u])]
            value = sum(0.9**u * weights[n] * group.stream(n)[i, t + u] for u, n in ahead)
            returns.append(value if ahead and group.reached[i, t] else math.nan)
    some = [value for value in returns if not math.isnan(value)]
    mean, std = (np.mean(some), np.std(some, ddof=1)) if len(some) > 1 else (some[0] if some else 0.0, 1.0)
    found = np.concatenate([part.ravel() for part in reinforce_plus_plus([one, two], weights, gamma=0.9)])
    np.testing.assert_allclose(found, np.nan_to_num((np.array(returns) - mean) / (std + 1e-8)), rtol=1e-5, atol=1e-6)


def test_remax_subtracts_the_greedy_rollout() -> None:
    group = make({"zoom": [[1, 0], [0]], "answer": [[None, 1], [None]]})
    weights = {"zoom": 1.0, "answer": 10.0}
    greedy = make({"zoom": [[1, 1, 1]], "answer": [[None, None, None]]})
    np.testing.assert_allclose(remax(group, weights, greedy=greedy), [[8, 8], [-3, 0]])
    silent = make({"zoom": [[None]], "answer": [[None]]})
    assert (remax(group, weights, greedy=silent) == 0).all()
    with pytest.raises(ValueError, match="got 2 rollouts"):
        remax(group, weights, greedy=group)


# ---- the papers' rules ----------------------------------------------------------------------------------------------


def by_step(rewards: list[list[float | None]]) -> Array:
    """(r - mean) / (std + 1e-4) down the columns, over those that have a number."""
    numbers = np.array([[math.nan if r is None else r for r in row] for row in rewards], np.float64)
    return np.nan_to_num((numbers - np.nanmean(numbers, 0)) / (np.nanstd(numbers, 0, ddof=1) + 1e-4))


def test_love_r1_answer_samples() -> None:
    group = make(
        {
            "format": [[1, 1], [1, 1], [1], [0, 1], [1, 0]],
            "zoom": [[None, None], [None, None], [None], [None, None], [None, None]],
            "answer": [[None, 1], [None, 0], [1], [None, 1], [None, None]],
        }
    )
    wanted = by_step(
        [
            [2, 2],  # a look that led to the right answer is right
            [1, 1],  # and to a wrong one, wrong
            [2, None],  # answered at once
            [0, 2],  # a broken message is worth nothing, whatever came of it
            [1, 0],  # a look whose answer could not be read is wrong
        ]
    )
    np.testing.assert_allclose(love_r1(group), wanted, atol=1e-12)
    np.testing.assert_allclose(love_r1(group, zoom=None), wanted, atol=1e-12)


def test_love_r1_grounding_samples_and_both_at_once() -> None:
    group = make(
        {
            "format": [[1, 1], [1, 1], [0, 1], [1, 1]],
            "zoom": [[1, None], [0, None], [1, None], [1, None]],
            "answer": [[None, 1], [None, 1], [None, 0], [None, 0]],
        }
    )
    answers: list[float | None] = [2, 2, 1, 1]
    overlap = by_step([[r, a] for r, a in zip([2, 1, 0, 2], answers, strict=True)])
    np.testing.assert_allclose(love_r1(group), overlap, atol=1e-12)
    by_answer = by_step([[r, a] for r, a in zip([2, 2, 0, 1], answers, strict=True)])
    np.testing.assert_allclose(love_r1(group, zoom=None), by_answer, atol=1e-12)


def test_love_r1_leaves_masked_steps_out_of_mean_and_std() -> None:
    rows: dict[str, Rows] = {"format": [[1, 1], [1, 1], [1, 1]], "answer": [[None, 1], [None, 0], [None, None]]}
    group = make(rows)
    reached = np.array([[True, True], [True, True], [False, False]])
    masked = GroupRewards(group.streams, np.where(reached, group.values, math.nan), reached)
    found = love_r1(masked, zoom=None)
    np.testing.assert_allclose(found[:2], by_step([[2, 2], [1, 1]]))
    assert (found[2] == 0).all()
    only = GroupRewards(group.streams, np.where(reached[:1], group.values[:, :1], math.nan), reached[:1])
    assert (love_r1(only, zoom=None) == 0).all()  # alone: its own mean, and a deviation of 1 in the paper's code


def test_love_r1_does_not_make_up_an_accuracy() -> None:
    group = make({"format": [[1], [1], [1]], "answer": [[1], [0], [None]]})
    np.testing.assert_allclose(love_r1(group, zoom=None), by_step([[2], [1], [None]]))
    np.testing.assert_allclose(love_r1(group, {"answer": 0.0, "format": 1.0}, zoom=None), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="no reward stream 'zoom'"):
        love_r1(group)


@pytest.mark.parametrize("answers", [[1, 1, 0, 0], [1, 0, 0, 0]])
def test_longvila_r1_is_one_number_of_nine_tenths_and_one_tenth(answers: list[float]) -> None:
    group = make({"format": [[1], [0], [1], [0]], "answer": [[a] for a in answers]})
    rewards = 0.9 * np.array(answers) + 0.1 * np.array([1, 0, 1, 0])
    wanted = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
    np.testing.assert_allclose(longvila_r1(group)[:, 0], wanted)
    several = make({"format": [[1, 0], [1, 1]], "answer": [[None, 1], [None, None]]})
    assert (longvila_r1(several) == 0).all()  # the second has no answer reward: nobody to compare with
    several = make({"format": [[1, 0], [1, 1]], "answer": [[None, 1], [None, 0]]})
    np.testing.assert_allclose(longvila_r1(several), [[math.sqrt(0.5)] * 2, [-math.sqrt(0.5)] * 2], rtol=1e-5)


@pytest.mark.parametrize("rule", [love_r1, longvila_r1])
def test_the_papers_rules_refuse_other_streams(rule: Callable[..., Array]) -> None:
    group = make({"format": [[1]], "answer": [[1]], "zoom": [[1]]})
    with pytest.raises(ValueError, match=r"one finite weight for each of \['answer', 'format'\]"):
        rule(group, {"answer": 1.0, "format": 1.0, "zoom": 1.0})
    with pytest.raises(ValueError, match="one finite weight"):
        rule(group, {"answer": 1.0})


# ---- the registry ---------------------------------------------------------------------------------------------------


def test_estimators_are_picked_by_name() -> None:
    group = make({"answer": [[1.0], [0.0]]})
    weights = {"answer": 1.0}
    for name in ONE_GROUP:
        if name in ("love_r1", "longvila_r1"):
            continue
        (found,) = estimate(name, [group], weights)
        np.testing.assert_array_equal(found, ESTIMATORS[name](group, weights))
    np.testing.assert_array_equal(
        estimate("decoupled", [group, group], weights, scale_rewards="none")[1],
        decoupled(group, weights, scale_rewards="none"),
    )
    both = estimate("reinforce_plus_plus", [group, group], weights)
    np.testing.assert_array_equal(both[1], reinforce_plus_plus([group, group], weights)[1])
    greedy = make({"answer": [[1.0]]})
    np.testing.assert_array_equal(estimate("remax", [group], weights, greedy=[greedy])[0], [[0], [-1]])
    assert estimate("decoupled", [], weights) == [] and estimate("reinforce_plus_plus", [], weights) == []
    assert options_of("decoupled") == ("gamma", "scale_rewards", "std_floor")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("grpoo", {}, "no advantage estimator is called 'grpoo'; known: decoupled, episode_sum"),
        ("rloo", {"gamma": 1.0}, r"'rloo' takes no \['gamma'\]; it takes \[\]"),
        ("decoupled", {"eps": 1.0}, "takes no"),
        ("decoupled", {"weights": None}, "needs a weight"),
        ("decoupled", {"weights": {}}, "no stream has a weight"),
        ("decoupled", {"weights": {"zoo": 1.0}}, r"no reward stream 'zoo'; it has \['answer', 'format'\]"),
        ("rloo", {"weights": {"answer": math.nan}}, "finite"),
        ("decoupled", {"gamma": 1.5}, r"\[0, 1\]"),
        ("decoupled", {"gamma": {"format": 0.5}}, "have no weight"),
        ("decoupled", {"scale_rewards": "batch"}, r"\['group', 'none'\], got 'batch'"),
        ("turn_level", {"scale_rewards": "batch"}, r"\['group', 'none'\], got 'batch'"),
        ("episode_sum", {"std_floor": 0.0}, "positive"),
        ("outcome_only", {"weights": {"format": 1.0}}, "'answer', which has no weight"),
        ("remax", {}, "one for each of the 1 groups; got none"),
        ("remax", {"greedy": []}, "one for each of the 1 groups; got 0"),
        ("rloo", {"greedy": [make({"answer": [[1.0]], "format": [[1.0]]})]}, "for 'remax'"),
    ],
)
def test_what_an_estimator_does_not_take_is_refused(name: str, options: dict[str, Any], words: str) -> None:
    group = make({"answer": [[1.0], [0.0]], "format": [[1.0], [1.0]]})
    weights = options.pop("weights", {"answer": 1.0})
    with pytest.raises(ValueError, match=words):
        estimate(name, [group], weights, **options)


# ---- the true gradient ----------------------------------------------------------------------------------------------
#
# Step 0: go on with probability P. Step 1, if there is one: say 1 with probability Q. A step taken earns 1 in `zoom`;
# the answer is worth what was said, or HERE for stopping. Gradients are with respect to the two logits; each group's
# estimate is the mean over rollouts of advantage times gradient of the log-probability. Expectations are exact: every
# group there can be, weighted with its probability.

P, Q, HERE, ROLLOUTS = 0.3, 0.8, 0.4, 5
WEIGHTS = {"zoom": 0.7, "answer": 2.0}
TRUE = (P * (1 - P) * (0.7 + 2.0 * (Q - HERE)), P * Q * (1 - Q) * 2.0)
GREEDY = make({"zoom": [[0.0]], "answer": [[HERE]]})  # stops
PATHS: list[tuple[float, list[float | None], list[float | None], tuple[float, float]]] = [
    (1 - P, [0.0], [HERE], (-P, 0.0)),
    (P * (1 - Q), [0.0, 1.0], [None, 0.0], (1 - P, -Q)),
    (P * Q, [0.0, 1.0], [None, 1.0], (1 - P, 1 - Q)),
]


def everything(stopping: float | None = 0.0) -> Iterator[tuple[float, GroupRewards, Array]]:
    """Each possible group with its probability and gradients of log-probabilities (G, 2 steps)."""
    for chosen in itertools.product(PATHS, repeat=ROLLOUTS):
        zoom: list[list[float | None]] = [[stopping, *path[1][1:]] for path in chosen]
        group = make({"zoom": zoom, "answer": [path[2] for path in chosen]})
        yield math.prod(path[0] for path in chosen), group, np.array([path[3] for path in chosen])


def expected(estimator: Callable[[GroupRewards], Array], **options: Any) -> tuple[float, float]:
    """Expected gradient with respect to the logits of step 0 and of step 1."""
    total = np.zeros(2)
    for probability, group, gradients in everything(**options):
        advantages = estimator(group)
        for t in range(advantages.shape[1]):
            total[t] += probability * (advantages[:, t] * gradients[:, t]).mean()
    return float(total[0]), float(total[1])


@pytest.mark.parametrize(
    "estimator",
    [
        lambda g: episode_sum(g, WEIGHTS, scale_rewards="none"),
        lambda g: rloo(g, WEIGHTS),
        lambda g: remax(g, WEIGHTS, greedy=GREEDY),
        lambda g: dr_grpo(g, WEIGHTS) * ROLLOUTS / (ROLLOUTS - 1),
    ],
    ids=["episode_sum", "rloo", "remax", "dr_grpo times G/(G-1)"],
)
def test_episode_level_estimators_have_the_true_gradient(estimator: Callable[[GroupRewards], Array]) -> None:
    assert expected(estimator) == pytest.approx(TRUE, abs=1e-12)


def test_decoupled_has_the_true_gradient_up_to_who_is_alone() -> None:
    first, second = expected(lambda g: decoupled(g, WEIGHTS, scale_rewards="none"))
    company = 1 - (1 - P) ** (ROLLOUTS - 1)  # the chance that another rollout reached step 1
    assert first == pytest.approx(TRUE[0], abs=1e-12)
    assert second == pytest.approx(TRUE[1] * company, abs=1e-12)


def test_outcome_only_has_the_gradient_of_the_outcome() -> None:
    found = expected(lambda g: outcome_only(g, WEIGHTS, scale_rewards="none"))
    assert found == pytest.approx((P * (1 - P) * 2.0 * (Q - HERE), TRUE[1]), abs=1e-12)


def test_discounting_is_the_gradient_of_the_discounted_return() -> None:
    first, _ = expected(lambda g: decoupled(g, WEIGHTS, gamma=0.5, scale_rewards="none"))
    assert first == pytest.approx(P * (1 - P) * (0.5 * 0.7 + 2.0 * (0.5 * Q - HERE)), abs=1e-12)


def test_centring_immediate_rewards_per_turn_loses_a_gradient() -> None:
    for scale in ("none", "group"):
        only_zoom = expected(lambda g, s=scale: turn_level(g, {"zoom": 1.0}, scale_rewards=s))  # type: ignore[misc]
        assert only_zoom == pytest.approx((0, 0), abs=1e-12)  # the truth is P (1 - P) = 0.21
    found = expected(lambda g: turn_level(g, WEIGHTS, scale_rewards="none"))
    assert abs(found[0] - TRUE[0]) > 0.1 * TRUE[0]


def test_an_unscored_stream_says_nothing_about_whether_to_go_on() -> None:
    """The zoom stream unscored, not 0, for stopping: it does not speak for going on any more, only the answer does."""
    found = expected(lambda g: decoupled(g, WEIGHTS, scale_rewards="none"), stopping=None)
    silent = expected(lambda g: decoupled(g, {"answer": 2.0}, scale_rewards="none"))
    assert found == pytest.approx(silent, abs=1e-12)
    assert abs(found[0] - TRUE[0]) > 0.1


@pytest.mark.parametrize("reward", [1.0, -1.0])
def test_monte_carlo_on_the_toy_problem(reward: float) -> None:
    """Go on with probability 1/2 and earn `reward` at the next step: the true gradient is a quarter of it."""
    draws = np.random.default_rng(7)
    goes = draws.random((2500, 8)) < 0.5
    made = [make({"zoom": [[0.0, reward] if on else [0.0] for on in row]}) for row in goes]
    gradients = np.where(goes, 0.5, -0.5)

    def error(advantages: Sequence[Array], scale: float = 1.0) -> float:
        """Distance of the estimate from the true gradient, in standard errors."""
        per_group = scale * (np.stack([a[:, 0] for a in advantages]) * gradients).mean(axis=1)
        assert 0 < per_group.std() < 0.5 or scale == 0
        return float(abs(per_group.mean() - 0.25 * reward) / (per_group.std(ddof=1) / math.sqrt(len(per_group))))

    weights = {"zoom": 1.0}
    assert error(estimate("decoupled", made, weights, scale_rewards="none")) < 4
    assert error(estimate("episode_sum", made, weights, scale_rewards="none")) < 4
    assert error(estimate("rloo", made, weights)) < 4
    assert error(estimate("remax", made, weights, greedy=[make({"zoom": [[0.0]]})] * len(made))) < 4
    assert error(estimate("dr_grpo", made, weights), 8 / 7) < 4
    assert error(estimate("dr_grpo", made, weights)) > 4  # short by the factor 7/8, which the test can see
    spread = np.concatenate([np.where(on, reward, 0.0).repeat(1 + int(on)) for on in goes.ravel()]).std(ddof=1)
    assert error(estimate("reinforce_plus_plus", made, weights), float(spread)) < 4
    biased = estimate("turn_level", made, weights, scale_rewards="none")
    assert max(np.abs(a).max() for a in biased) == 0  # nothing at all is left of the gradient
