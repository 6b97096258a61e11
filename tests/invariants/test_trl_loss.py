"""Our policy loss and its gradient are those of TRL's `GRPOTrainer`, both computed by the trainers' own code.

TRL's `_compute_loss` is called with a stand-in for the trainer whose forward pass gives the log-probabilities of the
test; so is our `GRPOTrainer._with_losses`, which makes weights and losses of groups. TRL's settings come from a real
`GRPOConfig`. The batch is one global batch of two processes that accumulate two micro-batches each; TRL's loss of it is
the mean over processes of the sum over micro-batches.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from closeup.agent.task import Task
from closeup.agent.trajectory import Outcome, StepRecord, Trajectory
from closeup.rl import grpo as grpo_module
from closeup.rl.credit import GroupRewards
from closeup.rl.generation import TrainGroup
from closeup.rl.grpo import GRPOTrainer
from closeup.rl.loss_metrics import Metrics, combine, summary
from closeup.rl.losses import PolicyLossSettings
from closeup.rl.rollout import Group

trl = pytest.importorskip("trl", reason="TRL is not installed (pip install 'closeup[train]')")

# TRL's own default for a setting that transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")

PROCESSES, ACCUMULATION, ROWS, LENGTH = 2, 2, 3, 6
MICRO = PROCESSES * ACCUMULATION
TASK = Task(id="t", question="Which digit?", options=("3", "7"), answer="7")


class Sample:
    """Per-token numbers of the whole global batch, (micro-batches, rows, tokens), float64."""

    def __init__(self, seed: int, *, steps: bool, masked: Sequence[tuple[int, int]] = ((1, 2),)) -> None:
        draw = torch.Generator().manual_seed(seed)
        shape = (MICRO, ROWS, LENGTH)

        def numbers(scale: float) -> Tensor:
            return scale * torch.randn(shape, generator=draw, dtype=torch.float64)

        lengths = torch.randint(2, LENGTH + 1, shape[:2], generator=draw)
        self.completion = (torch.arange(LENGTH) < lengths[..., None]).long()
        for completion in masked:
            self.completion[completion] = 0  # a masked completion: TRL counts the row, and none of its tokens
        self.tool = torch.ones(shape, dtype=torch.long)
        self.tool[:, :, 1] = torch.randint(0, 2, shape[:2], generator=draw)  # tokens that a tool wrote
        self.mask = self.completion * self.tool
        self.logprobs = (-2 + numbers(1)).requires_grad_()
        self.old = (self.logprobs - numbers(0.4)).detach()
        self.reference = (self.logprobs - numbers(0.4)).detach()
        self.rollout = self.old - numbers(0.6)
        self.rollout[0, 0, 0] = math.nan  # vLLM may leave a token unscored
        advantages = numbers(1)
        self.advantages = advantages if steps else advantages[:, :, :1].expand(shape)


def groups_of(sample: Sample, *, kl: bool = True, old: bool = True) -> list[TrainGroup]:
    """Each micro-batch as a trainer's group: a rollout is a row, a token a step; who is masked whole has no row."""
    groups = []
    for m in range(MICRO):
        target = sample.mask[m].bool().numpy()
        whole = sample.completion[m].any(-1).numpy()  # the others were truncated
        rollout, token = np.nonzero(target)
        trajectories = tuple(
            Trajectory(id=f"{m}/{i}", task=TASK, steps=(StepRecord(),), outcome=Outcome(truncated=not ran))
            for i, ran in enumerate(whole)
        )
        targets = SimpleNamespace(
            rollout=rollout,
            step=token,
            row=(np.cumsum(whole) - 1)[rollout],
            logprob=sample.rollout[m].numpy()[target],
        )
        group = TrainGroup(
            trajectories,
            advantages=sample.advantages[m].numpy(),
            reached=np.broadcast_to(whole[:, None], target.shape),
            tree=SimpleNamespace(rows=int(whole.sum()), targets=targets),  # type: ignore[arg-type]
            old=sample.old[m][target] if old else None,
            reference=sample.reference[m][target] if kl else None,
        )
        groups.append(group)
    return groups


def ours(
    sample: Sample, settings: PolicyLossSettings, completion: int, **with_: bool
) -> tuple[Tensor, dict[str, float]]:
    """Our loss: what `GRPOTrainer` makes of these groups, weights and all, added up over micro-batches."""
    measured: list[Metrics] = []
    trainer: Any = SimpleNamespace(
        config=SimpleNamespace(
            loss=settings, loss_type=settings.loss_type, max_completion_length=completion, beta=settings.beta
        ),
        accelerator=SimpleNamespace(process_index=0, num_processes=1),
        preset=SimpleNamespace(budget=SimpleNamespace(max_steps=1, max_new_tokens=completion)),
        adapter=SimpleNamespace(model=SimpleNamespace(device=torch.device("cpu"))),
        tally=SimpleNamespace(measure=measured.append),
    )
    trainer._loss = partial(GRPOTrainer._loss, trainer)
    losses = []
    for m, made in enumerate(GRPOTrainer._with_losses(trainer, groups_of(sample, **with_))):
        if made is not None:
            logprobs = sample.logprobs[m][sample.mask[m].bool()]
            losses.append(made.loss_of(logprobs, torch.arange(len(logprobs))))
    return torch.stack(losses).sum(), summary(combine(measured))


