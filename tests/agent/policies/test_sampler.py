"""Each row draws from its own distribution with its own numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from closeup.agent.policies.base import Sampling
from closeup.agent.policies.sampler import Sampler, cut

CPU = torch.device("cpu")


def one(logits, sampling, step=0, suppressed=()):
    ids, logprobs = Sampler([sampling], suppressed, logits.numel(), CPU)(logits[None], [0], step)
    return ids[0], logprobs[0]


def test_greedy_takes_the_best_allowed_token_and_says_its_plain_probability():
    logits = torch.tensor([0.0, 3.0, 2.0, 1.0])
    token, logprob = one(logits, Sampling(temperature=0, top_k=1, top_p=0.1), suppressed=[1])
    assert token == 2
    assert logprob == pytest.approx(math.log(math.exp(2) / (1 + math.exp(2) + math.exp(1))), abs=1e-6)


def test_a_row_draws_the_same_in_any_company():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    rows = [Sampling(1.0, seed=7), Sampling(0.5, top_p=0.5, seed=8), Sampling(0.0, seed=9)]
    together = Sampler(rows, [4], 50, CPU)
    for step in range(20):
        ids, logprobs = together(logits, [0, 1, 2], step)
        swapped, _ = together(logits[[2, 0]], [2, 0], step)
        assert swapped == [ids[2], ids[0]]
        for i, row in enumerate(rows):
            token, logprob = one(logits[i], row, step, [4])
            assert token == ids[i] and logprob == pytest.approx(logprobs[i], abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=30), st.integers(0, 31), st.floats(0.01, 1))
def test_cuts_keep_the_smallest_sufficient_set(values, top_k, top_p):
    scores = torch.tensor(values)
    kept = cut(scores.clone(), top_k, top_p)
    allowed = [i for i, v in enumerate(kept.tolist()) if v > -math.inf]
    assert scores.argmax().item() in allowed or values.count(max(values)) > 1
    worst = min(values[i] for i in allowed)
    assert all(v <= worst for i, v in enumerate(values) if i not in allowed)
    if top_k:
        assert len(allowed) <= max(top_k, sum(v >= sorted(values)[-min(top_k, len(values))] for v in values))
    if not top_k:
        mass = scores.softmax(-1)
        assert mass[allowed].sum() >= top_p - 1e-4
        assert mass[allowed].sum() - mass[allowed].min() < top_p + 1e-4


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings_, message):
    with pytest.raises(ValueError, match=message):
        Sampler([Sampling(**settings_)], [], 5, CPU)


def test_a_token_of_no_probability_is_never_drawn():
    logits = torch.full((20,), 0.0)
    suppressed = [0, 1, 2, 10, 18, 19]  # at both ends, where rounding would hit
    drawn = {one(logits, Sampling(1.0, seed=s), suppressed=suppressed)[0] for s in range(300)}
    assert drawn == set(range(20)) - set(suppressed)
