"""The losses against loops written from their formulas, their gradients, and every setting's effect."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from closeup.rl.loss_metrics import combine, summary
from closeup.rl.losses import (
    LossType,
    PolicyLossSettings,
    RowCounts,
    TargetBatch,
    group_weights,
    nll_loss,
    pair_weights,
    policy_loss,
)

LENGTHS = (3, 5, 1, 4)
PLAIN = PolicyLossSettings(vllm_importance_sampling_correction=False)


def settings(**changes: Any) -> PolicyLossSettings:
    return PLAIN.model_copy(update=changes)


def example(seed: int = 0, *, spread: float = 0.5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, TargetBatch]:
    """Log-probabilities and a batch of four rows, its pairs shuffled; ratios well away from the points of clipping."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    rows = rows[torch.randperm(len(rows), generator=draw)]

    def numbers(scale: float) -> Tensor:
        return scale * torch.randn(len(rows), generator=draw, dtype=torch.float64)

    logprobs = -2 + numbers(1.0)
    old = logprobs - numbers(spread)
    batch = TargetBatch(
        advantages=numbers(1.0).to(dtype),
        weights=pair_weights(LENGTHS, "grpo")[rows].to(dtype),
        rows=rows,
        old=old.to(dtype),
        reference=(logprobs - numbers(spread)).to(dtype),
        rollout=(old - numbers(spread)).to(dtype),
    )
    return logprobs.to(dtype).requires_grad_(), batch


def by_loops(logprobs: list[float], batch: TargetBatch, s: PolicyLossSettings) -> float:
    """The loss pair by pair in plain Python, from the formulas of the papers."""
    rows, weights, advantages = batch.rows.tolist(), batch.weights.tolist(), batch.advantages.tolist()
    old = batch.old.tolist() if batch.old is not None else logprobs
    members = {row: [i for i, r in enumerate(rows) if r == row and weights[i]] for row in rows}
    total = 0.0
    for i, row in enumerate(rows):
        if not weights[i]:
            continue
        if s.importance_sampling_level == "sequence":
            ratio = math.exp(sum(logprobs[j] - old[j] for j in members[row]) / len(members[row]))
        else:
            ratio = math.exp(logprobs[i] - old[i])
        high = s.epsilon if s.epsilon_high is None else s.epsilon_high
        clipped = min(max(ratio, 1 - s.epsilon), 1 + high)
        unclipped = ratio if s.delta is None else min(ratio, s.delta)
        loss = -min(unclipped * advantages[i], clipped * advantages[i])
        if s.vllm_importance_sampling_correction:
            assert batch.rollout is not None
            gaps = [0.0 if math.isnan(r) else o - r for o, r in zip(old, batch.rollout.tolist(), strict=True)]
            level, constraint = s.vllm_importance_sampling_mode.split("_")
            factor = math.exp(sum(gaps[j] for j in members[row]) if level == "sequence" else gaps[i])
            low, top = s.vllm_importance_sampling_clip_min or 0.0, s.vllm_importance_sampling_clip_max or math.inf
            if constraint == "mask":
                factor = factor if low <= factor <= top else 0.0
            loss *= min(max(factor, low), top) if constraint == "truncate" else factor
        if s.beta:
            assert batch.reference is not None
            gap = float(batch.reference[i]) - logprobs[i]
            loss += s.beta * (math.exp(gap) - gap - 1) * (ratio if s.use_bias_correction_kl else 1)
        total += weights[i] * loss
    return total


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "epsilon": {"epsilon": 0.05},
    "epsilon_high": {"epsilon_high": 0.6},
    "delta": {"delta": 1.3},
    "beta": {"beta": 0.3},
    "beta, no bias correction": {"beta": 0.3, "use_bias_correction_kl": False},
    "sequence": {"importance_sampling_level": "sequence", "epsilon": 0.01},
    "sequence, beta": {"importance_sampling_level": "sequence", "beta": 0.3},
    **{
        f"{mode}{'' if low is None else ', bounded below'}": {
            "vllm_importance_sampling_correction": True,
            "vllm_importance_sampling_mode": mode,
            "vllm_importance_sampling_clip_max": 1.6,
            "vllm_importance_sampling_clip_min": low,
        }
        for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
        for low in (None, 0.6)
    },
    "everything": {
        "epsilon": 0.1,
        "epsilon_high": 0.3,
        "delta": 1.5,
        "beta": 0.1,
        "importance_sampling_level": "sequence",
        "vllm_importance_sampling_correction": True,
    },
}
variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


