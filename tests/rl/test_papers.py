"""The recipes of two papers: what their settings make of the loss, against those papers' code, term by term.

The numbers are LOVE-R1's launch script's and LongVILA-R1's code's (EasyR1), as read for this project.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from closeup.agent.episode import run_episodes
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import get_preset
from closeup.agent.replay import replay
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory
from closeup.rl.config import GRPOConfig
from closeup.rl.configfile import load_config
from closeup.rl.losses import TargetBatch, pair_weights, policy_loss
from closeup.rl.reward_config import build_rewards

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def recipe(name: str) -> GRPOConfig:
    return load_config(GRPOConfig, CONFIGS / ("love_r1/stage3.yaml" if name == "love_r1" else f"{name}_grpo.yaml"))


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


def spoken(task: Task, message: str) -> Trajectory:
    """One message under the preset of LongVILA-R1, with its rewards; replay gives them again."""
    rewards = build_rewards("longvila_r1").immediate
    (done,) = run_episodes([task], ScriptedPolicy([message]), preset=get_preset("longvila_r1"), rewards=rewards)
    assert replay(done, rewards=rewards).same
    return done


def total(trajectory: Trajectory) -> float:
    weights = build_rewards("longvila_r1").weights
    (step,) = trajectory.steps
    return sum(weight * (step.rewards[name] or 0.0) for name, weight in weights.items())


@pytest.mark.parametrize(
    ("message", "reward"),
    [
        ("<think>It is blue.</think><answer>B</answer>", 1.0),
        ("<think>It is blue.</think>\n\n<answer> b </answer>", 1.0),
        ("<think></think><answer>B</answer>", 1.0),  # an empty thought counts
        ("<think>a</think><answer>B. the blue one</answer>", 1.0),  # up to the first full stop
        ("<think>a</think><answer>(B)</answer>", 1.0),
        ("<think>a</think><answer>A</answer>", 0.1),
        ("<think>a</think><answer>blue</answer>", 0.1),  # a letter is asked for
        ("<think>a</think><answer>B)</answer>", 0.1),
        ("<think>a</think><answer></answer>", 0.1),
        ("<think>a</think><answer>A</answer><answer>B</answer>", 0.1),  # the first counts; the whole fits the pattern
        ("So: <answer>B</answer>", 0.9),  # accuracy is read from anywhere
        ("<answer>B</answer>", 0.9),
        ("<think>a</think> so <answer>B</answer>", 0.9),
        ("<think>a</think><answer>B</answer> I am sure.", 0.9),
        ("<think>a</think><answer>B</answer>\n", 0.9),
        ("<think>a <answer>B</answer></think>", 0.9),
        ("B", 0.9),  # a message without the pair is the answer itself
        (" (b)\n", 0.9),
        ("B.", 0.0),
        ("<answer>B", 0.0),
        ("It is B", 0.0),
        ("", 0.0),
    ],
)
def test_longvila_r1_rewards_a_message_as_its_code_does(task: Task, message: str, reward: float) -> None:
    asked = task.model_copy(update={"options": ("red", "blue"), "answer": "blue"})
    assert total(spoken(asked, message)) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("kind", "gold", "message", "accuracy"),
    [
        ("numeric", "3.14", "<think>a</think><answer>3.14</answer>", 1.0),
        ("numeric", "3.14", "<answer>3</answer>", 0.0),
        ("text", "At the door", "It is: <answer>at the door.</answer>", 1.0),
        ("text", "At the door", "at the door", 1.0),
        ("ocr", "EXIT", "<answer>EXIT</answer>", None),  # a matter of degree, which r1v does not measure
        ("text", None, "<answer>a</answer>", None),
    ],
)
def test_longvila_r1_without_options(
    task: Task, kind: str, gold: str | None, message: str, accuracy: float | None
) -> None:
    asked = task.model_copy(update={"options": (), "answer": gold, "answer_kind": kind})
    assert spoken(asked, message).steps[0].rewards["answer"] == accuracy