def theirs(
    sample: Sample, settings: PolicyLossSettings, completion: int, folder: Path, *, steps: bool
) -> tuple[Tensor, dict[str, float]]:
    """TRL's loss of the same: the mean over processes of the sum over micro-batches."""
    changed = {n: getattr(settings, n) for n in PolicyLossSettings.model_fields}
    args = trl.GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to="none",
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=ACCUMULATION,
        num_generations=ROWS,
        max_completion_length=completion,
        **changed,
    )
    trainer = SimpleNamespace(
        args=args,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            num_processes=PROCESSES, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=False
        ),
        use_vllm=settings.vllm_importance_sampling_correction,
        epsilon_low=args.epsilon,
        epsilon_high=args.epsilon if args.epsilon_high is None else args.epsilon_high,
        current_gradient_accumulation_steps=ACCUMULATION,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        **{
            name: getattr(args, name)
            for name in ("beta", "loss_type", "importance_sampling_level", "max_completion_length")
            + ("top_entropy_quantile", "off_policy_mask_threshold")
            + tuple(n for n in PolicyLossSettings.model_fields if n.startswith("vllm_"))
        },
    )
    losses = []
    for m in range(MICRO):
        logprobs = sample.logprobs[m]
        trainer._get_per_token_logps_and_entropies = lambda *a, _p=logprobs, **k: (_p, torch.zeros_like(_p), None)
        inputs = {
            "prompt_ids": torch.zeros(ROWS, 1, dtype=torch.long),
            "prompt_mask": torch.ones(ROWS, 1, dtype=torch.long),
            "completion_ids": torch.zeros_like(sample.completion[m]),
            "completion_mask": sample.completion[m],
            "tool_mask": sample.tool[m],
            "advantages": sample.advantages[m] if steps else sample.advantages[m, :, 0],
            "old_per_token_logps": sample.old[m],
            "ref_per_token_logps": sample.reference[m],
            "num_items_in_batch": sample.mask.sum().double(),
        }
        if settings.vllm_importance_sampling_correction:
            inputs["importance_sampling_ratio"] = importance_ratio(trainer, sample, m)
        losses.append(trl.GRPOTrainer._compute_loss(trainer, None, inputs))
    tokens = sample.mask.sum((1, 2)).double()
    means = {
        name: float((torch.tensor(values) * tokens).sum() / tokens.sum())
        for name, values in trainer._metrics["train"].items()
        if len(values) == MICRO and not name.endswith(("min", "max"))
    }
    return torch.stack(losses).sum() / PROCESSES, means


def importance_ratio(trainer: Any, sample: Sample, m: int) -> Tensor:
    """TRL's factor for a micro-batch: the block of `_generate_and_score_completions` that computes it, run as it is."""
    source = textwrap.dedent(inspect.getsource(trl.GRPOTrainer._generate_and_score_completions))
    blocks = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.If)
        and ast.unparse(node.test) == "self.use_vllm and self.vllm_importance_sampling_correction"
        and "vllm_importance_sampling_ratio = torch.exp" in ast.unparse(node)
    ]
    assert len(blocks) == 1, "TRL computes its importance ratios elsewhere now: compare with its new code"
    scope: dict[str, Any] = {
        "self": trainer,
        "torch": torch,
        "math": math,
        "completion_mask": sample.completion[m],
        "tool_mask": sample.tool[m],
        "old_per_token_logps": sample.old[m],
        "sampling_per_token_logps": sample.rollout[m],
    }
    exec(compile(ast.Module(body=[blocks[0]], type_ignores=[]), "trl", "exec"), scope)
    ratio: Tensor = scope["vllm_importance_sampling_ratio"]
    return ratio


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip higher": {"epsilon": 0.1, "epsilon_high": 0.28},
    "dual clip": {"delta": 1.4},
    "kl": {"beta": 0.2},
    "kl, not corrected": {"beta": 0.2, "use_bias_correction_kl": False},
    **{
        mode: {
            "vllm_importance_sampling_correction": True,
            "vllm_importance_sampling_mode": mode,
            "vllm_importance_sampling_clip_max": 1.5,
            "vllm_importance_sampling_clip_min": 0.5,
            "beta": 0.1,
        }
        for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    },
}


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
@pytest.mark.parametrize("variant", [*VARIANTS, "one advantage a row"])
def test_loss_and_gradient_equal_trls(variant: str, loss_type: Any, level: Any, tmp_path: Path) -> None:
    steps = variant in VARIANTS  # an advantage for each token, which TRL takes as well
    chosen = {"vllm_importance_sampling_correction": False, **VARIANTS.get(variant, {})}
    settings = PolicyLossSettings(loss_type=loss_type, importance_sampling_level=level, **chosen)
    sample = Sample(len(variant), steps=steps)
    mine, metrics = ours(sample, settings, completion=40)
    reference, means = theirs(sample, settings, 40, tmp_path, steps=steps)
    torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-14)
    (gradient,) = torch.autograd.grad(mine, sample.logprobs)
    (wanted,) = torch.autograd.grad(reference, sample.logprobs)
    torch.testing.assert_close(gradient, wanted, rtol=1e-11, atol=1e-14)
    assert wanted.abs().max() > 1e-3 and mine.abs() > 1e-6
    if level == "token" and not settings.delta:  # per row otherwise; and TRL counts clips after the dual clip
        names = ["clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", *["kl"] * bool(settings.beta)]
        assert {n: metrics[n] for n in names} == pytest.approx({n: means[n] for n in names}, rel=1e-5)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