@variants
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_its_formula(changes: dict[str, Any], seed: int) -> None:
    logprobs, batch = example(seed)
    loss, _ = policy_loss(logprobs, batch, settings(**changes))
    assert loss.item() == pytest.approx(by_loops(logprobs.tolist(), batch, settings(**changes)), rel=1e-12) != 0


@variants
def test_autograd_agrees_with_finite_differences(changes: dict[str, Any]) -> None:
    logprobs, batch = example(4)
    (gradient,) = torch.autograd.grad(policy_loss(logprobs, batch, settings(**changes))[0], logprobs)
    step = 1e-6
    for i in range(len(logprobs)):
        moved = [logprobs.tolist(), logprobs.tolist()]
        moved[0][i] += step
        moved[1][i] -= step
        above, below = (by_loops(one, batch, settings(**changes)) for one in moved)
        assert gradient[i].item() == pytest.approx((above - below) / (2 * step), abs=2e-8)


CORRECTED = {"vllm_importance_sampling_correction": True}
EFFECTS: list[tuple[str, Any, dict[str, Any]]] = [
    ("epsilon", 0.05, {}),
    ("epsilon_high", 0.6, {}),
    ("delta", 1.3, {}),
    ("beta", 0.3, {}),
    ("use_bias_correction_kl", False, {"beta": 0.3}),
    ("importance_sampling_level", "sequence", {}),
    ("vllm_importance_sampling_correction", True, {}),
    ("vllm_importance_sampling_mode", "token_mask", CORRECTED),
    ("vllm_importance_sampling_mode", "sequence_truncate", CORRECTED),
    ("vllm_importance_sampling_mode", "sequence_mask", CORRECTED),
    ("vllm_importance_sampling_clip_max", 1.1, CORRECTED),
    ("vllm_importance_sampling_clip_max", None, CORRECTED),
    ("vllm_importance_sampling_clip_min", 0.9, CORRECTED),
]


@pytest.mark.parametrize(("name", "value", "beside"), EFFECTS)
def test_every_setting_changes_the_loss(name: str, value: Any, beside: dict[str, Any]) -> None:
    logprobs, batch = example(1, spread=1.0)
    without, with_it = (
        policy_loss(logprobs, batch, settings(**beside, **change))[0].item() for change in ({}, {name: value})
    )
    assert with_it != pytest.approx(without, rel=1e-6)


def test_no_setting_is_left_out_of_these_tests() -> None:
    assert {name for name, _, _ in EFFECTS} | {"loss_type"} == set(PolicyLossSettings.model_fields)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_in_the_first_update_the_gradient_is_the_policy_gradient(level: Any) -> None:
    logprobs, batch = example()
    first = TargetBatch(batch.advantages, batch.weights, batch.rows)
    given_back = TargetBatch(batch.advantages, batch.weights, batch.rows, old=logprobs.detach())
    same = settings(importance_sampling_level=level)
    gradients = []
    for one in (first, given_back):
        loss, metrics = policy_loss(logprobs, one, same)
        gradients.append(torch.autograd.grad(loss, logprobs)[0])
        assert (metrics["ratio/min"], metrics["ratio/max"]) == (1.0, 1.0)
    torch.testing.assert_close(gradients[0], gradients[1])
    scores = batch.weights * batch.advantages
    if level == "sequence":  # each pair's log-ratio is in the mean of its row
        mean = torch.stack([scores[batch.rows == row].mean() for row in range(len(LENGTHS))])
        scores = mean[batch.rows]
    torch.testing.assert_close(gradients[0], -scores)


@pytest.mark.parametrize(
    ("ratio", "advantage", "changes", "flows"),
    [
        (1.5, 1.0, {}, False),  # good, and more probable than the clip allows
        (1.5, -1.0, {}, True),  # bad, and more probable: to be pulled back
        (0.5, -1.0, {}, False),  # bad, and less probable already
        (0.5, 1.0, {}, True),
        (1.15, 1.0, {}, True),
        (1.15, 1.0, {"epsilon": 0.1}, False),
        (1.15, 1.0, {"epsilon": 0.1, "epsilon_high": 0.28}, True),
        (0.85, -1.0, {"epsilon_high": 0.0}, True),
        (3.5, -1.0, {"delta": 3.0}, False),  # dual clip
        (2.5, -1.0, {"delta": 3.0}, True),
    ],
)
def test_clipping_stops_the_gradient(ratio: float, advantage: float, changes: dict[str, Any], flows: bool) -> None:
    logprobs = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    batch = TargetBatch(advantage * one, one, torch.zeros(1, dtype=torch.long), old=logprobs.detach() - math.log(ratio))
    loss, metrics = policy_loss(logprobs, batch, settings(**changes))
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert gradient.item() == pytest.approx(-ratio * advantage if flows else 0.0, abs=1e-12)
    if not changes.get("delta"):
        assert metrics["clip_ratio/low/count"] + metrics["clip_ratio/high/count"] == (0 if flows else 1)


