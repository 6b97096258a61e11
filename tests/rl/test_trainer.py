"""The trainer core: what is trained and what is not, what is kept, and that what must give the same does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from closeup.agent.models.adapter import Adapter
from closeup.agent.models.load import load_adapter
from closeup.agent.policies.transformers_policy import TransformersPolicy
from closeup.agent.preset import Preset
from closeup.agent.task import Task
from closeup.rl import checkpoints
from closeup.rl.checkpoints import CheckpointError
from closeup.rl.config import GRPOConfig, SFTConfig, TrainConfig
from closeup.rl.configfile import ConfigError, checked
from closeup.rl.evaluate import evaluate
from closeup.rl.grpo import GRPOTrainer
from closeup.rl.trainable import check_trackers, trainable_model, training_arguments
from closeup.rl.trainer import TrainingStopped

Make = Callable[..., GRPOTrainer]
Weights = dict[str, torch.Tensor]


def weights_of(trainer: GRPOTrainer) -> Weights:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def moved(before: Weights, after: Weights) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def trained(trainer: GRPOTrainer) -> Weights:
    trainer.train()
    return weights_of(trainer)


def apart(one: Weights, other: Weights) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# ---- what is trained -----------------------------------------------------------------------------------------------


def test_the_tower_is_frozen_and_its_features_are_reused(make_grpo: Make) -> None:
    trainer = make_grpo(max_steps=2)
    before, after = weights_of(trainer), trained(trainer)
    assert moved(before, after)
    assert not any("visual" in name for name in moved(before, after))
    clips = {m.key for group in trainer.generation[1] if group.tree for m in group.tree.media}  # type: ignore[index]
    assert clips
    encoded = trainer.store.encoded
    trainer.next_batches(1)
    for trees in trainer.next_batches(1):
        trainer.training_step(trainer.model, trees)
    assert trainer.store.encoded == encoded  # the update asked for nothing that the rollouts had not encoded


def test_a_trainable_tower_learns_too(make_grpo: Make) -> None:
    trainer = make_grpo(max_steps=1, train_vision=True)
    assert trainer.trains_vision
    before, after = weights_of(trainer), trained(trainer)
    assert any("visual.blocks" in name for name in moved(before, after))
    assert any("visual.merger" in name for name in moved(before, after))
    assert any("language_model" in name for name in moved(before, after))


def test_lora_trains_adapters_of_the_language_model_alone(make_grpo: Make, half: Adapter) -> None:
    trainer = make_grpo(max_steps=1, lora={"r": 4}, learning_rate=1e-2)
    before, after = weights_of(trainer), trained(trainer)
    assert moved(before, after)
    assert all("lora_" in name and "language_model" in name for name in moved(before, after))
    assert not trainer.trains_vision
    whole = load_adapter(str(Path(trainer.args.output_dir) / "final"), device="cpu")  # merged: any command loads it
    ids = torch.tensor(half.message_ids("Which digit is in the red box?"))[None]
    with torch.no_grad():
        merged, base = whole.model(input_ids=ids).logits, half.model(input_ids=ids).logits
        ours = trainer.adapter.model.eval()(input_ids=ids).logits
    assert torch.allclose(merged, ours, atol=1e-4)
    assert not torch.allclose(merged, base, atol=1e-2)


def test_lora_that_reaches_the_tower_switches_the_cache_off(make_grpo: Make) -> None:
    assert make_grpo(lora={"target_modules": r".*\.qkv"}).trains_vision


def test_lora_that_reaches_nothing_is_refused(half: Adapter, grpo_settings: Callable[..., dict[str, Any]]) -> None:
    config = checked(GRPOConfig, grpo_settings(lora={"target_modules": "nothing"}))
    with pytest.raises(CheckpointError, match="'nothing' reaches no layer"):
        trainable_model(half, config)


def test_a_model_with_dropout_is_refused(half: Adapter) -> None:
    checkpoints.check_no_dropout(half.model)
    half.model.model.language_model.layers[1].self_attn.attention_dropout = 0.1
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn has attention_dropout 0\.1"):
        checkpoints.check_no_dropout(half.model)


# ---- ways to run that must give the same ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"gradient_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param({"two_phase": True}, marks=pytest.mark.slow),
        {"attention_core": "dense", "head_chunk": 16},
        {"gradient_checkpointing": True, "two_phase": True, "train_vision": True},
        {"two_phase": True, "lora": {"r": 4, "target_modules": r".*language_model\..*(q|v)_proj"}},
    ],
    ids=lambda settings: "+".join(settings),
)
def test_what_saves_memory_changes_no_update(make_grpo: Make, settings: dict[str, Any]) -> None:
    plain = {name: settings[name] for name in ("train_vision", "lora") if name in settings}
    common: dict[str, Any] = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0}
    before = make_grpo(**common, **plain)
    start = weights_of(before)
    one = trained(before)
    other = trained(make_grpo(**common, **settings, output_dir=before.args.output_dir + "-2"))
    assert apart(start, one) > 1e-3
    assert apart(one, other) < 1e-3 * apart(start, one)


@pytest.mark.slow
def test_features_on_disk_are_used_and_change_no_update(make_grpo: Make, tmp_path: Path) -> None:
    def run(name: str, **settings: Any) -> tuple[GRPOTrainer, Weights]:
        trainer = make_grpo(max_steps=1, output_dir=str(tmp_path / name), **settings)
        return trainer, trained(trainer)

    plain, wanted = run("plain")
    cold, made = run("cold", feature_cache_dir=str(tmp_path / "cache"))
    warm, found = run("warm", feature_cache_dir=str(tmp_path / "cache"))
    assert plain.store.disk is None
    assert cold.store.encoded == plain.store.encoded > 0
    assert cold.store.loaded == 0
    assert warm.store.encoded == 0
    assert warm.store.loaded == cold.store.encoded
    assert moved(made, wanted) == moved(found, wanted) == set()


# ---- files ---------------------------------------------------------------------------------------------------------


def test_weights_load_wholly_or_not_at_all(half: Adapter, tmp_path: Path) -> None:
    other = load_adapter("tiny", device="cpu")
    folder = tmp_path / "saved"
    checkpoints.save_whole_model(other.model, other, folder)
    checkpoints.load_weights(half.model, folder)
    wanted = other.model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in half.model.state_dict().items())
    from safetensors.torch import save_file

    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if "mlp" in name)
    save_file({n: v for n, v in state.items() if n != name} | {name: state[name][:-1]}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="do not fit this model"):
        checkpoints.load_weights(half.model, folder)


def test_best_and_final_are_models_any_command_loads(
    make_grpo: Make, needle_tasks: list[Task], short_preset: Preset
) -> None:
    evaluation = {"tasks": {"file": "unused.jsonl"}, "steps": 1, "batch": 8}
    trainer = make_grpo(max_steps=2, evaluation=evaluation, evaluation_tasks=needle_tasks[:3])
    trainer.train()
    folder = Path(trainer.args.output_dir)
    assert trainer.before is not None
    assert trainer.after is not None
    assert sorted(path.name for path in (folder / "evaluations").iterdir()) == [
        "step-000000",
        "step-000001",
        "step-000002",
    ]
    final = TransformersPolicy(str(folder / "final"))
    again, _ = evaluate(needle_tasks[:3], final, short_preset, temperature=0.0)
    assert again == trainer.after
    accuracies = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    assert trainer.state.best_metric == max(accuracies)
    assert (folder / "best").is_dir() == (max(accuracies) > accuracies[0])
    assert (folder / "final" / "closeup.json").is_file()


def test_incomplete_checkpoints_are_skipped(tmp_path: Path) -> None:
    def folder(step: int, *without: str) -> None:
        path = tmp_path / f"checkpoint-{step}"
        path.mkdir()
        for name in {"trainer_state.json", "optimizer.pt", "scheduler.pt", "model.safetensors"} - set(without):
            (path / name).touch()

    assert checkpoints.last_checkpoint(tmp_path) is None
    folder(5)
    folder(10)
    folder(15, "optimizer.pt")
    folder(20, "trainer_state.json", "model.safetensors")
    (tmp_path / ".partial-checkpoint-25").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    found = checkpoints.last_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-10"
    assert checkpoints.missing_parts(tmp_path / "checkpoint-20") == ["trainer_state.json", "model.safetensors"]
    checkpoints.clear_partial(tmp_path)
    assert not (tmp_path / ".partial-checkpoint-25").exists()
    checkpoints.rotate(tmp_path, 2)
    assert [step for step, _ in checkpoints.checkpoints(tmp_path)] == [15, 20]


def test_stopping_leaves_a_checkpoint(make_grpo: Make) -> None:
    trainer = make_grpo(max_steps=3)
    step = trainer.training_step

    def stop_then_step(*args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == 1:
            trainer.stop()
        return step(*args, **kwargs)

    trainer.training_step = stop_then_step  # type: ignore[method-assign]
    with pytest.raises(TrainingStopped, match="checkpoint-1 holds everything") as stopped:
        trainer.train()
    assert checkpoints.missing_parts(stopped.value.checkpoint) == []
    record = json.loads((stopped.value.checkpoint / "train_config.json").read_text(encoding="utf-8"))
    assert record["processes"] == 1
    assert record["settings"]["max_steps"] == 3


# ---- settings ------------------------------------------------------------------------------------------------------


class Read(set[str]):
    """Names of the settings that were read."""


def watched(config: TrainConfig, read: Read) -> TrainConfig:
    """The same configuration, which notes every setting that is asked for by its name."""
    kind = type(config)

    class Watching(kind):  # type: ignore[misc,valid-type]
        def __getattribute__(self, name: str) -> Any:
            if name in kind.model_fields:
                read.add(name)
            return super().__getattribute__(name)

    return Watching.model_construct(**{name: getattr(config, name) for name in kind.model_fields})


READ_BY_THE_COMMAND = {"model", "preset", "dtype", "trust_remote_code", "tasks", "push_to_hub", "hub_private_repo"}
READ_BY_THE_COMMAND |= {"hub_model_id", "log_completions", "trajectories", "teacher"}
ONLY_WITH_OTHERS = {"dynamic_sampling_max_tries", "num_completions_to_print", "keep_rollouts", "num_train_epochs"}


def test_every_setting_is_read(
    half: Adapter, grpo_settings: Callable[..., dict[str, Any]], short_preset: Preset, needle_tasks: list[Task]
) -> None:
    read = Read()
    config = checked(GRPOConfig, grpo_settings(dynamic_sampling=True, max_steps=1, keep_rollouts=1))
    trainer = GRPOTrainer(half, watched(config, read), short_preset, needle_tasks)  # type: ignore[arg-type]
    read.clear()  # what checking alone reads does not count
    trainer = GRPOTrainer(half, watched(config, read), short_preset, needle_tasks)  # type: ignore[arg-type]
    trainer.train()
    assert set(GRPOConfig.model_fields) - read - READ_BY_THE_COMMAND - ONLY_WITH_OTHERS == set()


def test_what_the_command_reads_is_read_there() -> None:
    source = Path(__file__).resolve().parents[2]
    text = "".join(
        (source / name).read_text(encoding="utf-8") for name in ("app/train.py", "rl/hub.py", "rl/sources.py")
    )
    every = READ_BY_THE_COMMAND & (set(GRPOConfig.model_fields) | set(SFTConfig.model_fields))
    assert {name for name in every if f"config.{name}" not in text} == set()


def test_what_this_machine_cannot_do_is_said(grpo_settings: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match="these settings cannot be used here: .*adamw_tochr"):
        training_arguments(checked(GRPOConfig, grpo_settings(optim="adamw_tochr")), 1)
    with pytest.raises(
        ConfigError, match="flex trains on CUDA devices alone .* on cpu; choose segment, split or dense"
    ):
        training_arguments(checked(GRPOConfig, grpo_settings(attention_core="flex")), 1)
    with pytest.raises(ConfigError, match="report_to names wandb, which is not installed; install it with: pip"):
        check_trackers(checked(GRPOConfig, grpo_settings(report_to=["wandb"])))


# ---- several processes ---------------------------------------------------------------------------------------------

RUN = """
import json, sys
from pathlib import Path
from closeup.agent.models.load import load_adapter
from closeup.agent.preset import Preset
from closeup.agent.task import load_tasks
from closeup.rl.config import GRPOConfig
from closeup.rl.configfile import checked
from closeup.rl.grpo import GRPOTrainer

