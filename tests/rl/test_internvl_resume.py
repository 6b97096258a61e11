"""Two traps of `transformers.Trainer` for InternVL: weights that resuming leaves out, and who scales the loss.

Transformers 5.23 saves InternVL under hub names and restores by in-memory names, not strictly: nothing is restored. And
it takes InternVL (not the Qwens) for a model that normalises its own loss over accumulated batches.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.trainer import Trainer

from closeup.agent.episode import run_episodes
from closeup.agent.models.load import load_adapter
from closeup.agent.models.testing import write_random_checkpoint
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import Preset
from closeup.agent.task import Task
from closeup.rl.config import SFTConfig
from closeup.rl.configfile import checked
from closeup.rl.sft import SFTTrainer

Make = Callable[..., SFTTrainer]


@pytest.fixture(scope="module")
def make(
    tmp_path_factory: pytest.TempPathFactory, needle_tasks: list[Task], short_preset: Preset
) -> Callable[..., SFTTrainer]:
    """`make("run", max_steps=4)`: SFT of all of a random InternVL, tower included, on four episodes."""
    place = tmp_path_factory.mktemp("internvl")
    folder = write_random_checkpoint(place / "model", family="internvl")
    overview = short_preset.overview.model_copy(update={"max_frames": 4})
    preset = short_preset.model_copy(update={"overview": overview, "timestamps": "native"})
    look = '<think>there</think>\n<tool_call>\n{"name": "zoom_clip", "arguments": {"start": 2, "end": 4}}\n</tool_call>'
    answer = '<think>so</think>\n<tool_call>\n{"name": "answer", "arguments": {"choice": "A"}}\n</tool_call>'
    episodes = run_episodes(needle_tasks[:4], ScriptedPolicy([look, answer]), preset=preset)

    def trainer(name: str, **changes: Any) -> SFTTrainer:
        raw: dict[str, Any] = {
            "output_dir": str(place / name),
            "use_cpu": True,
            "trajectories": ["unused"],
            "train_vision": True,
            "max_steps": 4,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 1,
            "packing": False,
            "save_steps": 2,
        }
        adapter = load_adapter(str(folder), device="cpu", timestamps="native")
        return SFTTrainer(adapter, checked(SFTConfig, raw | changes), preset, episodes)

    return trainer


def weights(trainer: SFTTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert set(one) == set(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def whole(make: Make) -> SFTTrainer:
    """The run that was never stopped."""
    trainer = make("whole")
    trainer.train()
    return trainer


def test_every_weight_is_restored_where_the_stock_trainer_restores_none(make: Make, whole: SFTTrainer) -> None:
    checkpoint = str(Path(whole.args.output_dir) / "checkpoint-4")
    fresh = make("other")
    before = weights(fresh)
    Trainer._load_from_checkpoint(fresh, checkpoint)
    assert all(torch.equal(value, before[name]) for name, value in weights(fresh).items())  # the trap is there
    fresh._load_from_checkpoint(checkpoint)
    trained = whole.model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in weights(fresh).items())
    moved = [name for name, value in trained.items() if not torch.equal(value, before[name])]
    assert any("vision_tower" in name for name in moved) and any("language_model" in name for name in moved)


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_weights(make: Make, whole: SFTTrainer) -> None:
    class Stopped(BaseException):
        pass

    first = make("stopped")
    original = first.training_step

    def step(*args: Any, **kwargs: Any) -> torch.Tensor:
        if first.state.global_step == 3:
            raise Stopped
        return original(*args, **kwargs)

    first.training_step = step  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        first.train()
    second = make("stopped")
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 4
    assert apart(weights(second), weights(whole)) <= 1e-7
    losses = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (second, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.slow
def test_two_accumulated_batches_teach_what_one_of_both_does(make: Make) -> None:
    """In one update of plain gradient descent, whose step is as long as the gradient; Adam's would hide a factor."""
    settings = {"max_steps": 1, "save_steps": 0, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0}
    one = make("one", per_device_train_batch_size=2, **settings)
    assert Trainer(model=one.model, args=one.args).model_accepts_loss_kwargs is True  # the trap
    assert one.model_accepts_loss_kwargs is False
    before = weights(one)
    one.train()
    two = make("two", gradient_accumulation_steps=2, **settings)
    two.train()
    learnt = apart(weights(one), before)
    assert learnt > 1e-3
    assert apart(weights(two), weights(one)) <= 1e-4 * learnt
