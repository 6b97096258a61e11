"""The `flex` core on a CUDA device: a tree's gradients are those of the `segment` core, in every way to train.

In float32 both are compared value by value. In bfloat16 each is as far from the exact gradients as rounding takes it,
so the two are compared by the length of their difference, and neither may be further from the exact ones than the
other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from closeup.agent.messages import Message
from closeup.agent.models.adapter import Adapter
from closeup.agent.models.attention import Core
from closeup.agent.models.load import load_adapter
from closeup.agent.models.testing import SyntheticVideo, write_random_checkpoint
from closeup.agent.preset import get_preset
from closeup.agent.task import load_tasks
from closeup.rl.config import GRPOConfig
from closeup.rl.configfile import checked
from closeup.rl.data.needles import write
from closeup.rl.forward import TreeForward
from closeup.rl.grpo import GRPOTrainer
from closeup.rl.rows import Row, Span
from closeup.rl.tree import TreeBatch, build_tree
from closeup.tools.video.clip import Clip

pytestmark = pytest.mark.gpu
DEVICE, CORE = "cuda", "flex"
VIDEO = SyntheticVideo(1)
Gradients = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random checkpoint with heads of 64 channels, and weights small enough for bfloat16 to stay near."""
    shape: dict[str, Any] = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 256,
        "initializer_range": 0.1,
    }
    shape["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]}
    return str(write_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "random", **shape))


def group(adapter: Adapter) -> TreeBatch:
    """Four rollouts that share their overview, two and two their first message, and look at different places."""
    videos = {VIDEO.identity: VIDEO}
    overview = Clip(video=VIDEO.identity, start=0, end=60, fps=1, pixels=56 * 56)
    rows = []
    for rollout in range(4):
        first = adapter.encode((Message.of("user", overview, "box?"),), videos)
        said = adapter.message_ids(f"zoom_clip {rollout // 2}")
        look = Clip(video=VIDEO.identity, start=5 * rollout, end=5 * rollout + 4, num_frames=4, pixels=84 * 84)
        more = adapter.encode((Message.of("tool", look),), videos, first=False)
        answer = adapter.message_ids(f"answer {rollout}")
        ids = [*first.ids, *said, *more.ids, *answer]
        media = (*first.media, *more.media)
        start = len(first.ids)
        spans = (Span(0, start, start + len(said)), Span(1, len(ids) - len(answer), len(ids)))
        rows.append(Row(rollout, np.array(ids), media, adapter.positions(ids, media), spans))
    return build_tree(rows, adapter)


def gradients_of(model: Any) -> Gradients:
    found = {n: p.grad.double().cpu() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def apart(found: Gradients, expected: Gradients) -> float:
    """Largest length of a tensor's difference, relative to the tensor's."""
    assert set(found) == set(expected)
    return max(
        float((found[name] - expected[name]).norm() / expected[name].norm())
        for name in expected
        if float(expected[name].abs().max()) > 1e-9
    )


Run = Callable[..., Gradients]


@pytest.fixture
def run(folder: str) -> Run:
    """`run(core, kind="autocast", two_phase=True, checkpointing=True)`: gradients of the group's tree."""

    def gradients(core: Core, *, kind: str = "float32", two_phase: bool = False, checkpointing: bool = False) -> Any:
        adapter = load_adapter(folder, device=DEVICE, dtype="float32")
        tree = group(adapter)
        if kind == "bfloat16":
            adapter.model.bfloat16()
        if checkpointing:
            switch = "activation" if hasattr(adapter.model, "activation_checkpointing_enable") else "gradient"
            getattr(adapter.model, f"{switch}_checkpointing_enable")()
            adapter.model.train()
        with torch.no_grad():
            clips = adapter.encode_clips([adapter.frames(item, {VIDEO.identity: VIDEO}) for item in tree.media])
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=kind == "autocast"):
            TreeForward(adapter, core=core).backward(tree, clips, lambda found, _: found.sum(), two_phase=two_phase)
        return gradients_of(adapter.model)

    return gradients


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("two_phase", [False, True], ids=["packed", "two-phase"])
def test_gradients_in_single_precision(run: Run, two_phase: bool, checkpointing: bool) -> None:
    expected = run("segment")
    found = run(CORE, two_phase=two_phase, checkpointing=checkpointing)
    assert set(found) == set(expected)
    for name, wanted in expected.items():
        error = (found[name] - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6)
        assert error <= 1e-3, name


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("two_phase", [False, True], ids=["packed", "two-phase"])
@pytest.mark.parametrize("kind", ["bfloat16", "autocast"])
def test_gradients_in_half_precision(run: Run, kind: str, two_phase: bool, checkpointing: bool) -> None:
    exact, expected = run("segment"), run("segment", kind=kind)
    found = run(CORE, kind=kind, two_phase=two_phase, checkpointing=checkpointing)
    assert apart(found, expected) <= 0.05
    assert apart(found, exact) <= 1.25 * apart(expected, exact)


def test_an_update_as_in_the_papers_recipes(tmp_path: Path) -> None:
    """configs/love_r1/stage3.yaml: flex, two_phase, recomputation and autocast at once, through the trainer."""
    pytest.importorskip("accelerate", reason="the train extra is not installed")
    file = write(2, 21, tmp_path / "needles", seconds=(16, 20))
    raw: dict[str, Any] = {
        "output_dir": str(tmp_path / "run"),
        "tasks": {"file": str(file)},
        "use_cpu": DEVICE == "cpu",
    }
    raw |= {"attention_core": CORE, "two_phase": True, "gradient_checkpointing": True, "bf16": True}
    raw |= {"num_generations": 4, "temperature": 1.3, "per_device_train_batch_size": 2, "max_steps": 1, "beta": 0.01}
    raw |= {"learning_rate": 1e-4, "lr_scheduler_type": "constant", "save_steps": 0}
    config = checked(GRPOConfig, raw)
    trainer = GRPOTrainer(load_adapter("tiny-half", device=DEVICE), config, get_preset("tiny"), load_tasks(file))
    before = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    trainer.rollouts.close()
    after = trainer.model.state_dict()
    assert all(bool(torch.isfinite(value).all()) for value in after.values())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    assert trainer.model.is_gradient_checkpointing

    def step() -> Gradients:
        for trees in trainer.next_batches(0):
            trainer.training_step(trainer.model, trees)
        return gradients_of(trainer.model)

    found = step()
    trainer.forward.core, trainer.config = "segment", config.model_copy(update={"two_phase": False})
    assert apart(found, step()) <= 0.1