config = checked(GRPOConfig, json.loads(sys.argv[1]))
tasks = load_tasks(Path(config.tasks.file))
preset = Preset.model_validate_json(sys.argv[2])
adapter = load_adapter("tiny-half", device="cpu")
trainer = GRPOTrainer(adapter, config, preset, tasks, evaluation_tasks=tasks[:3])
trainer.train(resume_from_checkpoint=True)
if trainer.is_world_process_zero():
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    found = {"after": trainer.after.overall.model_dump(), "losses": [entry["loss"] for entry in log]}
    found["correct"] = [entry["rollouts/correct"] for entry in log]
    found["tokens"] = [entry["tokens"] for entry in log]
    Path(config.output_dir, "found.json").write_text(json.dumps(found))
"""


@pytest.mark.distributed
def test_two_processes_give_the_updates_of_one(
    grpo_settings: Callable[..., dict[str, Any]], short_preset: Preset, tmp_path: Path
) -> None:
    (tmp_path / "run.py").write_text(RUN, encoding="utf-8")

    def run(processes: int, **changes: Any) -> dict[str, Any]:
        evaluation = {"tasks": {"file": "unused.jsonl"}, "at_start": False, "batch": 8}
        raw = grpo_settings(
            output_dir=str(tmp_path / f"run-{processes}"),
            per_device_train_batch_size=4 // processes,
            evaluation=evaluation,
            save_steps=1,
            optim="sgd",  # Adam's first updates would hide a wrong scale
            learning_rate=0.5,
            max_steps=2,
            **changes,
        )
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        launch = [sys.executable] if processes == 1 else launch
        words = [*launch, str(tmp_path / "run.py"), json.dumps(raw), short_preset.model_dump_json()]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
        folder = Path(raw["output_dir"])
        assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
        found: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
        found["weights"] = load_file(folder / "final" / "model.safetensors")
        return found

    one, two = run(1), run(2)
    assert one["tokens"] == two["tokens"]
    assert one["correct"] == pytest.approx(two["correct"])
    assert one["losses"] == pytest.approx(two["losses"], abs=1e-6)
    start = load_adapter("tiny-half", device="cpu")
    checkpoints.save_whole_model(start.model, start, tmp_path / "start")
    before = load_file(tmp_path / "start" / "model.safetensors")
    assert apart(before, one["weights"]) > 1e-3
    assert apart(one["weights"], two["weights"]) < 1e-3 * apart(before, one["weights"])
    assert one["after"] == two["after"]
