"""Advantage estimators: their formulas against loops, and what they promise. Gradients: test_advantages_gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
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
)
from closeup.rl.credit import Array, GroupRewards

Rows = Sequence[Sequence[float | None]]
relaxed = settings(deadline=None)  # the machine may be busy
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


@relaxed
@given(groups(), st.sampled_from([0.0, 0.5, 1.0]), st.booleans(), st.sampled_from([0.01, 0.6]))
def test_decoupled_is_its_formula(group: GroupRewards, gamma: float, scaled: bool, floor: float) -> None:
    weights = {"answer": 1.0, "zoom": 0.3, "format": -0.5}
    found = decoupled(group, weights, gamma=gamma, scale_rewards="group" if scaled else "none", std_floor=floor)
    np.testing.assert_allclose(found, by_loops(group, weights, gamma, scaled, floor), atol=1e-12)
    assert found.dtype == np.float64 and found.shape == group.reached.shape


@pytest.mark.parametrize("name", ONE_GROUP)
@relaxed
@given(group=groups(), data=st.data())
def test_rollouts_are_exchangeable(name: str, group: GroupRewards, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(group.reached))))
    moved = GroupRewards(group.streams, group.values[:, order], group.reached[order])
    compute = with_defaults(name)
    np.testing.assert_allclose(compute(moved), compute(group)[order], atol=1e-9)


@pytest.mark.parametrize("name", ONE_GROUP)
@relaxed
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


@relaxed
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


@relaxed
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


def added(returns: Mapping[str, Sequence[float]], weights: Mapping[str, float]) -> tuple[list[float], list[bool]]:
    """Streams as one number for each return: weighted, and what a stream does not say is the mean of what it says."""
    length = len(next(iter(returns.values())))
    numbers, spoken = [0.0] * length, [False] * length
    for name, weight in weights.items():
        said = [value for value in returns[name] if not math.isnan(value)]
        for i, value in enumerate(returns[name]):
            spoken[i] |= not math.isnan(value)
            numbers[i] += weight * (sum(said) / max(1, len(said)) if math.isnan(value) else value)
    return numbers, spoken


def to_go(group: GroupRewards, name: str, i: int, t: int, gamma: float = 1.0) -> float:
    """One stream's return from a step on; NaN where nothing was scored."""
    ahead = [(u, float(r)) for u, r in enumerate(group.stream(name)[i, t:]) if not math.isnan(r)]
    return sum(gamma**u * r for u, r in ahead) if ahead else math.nan


@relaxed
@given(groups(), groups())
def test_normalising_estimators_are_their_formulas(one: GroupRewards, two: GroupRewards) -> None:
    weights = {"format": 0.5, "answer": 2.0}
    for group in (one, two):
        sums = {name: [to_go(group, name, i, 0) for i in range(len(group.reached))] for name in weights}
        number, have = added(sums, weights)
        some = [x for x, h in zip(number, have, strict=True) if h]
        mean, std = (np.mean(some), np.std(some, ddof=1)) if len(some) > 1 else (number, 0.0)
        wanted = np.where(have, np.subtract(number, mean), 0.0)
        np.testing.assert_allclose(dr_grpo(group, weights), wanted[:, None] * group.reached, atol=1e-9)
        np.testing.assert_allclose(
            grpo(group, weights), wanted[:, None] / (std + 1e-4) * group.reached, rtol=1e-6, atol=1e-9
        )

    steps = [(g, i, t) for g in (one, two) for i, t in np.ndindex(*g.reached.shape)]
    returns = {n: [to_go(g, n, i, t, 0.9) if g.reached[i, t] else math.nan for g, i, t in steps] for n in weights}
    number, have = added(returns, weights)
    some = [x for x, h in zip(number, have, strict=True) if h]
    mean, std = (np.mean(some), np.std(some, ddof=1)) if len(some) > 1 else (some[0] if some else 0.0, 1.0)
    found = np.concatenate([part.ravel() for part in reinforce_plus_plus([one, two], weights, gamma=0.9)])
    wanted = np.where(have, (np.array(number) - mean) / (std + 1e-8), 0.0)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@relaxed
@given(groups(), st.booleans())
def test_episode_sum_is_its_formula(group: GroupRewards, scaled: bool) -> None:
    weights = {"format": 0.5, "answer": 2.0}
    sums = {name: [to_go(group, name, i, 0) for i in range(len(group.reached))] for name in weights}
    wanted = np.zeros(len(group.reached))
    for name, weight in weights.items():
        for i, own in enumerate(sums[name]):
            others = [r for j, r in enumerate(sums[name]) if j != i and not math.isnan(r)]
            if others and not math.isnan(own):
                wanted[i] += weight * (own - sum(others) / len(others))
    some = [x for x, have in zip(*added(sums, weights), strict=True) if have]
    scale = max(0.1, float(np.std(some, ddof=1)) if len(some) > 1 else 0.0) if scaled else 1.0
    found = episode_sum(group, weights, scale_rewards="group" if scaled else "none")
    np.testing.assert_allclose(found, (wanted / scale)[:, None] * group.reached, atol=1e-9)
    if not scaled:
        np.testing.assert_array_equal(found, rloo(group, weights))


WITH_JUDGE = {"format": 0.2, "judge": 1.0}


def judged(*verdicts: float | None) -> GroupRewards:
    return make({"format": [[1.0] for _ in verdicts], "judge": [[verdict] for verdict in verdicts]})


@pytest.mark.parametrize("name", ["decoupled", "episode_sum", "rloo", "grpo", "dr_grpo", "reinforce_plus_plus"])
def test_an_answer_whose_judge_failed_is_not_a_wrong_one(name: str) -> None:
    """However many other streams are scored: nobody knows what it is worth, and the rest are compared as without it."""
    (found,) = estimate(name, [judged(1, 1, 1, None)], WITH_JUDGE)
    assert (found == 0).all()  # all that were judged are right
    (found,) = estimate(name, [judged(1, 0, 0, None)], WITH_JUDGE)
    assert found[3] == pytest.approx(0, abs=1e-15) and found[0] > 0.3 and found[1] < 0
    (without,) = estimate(name, [judged(1, 0, 0)], WITH_JUDGE)
    same = found[:3, 0] @ without[:, 0] / np.linalg.norm(found) / np.linalg.norm(without)
    assert same == pytest.approx(1)
    if name in ("rloo", "dr_grpo"):
        np.testing.assert_allclose(found[:3], without)


def test_remax_leaves_a_stream_without_a_greedy_verdict_out() -> None:
    group = judged(1, 0, None)
    np.testing.assert_allclose(remax(group, WITH_JUDGE, greedy=judged(0)), [[1], [0], [0]])
    assert (remax(group, WITH_JUDGE, greedy=judged(None)) == 0).all()  # and not +1 for who was judged right


def test_remax_subtracts_the_greedy_rollout() -> None:
    group = make({"zoom": [[1, 0], [0]], "answer": [[None, 1], [None]]})
    weights = {"zoom": 1.0, "answer": 10.0}
    greedy = make({"zoom": [[1, 1, 1]], "answer": [[None, None, None]]})
    # the greedy one has no answer: nobody is compared in that stream
    np.testing.assert_allclose(remax(group, weights, greedy=greedy), [[-2, -2], [-3, 0]])
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