@given(st.data())
def test_the_loss_of_a_batch_is_the_sum_over_disjoint_sets_of_rows(data: st.DataObject) -> None:
    level = data.draw(st.sampled_from(["token", "sequence"]))
    mode = data.draw(st.sampled_from(["token_truncate", "sequence_truncate"]))
    chosen = settings(
        importance_sampling_level=level, beta=0.2, vllm_importance_sampling_correction=True, epsilon=0.1
    ).model_copy(update={"vllm_importance_sampling_mode": mode})
    logprobs, batch = example(data.draw(st.integers(0, 3)))
    side = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=4, max_size=4)))[batch.rows]
    whole, metrics = policy_loss(logprobs, batch, chosen)
    parts = [policy_loss(logprobs[side == s], batch.take(side == s), chosen) for s in range(3)]
    total = torch.stack([loss for loss, _ in parts]).sum()
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(torch.autograd.grad(total, logprobs), torch.autograd.grad(whole, logprobs))
    added = combine([one for _, one in parts])
    assert added.keys() == metrics.keys()
    assert all(added[name] == pytest.approx(metrics[name], rel=1e-9, abs=1e-12) for name in metrics)


@variants
def test_pairs_without_weight_change_nothing(changes: dict[str, Any]) -> None:
    """Masked pairs of a row that is trained, and whole rows of dummies."""
    logprobs, batch = example(2)
    dropped = torch.zeros(len(batch), dtype=torch.bool)
    dropped[::3] = True
    weights = batch.weights.masked_fill(dropped, 0.0)
    masked = TargetBatch(batch.advantages, weights, batch.rows, batch.old, batch.reference, batch.rollout)
    loss, metrics = policy_loss(logprobs, masked, settings(**changes))
    (gradient,) = torch.autograd.grad(loss, logprobs)
    shorter, expected = policy_loss(logprobs[~dropped], batch.take(~dropped), settings(**changes))
    torch.testing.assert_close(loss, shorter)
    assert (gradient[dropped] == 0).all() and (gradient[~dropped] != 0).any()
    assert metrics == pytest.approx(expected)


def test_a_token_the_engine_did_not_score_is_not_corrected_and_is_counted() -> None:
    logprobs, batch = example()
    assert batch.rollout is not None and batch.old is not None
    rollout = batch.rollout.clone()
    rollout[:4] = math.nan
    unknown = TargetBatch(batch.advantages, batch.weights, batch.rows, batch.old, None, rollout)
    same = TargetBatch(
        batch.advantages, batch.weights, batch.rows, batch.old, None, torch.where(rollout.isnan(), batch.old, rollout)
    )
    for mode in ("token_truncate", "sequence_mask"):
        chosen = settings(vllm_importance_sampling_correction=True, vllm_importance_sampling_mode=mode)
        loss, metrics = policy_loss(logprobs, unknown, chosen)
        torch.testing.assert_close(loss, policy_loss(logprobs, same, chosen)[0])
    assert summary(metrics)["sampling/unknown"] == pytest.approx(4 / len(batch))
    known = (batch.old - rollout)[4:].abs()
    assert summary(metrics)["sampling/sampling_logp_difference/mean"] == pytest.approx(known.mean().item())
    assert summary(metrics)["sampling/sampling_logp_difference/max"] == pytest.approx(known.max().item())


