"""A run that was killed and resumed is the run that was never killed: weights, optimizer, losses, rollouts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from closeup.agent.models.load import load_adapter
from closeup.agent.preset import Preset
from closeup.agent.task import Task
from closeup.rl import checkpoints
from closeup.rl.checkpoints import CheckpointError
from closeup.rl.config import GRPOConfig
from closeup.rl.configfile import checked
from closeup.rl.grpo import GRPOTrainer

Make = Callable[..., GRPOTrainer]
# Two slices of two micro-batches, each learnt from twice: checkpoints fall into the middle of a generation.
SETTINGS: dict[str, Any] = {
    "max_steps": 6,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "num_iterations": 2,
    "gradient_checkpointing": True,
    "lr_scheduler_type": "linear",
    "save_steps": 1,
    "save_total_limit": None,
}


class Killed(BaseException):
    """Stands for a signal that no handler catches."""


def state(folder: Path, step: int) -> dict[str, Any]:
    """What a checkpoint holds, as plain values."""
    checkpoint = folder / f"checkpoint-{step}"
    from safetensors.torch import load_file

    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    moments = {f"{i}/{name}": value for i, of in optimizer.items() for name, value in of.items()}
    history = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return {
        "weights": load_file(checkpoint / "model.safetensors"),
        "moments": moments,
        "schedule": torch.load(checkpoint / "scheduler.pt", weights_only=True)["last_epoch"],
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "correct": [entry["rollouts/correct"] for entry in history if "rollouts/correct" in entry],
    }


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["schedule"] == other["schedule"]
    assert one["losses"] == pytest.approx(other["losses"], abs=1e-6)
    assert one["correct"] == other["correct"]
    for kind in ("weights", "moments"):
        assert set(one[kind]) == set(other[kind])
        for name, value in one[kind].items():
            assert torch.allclose(value, other[kind][name], rtol=0, atol=1e-7), f"{kind} {name}"


@pytest.fixture(scope="module")
def reference(
    tmp_path_factory: pytest.TempPathFactory, needle_file: Path, needle_tasks: list[Task], short_preset: Preset
) -> dict[str, Any]:
    """The run that was never killed."""
    folder = tmp_path_factory.mktemp("reference")
    raw = {"output_dir": str(folder), "tasks": {"file": str(needle_file)}, "use_cpu": True, "num_generations": 4}
    config = checked(GRPOConfig, raw | {"temperature": 1.3, "learning_rate": 1e-4} | SETTINGS)
    trainer = GRPOTrainer(load_adapter("tiny-half", device="cpu"), config, short_preset, needle_tasks)
    trainer.train()
    trainer.rollouts.close()
    return state(folder, 6)


def killed_in_rollouts(trainer: GRPOTrainer) -> None:
    original = trainer.rollouts.groups

    def groups(*args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == 4:
            raise Killed
        return original(*args, **kwargs)

    trainer.rollouts.groups = groups  # type: ignore[method-assign]


def killed_in_an_update(trainer: GRPOTrainer) -> None:
    original, calls = trainer.training_step, [0]

    def step(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 6:  # the second micro-batch of update 3, in the middle of a generation
            raise Killed
        return original(*args, **kwargs)

    trainer.training_step = step  # type: ignore[method-assign]


def killed_in_a_checkpoint(trainer: GRPOTrainer) -> None:
    original = trainer._save_rng_state

    def save(folder: str) -> None:
        if trainer.state.global_step == 3:
            raise Killed
        original(folder)

    trainer._save_rng_state = save  # type: ignore[method-assign]


def killed_after_the_last(trainer: GRPOTrainer) -> None:
    trainer._finish = lambda: (_ for _ in ()).throw(Killed())  # type: ignore[method-assign,assignment]


@pytest.mark.parametrize(
    ("kill", "left"),
    [
        (killed_in_an_update, 2),
        pytest.param(killed_in_rollouts, 4, marks=pytest.mark.slow),
        pytest.param(killed_in_a_checkpoint, 2, marks=pytest.mark.slow),
        pytest.param(killed_after_the_last, 6, marks=pytest.mark.slow),
    ],
)
def test_resuming_gives_the_run_that_was_never_killed(
    make_grpo: Make, tmp_path: Path, reference: dict[str, Any], kill: Callable[[GRPOTrainer], None], left: int
) -> None:
    first = make_grpo(**SETTINGS)
    kill(first)
    with pytest.raises(Killed):
        first.train()
    folder = Path(first.args.output_dir)
    found = checkpoints.last_checkpoint(folder)
    assert found is not None
    assert found.name == f"checkpoint-{left}"
    second = make_grpo(**SETTINGS)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 6
    assert_same(state(folder, 6), reference)
    assert not list(folder.glob(".partial-*"))
    assert (folder / "final" / "model.safetensors").is_file()


def test_resume_restores_every_weight(make_grpo: Make, tmp_path: Path) -> None:
    """`Trainer` of transformers 5.23 restores one of 81 tensors; the losses alone would hardly tell."""
    settings = {**SETTINGS, "max_steps": 2, "learning_rate": 1e-3}
    first = make_grpo(**settings)
    first.train()
    second = make_grpo(**settings)
    second._load_from_checkpoint(str(Path(first.args.output_dir) / "checkpoint-2"))
    wanted = first.model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in second.model.state_dict().items())


def test_a_finished_run_resumed_does_nothing(make_grpo: Make) -> None:
    settings = {**SETTINGS, "max_steps": 1, "steps_per_generation": 2, "num_iterations": 1}
    first = make_grpo(**settings)
    first.train()
    folder = Path(first.args.output_dir)
    before = state(folder, 1)
    second = make_grpo(**settings)
    second.training_step = None  # type: ignore[method-assign,assignment]
    output = second.train(resume_from_checkpoint=True)
    assert output.global_step == 1
    assert_same(state(folder, 1), before)


def test_resuming_where_nothing_is_yet_begins(make_grpo: Make) -> None:
    trainer = make_grpo(max_steps=1)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 1


@pytest.mark.slow
def test_lora_resumes_too(make_grpo: Make, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 2, "save_steps": 1, "lora": {"r": 4}, "learning_rate": 1e-3}
    settings |= {"save_total_limit": None, "beta": 0.05}
    whole = make_grpo(**settings, output_dir=str(tmp_path / "whole"))
    whole.train()
    first = make_grpo(**settings)
    killed = first._save_checkpoint

    def save(*args: Any) -> None:
        killed(*args)
        raise Killed

    first._save_checkpoint = save  # type: ignore[method-assign]
    with pytest.raises(Killed):
        first.train()
    second = make_grpo(**settings)
    second.train(resume_from_checkpoint=True)
    wanted = whole.model.state_dict()
    for name, value in second.model.state_dict().items():
        assert torch.allclose(value, wanted[name], rtol=0, atol=1e-7), name


def test_what_cannot_be_resumed_is_refused(make_grpo: Make, tmp_path: Path) -> None:
    first = make_grpo(max_steps=1, save_steps=1)
    first.train()
    with pytest.raises(CheckpointError, match=r"holds a run already \(up to step 1\); go on with --resume"):
        make_grpo(max_steps=1, save_steps=1).train()
    with pytest.raises(CheckpointError, match=r"other settings: epsilon 0\.2, now 0\.1; resume with the same"):
        make_grpo(max_steps=1, save_steps=1, epsilon=0.1).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match=r"is no complete checkpoint: no trainer_state\.json"):
        make_grpo(max_steps=1).train(resume_from_checkpoint=str(tmp_path))
    longer = make_grpo(max_steps=2, save_steps=1, logging_steps=1, save_total_limit=5)  # with a constant schedule
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 2
    (Path(first.args.output_dir) / "checkpoint-2" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="the weights of .* do not fit this model"):
        make_grpo(max_steps=3, save_steps=1).train(resume_from_checkpoint=True)


# ---- the real signal -----------------------------------------------------------------------------------------------

RUN = """
import json, os, signal, sys
import torch
from pathlib import Path
from closeup.agent.models.load import load_adapter
from closeup.agent.preset import Preset
from closeup.agent.task import load_tasks
from closeup.rl.config import GRPOConfig
from closeup.rl.configfile import checked
from closeup.rl.grpo import GRPOTrainer