def test_masked_completions_count_as_trl_counts_them(loss_type: Any, tmp_path: Path) -> None:
    """Half of the completions masked, one micro-batch whole: the others do not weigh more than they did."""
    masked = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 0), (3, 1)]
    settings = PolicyLossSettings(loss_type=loss_type, vllm_importance_sampling_correction=False)
    sample = Sample(5, steps=True, masked=masked)
    mine, _ = ours(sample, settings, 40)
    reference, _ = theirs(sample, settings, 40, tmp_path, steps=True)
    torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-14)
    (gradient,) = torch.autograd.grad(mine, sample.logprobs)
    (wanted,) = torch.autograd.grad(reference, sample.logprobs)
    torch.testing.assert_close(gradient, wanted, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("scores", [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.5]])
def test_masking_truncated_completions_leaves_them_in_the_statistics_as_in_trl(
    scores: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last two are truncated. What TRL computes, and what our trainer learns from, with its `_credited`."""
    source = textwrap.dedent(inspect.getsource(trl.GRPOTrainer._generate_and_score_completions))
    (block,) = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.If)
        and ast.unparse(node.test) == "self.multi_objective_aggregation == 'sum_then_normalize'"
    ]
    scope: dict[str, Any] = {
        "self": SimpleNamespace(
            multi_objective_aggregation="sum_then_normalize", reward_weights=torch.ones(1), scale_rewards="group"
        ),
        "torch": torch,
        "nanstd": trl.trainer.utils.nanstd,
        "device": "cpu",
        "num_generations": 4,
        "rewards_per_func": torch.tensor(scores, dtype=torch.float64)[:, None],
        "unscorable_mask": torch.zeros(4, dtype=torch.bool),
    }
    exec(compile(ast.Module(body=[block], type_ignores=[]), "trl", "exec"), scope)
    truncated = torch.tensor([False, False, True, True])
    wanted = scope["advantages"].masked_fill(truncated, 0.0)  # TRL masks their tokens

    trajectories = tuple(
        Trajectory(
            id=f"t/{i}", task=TASK, steps=(StepRecord(rewards={"answer": score}),), outcome=Outcome(truncated=bool(cut))
        )
        for i, (score, cut) in enumerate(zip(scores, truncated, strict=True))
    )

    def made(of: Sequence[Trajectory], rewards: GroupRewards, advantages: Any, *_: Any, **__: Any) -> TrainGroup:
        return TrainGroup(tuple(of), advantages, rewards.reached)

    monkeypatch.setattr(grpo_module, "train_group", made)
    trainer: Any = SimpleNamespace(
        config=SimpleNamespace(
            advantage="grpo",
            estimator_options={},
            mask_truncated_completions=True,
            mask_second_zoom=False,
            overlength="cut",
            max_length=None,
        ),
        rewards=SimpleNamespace(weights={"answer": 1.0}, streams=("answer",)),
        adapter=None,
    )
    trainer._rewards = partial(GRPOTrainer._rewards, trainer)
    (group,) = GRPOTrainer._credited(trainer, [Group(TASK, trajectories)])
    np.testing.assert_allclose(group.advantages[:, 0], wanted.numpy(), atol=1e-12)
    assert group.reached[:, 0].tolist() == [True, True, False, False]
    assert group.advantages[0, 0] > 0.5  # against those who were cut off, too


def test_in_the_first_update_no_old_logprobs_are_needed(tmp_path: Path) -> None:
    settings = PolicyLossSettings(vllm_importance_sampling_correction=False)
    sample = Sample(0, steps=True)
    sample.old = sample.logprobs.detach().clone()
    reference, _ = theirs(sample, settings, 40, tmp_path, steps=True)
    mine, _ = ours(sample, settings, 40, old=False, kl=False)
    torch.testing.assert_close(mine, reference)
    torch.testing.assert_close(
        torch.autograd.grad(mine, sample.logprobs), torch.autograd.grad(reference, sample.logprobs)
    )
