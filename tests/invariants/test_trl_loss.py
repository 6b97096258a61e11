"""Our policy loss and its gradient are those of TRL's `GRPOTrainer`, computed by TRL's own code.

TRL's `_compute_loss` is called with a stand-in for the trainer whose forward pass gives the log-probabilities of the
test. Its settings come from a real `GRPOConfig`. The batch is one global batch of two processes that accumulate two
micro-batches each; TRL's loss of it is the mean over processes of the sum over micro-batches.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from closeup.rl.loss_metrics import combine, summary
from closeup.rl.losses import PolicyLossSettings, TargetBatch, pair_weights, policy_loss

trl = pytest.importorskip("trl", reason="TRL is not installed (pip install 'closeup[train]')")

# TRL's own default for a setting that transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")

PROCESSES, ACCUMULATION, ROWS, LENGTH = 2, 2, 3, 6
MICRO = PROCESSES * ACCUMULATION


class Sample:
    """Per-token numbers of the whole global batch, (micro-batches, rows, tokens), float64."""

    def __init__(self, seed: int, *, steps: bool) -> None:
        draw = torch.Generator().manual_seed(seed)
        shape = (MICRO, ROWS, LENGTH)

        def numbers(scale: float) -> Tensor:
            return scale * torch.randn(shape, generator=draw, dtype=torch.float64)

        lengths = torch.randint(2, LENGTH + 1, shape[:2], generator=draw)
        self.completion = (torch.arange(LENGTH) < lengths[..., None]).long()
        self.completion[1, 2] = 0  # a masked completion: TRL counts the row, and none of its tokens
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


def ours(sample: Sample, settings: PolicyLossSettings, completion: int) -> tuple[Tensor, dict[str, float]]:
    """Our loss, micro-batch by micro-batch, of the pairs that are targets."""
    lengths = sample.mask.sum(-1).flatten()
    micro = torch.arange(MICRO).repeat_interleave(ROWS)
    weights = pair_weights(lengths, settings.loss_type, max_completion_length=completion, batches=micro)
    rows = torch.arange(MICRO * ROWS).view(MICRO, ROWS, 1).expand_as(sample.mask)
    target = sample.mask.bool()
    losses, metrics = [], []
    for m in range(MICRO):
        here = target[m]
        batch = TargetBatch(
            advantages=sample.advantages[m][here],
            weights=weights[rows[m][here]],
            rows=rows[m][here],
            old=sample.old[m][here],
            reference=sample.reference[m][here],
            rollout=sample.rollout[m][here],
        )
        loss, measured = policy_loss(sample.logprobs[m][here], batch, settings)
        losses.append(loss)
        metrics.append(measured)
    return torch.stack(losses).sum(), summary(combine(metrics))


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


def test_in_the_first_update_no_old_logprobs_are_needed(tmp_path: Path) -> None:
    settings = PolicyLossSettings(vllm_importance_sampling_correction=False)
    sample = Sample(0, steps=True)
    sample.old = sample.logprobs.detach().clone()
    reference, _ = theirs(sample, settings, 40, tmp_path, steps=True)
    target = sample.mask.bool()
    count = int(target.sum())
    batch = TargetBatch(
        sample.advantages[target],
        torch.full((count,), 1 / count, dtype=torch.float64),
        torch.zeros(count, dtype=torch.long),
    )
    mine, _ = policy_loss(sample.logprobs[target], batch, settings)
    torch.testing.assert_close(mine, reference)
    torch.testing.assert_close(
        torch.autograd.grad(mine, sample.logprobs), torch.autograd.grad(reference, sample.logprobs)
    )