raw, preset, place = json.loads(sys.argv[1]), Preset.model_validate_json(sys.argv[2]), sys.argv[3]
config = checked(GRPOConfig, raw)
trainer = GRPOTrainer(load_adapter("tiny-half", device="cpu"), config, preset, load_tasks(Path(config.tasks.file)))

def dying(original, when):
    def run(*args, **kwargs):
        if when():
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    return run

calls = [0]
def third():
    calls[0] += 1
    return calls[0] == 3

if place == "rollouts":
    trainer._told = dying(trainer._told, lambda: trainer.state.global_step == 4)
elif place == "update":
    trainer.forward._score = dying(trainer.forward._score, lambda: trainer.state.global_step == 3)
elif place == "checkpoint":
    torch.save = dying(torch.save, lambda: trainer.state.global_step == 3 and third())
trainer.train(resume_from_checkpoint=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["rollouts", "update", "checkpoint"])
def test_kill_9(
    make_grpo: Make,
    grpo_settings: Callable[..., dict[str, Any]],
    short_preset: Any,
    tmp_path: Path,
    reference: dict[str, Any],
    place: str,
) -> None:
    raw = grpo_settings(**SETTINGS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(where: str) -> int:
        words = [sys.executable, "-c", RUN, json.dumps(raw), short_preset.model_dump_json(), where]
        return subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, timeout=600).returncode

    assert run(place) == -signal.SIGKILL
    assert not (Path(raw["output_dir"]) / "checkpoint-6").exists()
    assert run("nowhere") == 0
    assert_same(state(Path(raw["output_dir"]), 6), reference)
