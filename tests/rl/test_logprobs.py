"""Log-probabilities by chunks equal those of all logits at once, gradients too, and never hold all logits."""

from __future__ import annotations

import pytest
import torch

from closeup.rl.logprobs import suppression, target_logprobs

SOURCES, WIDTH, VOCABULARY, TARGETS = 23, 8, 31, 60


@pytest.fixture
def parts() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden": torch.randn(SOURCES, WIDTH, generator=generator, dtype=torch.float64),
        "head": torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64),
        "source": torch.randint(SOURCES, (TARGETS,), generator=generator),
        "token": torch.randint(5, VOCABULARY, (TARGETS,), generator=generator),
        "weights": torch.randn(TARGETS, generator=generator, dtype=torch.float64),
        "bias": suppression((0, 3), VOCABULARY, torch.device("cpu")),
    }


def plain(parts: dict[str, torch.Tensor], temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    logits = parts["hidden"] @ parts["head"].T
    logits[:, [0, 3]] = -torch.inf
    every = (logits / temperature).log_softmax(-1)
    entropy = torch.distributions.Categorical(logits=every).entropy()
    return every[parts["source"], parts["token"]], entropy[parts["source"]]


@pytest.mark.parametrize("chunk", [1, 4, 23, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_chunks_equal_the_whole(parts: dict[str, torch.Tensor], chunk: int, temperature: float) -> None:
    largest = 0

    def head(rows: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, len(rows))
        return rows @ parts["head"].T

    gradients = []
    for ours in (True, False):
        for name in ("hidden", "head"):
            parts[name] = parts[name].detach().requires_grad_()
        if ours:
            logprobs, entropy = target_logprobs(
                head,
                parts["hidden"],
                parts["source"],
                parts["token"],
                bias=parts["bias"],
                temperature=temperature,
                chunk=chunk,
            )
            assert not entropy.requires_grad
        else:
            expected, expected_entropy = plain(parts, temperature)
            torch.testing.assert_close(logprobs, expected)
            torch.testing.assert_close(entropy, expected_entropy.detach())
            logprobs = expected
        (logprobs * parts["weights"]).sum().backward()
        gradients.append([parts[name].grad for name in ("hidden", "head")])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert largest <= chunk


def test_a_suppressed_target_has_probability_zero(parts: dict[str, torch.Tensor]) -> None:
    logprobs, _ = target_logprobs(
        lambda rows: rows @ parts["head"].T,
        parts["hidden"],
        torch.tensor([0]),
        torch.tensor([3]),
        bias=parts["bias"],
    )
    assert logprobs.item() == -torch.inf


def test_greedy_has_no_distribution(parts: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="temperature above 0"):
        target_logprobs(
            lambda rows: rows, parts["hidden"], parts["source"], parts["token"], bias=parts["bias"], temperature=0.0
        )