def test_metrics_under_their_names() -> None:
    logprobs, batch = example(3)
    assert batch.old is not None and batch.reference is not None and batch.rollout is not None
    chosen = settings(vllm_importance_sampling_correction=True, epsilon_high=0.3, beta=0.1)
    found = summary(policy_loss(logprobs, batch, chosen)[1])
    ratio = (logprobs.detach() - batch.old).exp()
    low = (ratio < 0.8) & (batch.advantages < 0)
    high = (ratio > 1.3) & (batch.advantages > 0)
    gap = batch.reference - logprobs.detach()
    factor = (batch.old - batch.rollout).exp().clamp(max=3.0)
    assert low.any() and high.any()
    assert found == pytest.approx(
        {
            "tokens": 13,
            "ratio/mean": ratio.mean().item(),
            "ratio/min": ratio.min().item(),
            "ratio/max": ratio.max().item(),
            "kl": ((gap.exp() - gap - 1) * ratio).mean().item(),
            "clip_ratio/low_mean": low.double().mean().item(),
            "clip_ratio/high_mean": high.double().mean().item(),
            "clip_ratio/region_mean": (low | high).double().mean().item(),
            "sampling/importance_sampling_ratio/mean": factor.mean().item(),
            "sampling/importance_sampling_ratio/min": factor.min().item(),
            "sampling/importance_sampling_ratio/max": factor.max().item(),
            "sampling/sampling_logp_difference/mean": (batch.old - batch.rollout).abs().mean().item(),
            "sampling/sampling_logp_difference/max": (batch.old - batch.rollout).abs().max().item(),
            "sampling/unknown": 0.0,
        }
    )


def test_an_empty_batch_is_worth_nothing_and_breaks_no_metric() -> None:
    logprobs, batch = example()
    nothing = torch.zeros(0, dtype=torch.long)
    for chosen in (PLAIN, settings(**VARIANTS["everything"])):
        loss, metrics = policy_loss(logprobs[nothing], batch.take(nothing), chosen)
        loss.backward()  # every rank runs a backward pass, whatever it was given
        assert loss.item() == 0 and metrics["tokens"] == 0 and summary(metrics) == {"tokens": 0}
        whole = policy_loss(logprobs, batch, chosen)[1]
        assert combine([metrics, whole]) == whole and combine([whole, metrics]) == whole


def test_half_precision_is_computed_in_float32() -> None:
    logprobs, batch = example(dtype=torch.float32)
    half = logprobs.detach().to(torch.bfloat16).requires_grad_()
    loss, _ = policy_loss(half, batch, PLAIN)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, policy_loss(half.detach().float(), batch, PLAIN)[0])
    loss.backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16
    assert nll_loss(half, batch.weights)[0].dtype == torch.float32
    assert policy_loss(example()[0], example()[1], PLAIN)[0].dtype == torch.float64


def test_the_likelihood_loss() -> None:
    logprobs, batch = example()
    weights = pair_weights(LENGTHS, "dapo")[batch.rows]
    weights[0] = 0
    loss, metrics = nll_loss(logprobs, weights)
    assert loss.item() == pytest.approx(-sum(logprobs.tolist()[1:]) / 13)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    torch.testing.assert_close(gradient, -weights)
    assert summary(metrics) == pytest.approx({"tokens": 12, "nll": -sum(logprobs.tolist()[1:]) / 12})


@pytest.mark.parametrize(
    ("loss_type", "options", "weights"),
    [
        ("grpo", {}, [1 / 12, 1 / 20, 1 / 4, 1 / 16]),
        ("dr_grpo", {"max_completion_length": 10}, [1 / 40] * 4),
        ("dapo", {}, [1 / 13] * 4),
        ("bnpo", {}, [1 / 13] * 4),
        ("bnpo", {"batches": [7, 7, 2, 2]}, [1 / 16, 1 / 16, 1 / 10, 1 / 10]),
        ("grpo", {"batches": [0, 0, 1, 1]}, [1 / 12, 1 / 20, 1 / 4, 1 / 16]),
    ],
)
def test_weights_of_pairs(loss_type: Any, options: dict[str, Any], weights: list[float]) -> None:
    for lengths in (LENGTHS, torch.tensor(LENGTHS)):
        assert pair_weights(lengths, loss_type, **options).tolist() == pytest.approx(weights)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo"])
def test_weights_of_a_batch_without_a_target_are_finite_and_rows_without_one_count(loss_type: Any) -> None:
    assert torch.isfinite(pair_weights([0, 0], loss_type)).all()
    shares = (pair_weights([0, 4], loss_type) * torch.tensor([0, 4])).sum().item()
    assert shares == pytest.approx(0.5 if loss_type == "grpo" else 1)


def test_dr_grpos_divisor_does_not_depend_on_how_many_rows_the_policy_makes() -> None:
    """LOVE-R1's protocol: an episode that answers at once is one row, one that looks first is two."""
    at_once = RowCounts((100,) * 8, completions=8)
    looked = RowCounts((100,) * 16, completions=8)
    for counts in (at_once, looked):
        (weights,) = group_weights([counts], "dr_grpo", max_completion_length=1024)
        assert weights.tolist() == pytest.approx([1 / (8 * 1024)] * len(counts.lengths))


