"""The recipes of two papers: what their settings make of the loss, against those papers' code, term by term.

The numbers are LOVE-R1's launch script's and LongVILA-R1's code's (EasyR1), as read for this project.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from closeup.rl.config import GRPOConfig
from closeup.rl.configfile import load_config
from closeup.rl.losses import TargetBatch, pair_weights, policy_loss

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def recipe(name: str) -> GRPOConfig:
    return load_config(GRPOConfig, CONFIGS / f"{name}_grpo.yaml")


def test_love_r1_clips_gradients_where_its_script_does() -> None:
    assert recipe("love_r1").max_grad_norm == 5
    assert recipe("longvila_r1").max_grad_norm == 1


def test_love_r1_weighs_every_completion_alike() -> None:
    """There a device holds one completion, so "bnpo" is the mean over its tokens, and then over the completions."""
    lengths, groups = [4, 10, 400, 7], [0, 0, 1, 1]
    config = recipe("love_r1")
    weights = pair_weights(lengths, config.loss_type, batches=groups, max_completion_length=1024)
    one_per_device = pair_weights(lengths, "bnpo", batches=range(len(lengths)))
    torch.testing.assert_close(weights, one_per_device)
    torch.testing.assert_close(weights * torch.tensor(lengths), torch.full((4,), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize("log_ratio", [-1.0, -0.1, 0.0, 0.2, 0.28, 1.0, 1.5])
def test_longvila_r1_has_the_loss_of_its_code(advantage: float, log_ratio: float) -> None:
    """PPO clipped to 0.8 and 1.3, dual clip 3 for negative advantages, and 0.01 of the plain k3 estimate of the KL."""
    config, gap = recipe("longvila_r1"), 0.7
    old = torch.tensor([-2.0], dtype=torch.float64)
    policy = old + log_ratio
    batch = TargetBatch(
        advantages=torch.tensor([advantage], dtype=torch.float64),
        weights=torch.ones(1, dtype=torch.float64),
        rows=torch.zeros(1, dtype=torch.long),
        old=old,
        reference=policy + gap,
        rollout=old,
    )
    loss, _ = policy_loss(policy, batch, config.loss)
    ratio = torch.tensor(log_ratio, dtype=torch.float64).exp()
    clipped = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.3))
    if advantage < 0:
        clipped = torch.minimum(clipped, torch.tensor(-advantage * 3.0))
    kl = torch.tensor(gap).exp() - gap - 1
    assert loss.item() == pytest.approx((clipped + 0.01 * kl).item(), rel=1e-6)