def test_rows_of_masked_episodes_count_and_have_no_weight_of_their_own() -> None:
    groups = [RowCounts((3, 0), masked=2, completions=4), RowCounts((), masked=1, completions=1), RowCounts((5,), 0, 1)]
    found = {t: group_weights(groups, t, max_completion_length=10) for t in get_args(LossType)}
    assert {len(of[0]) for of in found.values()} == {2} and {len(of[1]) for of in found.values()} == {0}
    shares = {name: [float(of[0][0]), float(of[2][0])] for name, of in found.items()}
    wanted = {
        "grpo": [1 / (6 * 3), 1 / (6 * 5)],
        "dr_grpo": [1 / 60, 1 / 60],
        "dapo": [1 / 8, 1 / 8],
        "bnpo": [1 / (3 * 3), 1 / (3 * 5)],  # a micro-batch without a target is one, as in TRL
    }
    assert {name: pytest.approx(numbers) for name, numbers in wanted.items()} == shares
    assert [len(of) for of in group_weights([RowCounts(()), RowCounts(())], "grpo")] == [0, 0]
    with pytest.raises(ValueError, match="number of completions, which is positive; got 0"):
        group_weights([RowCounts((1,))], "dr_grpo", max_completion_length=10)


def refused(change: Callable[[Tensor, TargetBatch], tuple[Tensor, TargetBatch]], **changes: Any) -> None:
    policy_loss(*change(*example()), settings(**changes))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: refused(lambda p, b: (p[1:], b)), "13 pairs, but logprobs has shape"),
        (
            lambda: refused(lambda p, b: (p, TargetBatch(b.advantages, b.weights, b.rows)), beta=0.1),
            "beta is 0.1, which needs reference",
        ),
        (
            lambda: refused(lambda p, b: (p, TargetBatch(b.advantages, b.weights, b.rows)), **CORRECTED),
            "set vllm_importance_sampling_correction to false",
        ),
        (lambda: refused(lambda p, b: (p.detach() * math.inf, b)), "13 of 13 logprobs are not finite"),
        (
            lambda: refused(lambda p, b: (p, TargetBatch(b.advantages * math.nan, b.weights, b.rows))),
            "13 of 13 advantages are not finite",
        ),
        (lambda: nll_loss(torch.zeros(3), torch.zeros(4)), "both"),
        (lambda: nll_loss(torch.tensor([0.0, -math.inf]), torch.ones(2)), r"1 of 2 logprobs .*\(pair 1: -inf\)"),
        (lambda: TargetBatch(torch.zeros(2), torch.zeros(2), torch.zeros(2)), "rows is a long"),
        (lambda: TargetBatch(torch.zeros(3), torch.zeros(2), torch.zeros(2).long()), "advantages has shape"),
        (lambda: pair_weights([1], "cispo"), r"loss_type is one of .* got 'cispo'"),  # type: ignore[arg-type]
        (lambda: pair_weights([], "grpo"), "at least one row"),
        (lambda: pair_weights([1, -1], "grpo"), "none negative"),
        (lambda: pair_weights([1], "dr_grpo"), "divides by max_completion_length"),
        (lambda: pair_weights([1, 2], "bnpo", batches=[0]), "each of the 2 rows"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": -0.1},
        {"epsilon": 1.0},
        {"epsilon_high": -0.1},
        {"delta": 0.9},
        {"beta": -1.0},
        {"beta": math.nan},
        {"loss_type": "cispo"},
        {"importance_sampling_level": "step"},
        {"vllm_importance_sampling_mode": "token"},
        {"vllm_importance_sampling_cap": 2.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PolicyLossSettings(**wrong)


def test_the_defaults_are_trls_but_for_the_correction_mode() -> None:
    assert PolicyLossSettings().model_dump() == {
        "loss_type": "dapo",
        "epsilon": 0.2,
        "epsilon_high": None,
        "delta": None,
        "beta": 0.0,
        "use_bias_correction_kl": True,
        "importance_sampling_level": "token",
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 3.0,
        "vllm_importance_sampling_clip_min": None,
    }


def test_a_batch_moves_whole() -> None:
    _, batch = example()
    moved = batch.to("meta")
    assert all(getattr(moved, name).device.type == "meta" for name in TargetBatch.__slots__)
    assert TargetBatch(batch.advantages, batch.weights, batch.rows).to("cpu").old is None
