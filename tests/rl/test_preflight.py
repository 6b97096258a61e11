"""Refusals that need no video and no model, and that a run is never written over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from closeup.agent.models.adapter import Adapter
from closeup.agent.preset import Preset, get_preset
from closeup.rl.checkpoints import CheckpointError
from closeup.rl.config import GRPOConfig, SFTConfig
from closeup.rl.configfile import ConfigError, checked
from closeup.rl.grpo import GRPOTrainer
from closeup.rl.preflight import check, refuse_used
from closeup.rl.reward_config import RewardConfig, check_rewards
from closeup.rl.reward_registry import RewardError
from closeup.rl.sources import check_files
from closeup.rl.trainable import trainable_model, training_arguments

Settings = Callable[..., dict[str, Any]]


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    refuse_used(tmp_path / "none", resume=False)
    (tmp_path / "data").mkdir()  # what was generated for it is found again
    refuse_used(tmp_path, resume=False)
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl.*begin it again with --resume"):
        refuse_used(tmp_path, resume=False)
    refuse_used(tmp_path, resume=True)  # killed before its first checkpoint: it begins again
    (tmp_path / "final").mkdir()
    for resume in (False, True):
        with pytest.raises(CheckpointError, match="a finished run already .* and no checkpoint to go on from"):
            refuse_used(tmp_path, resume=resume)
    (tmp_path / "checkpoint-3").mkdir()
    refuse_used(tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="up to step 3.; go on with --resume"):
        refuse_used(tmp_path, resume=False)


def test_the_trainer_itself_does_not_write_over_a_run(make_grpo: Callable[..., GRPOTrainer]) -> None:
    trainer = make_grpo(max_steps=1)  # save_steps is 0
    mine = Path(trainer.args.output_dir) / "final" / "mine" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine", encoding="utf-8")
    for resume in (None, True):
        with pytest.raises(CheckpointError, match="holds a finished run already"):
            trainer.train(resume_from_checkpoint=resume)
    assert mine.read_text(encoding="utf-8") == "mine"


def test_an_optimizer_is_made_once_and_takes_what_is_given(grpo_settings: Settings) -> None:
    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            training_arguments(checked(GRPOConfig, grpo_settings(**changes)), 1)

    refused("install `bitsandbytes`.*optim: paged_adamw_8bit", optim="paged_adamw_8bit")
    refused("adam_beta2 has no effect with optim: rmsprop", optim="rmsprop", adam_beta2=0.9)
    refused("adam_epsilon has no effect with optim: sgd", optim="sgd", adam_epsilon=1e-7)
    given = checked(GRPOConfig, grpo_settings(optim="adamw_torch_fused", adam_beta1=0.8, adam_epsilon=1e-7))
    assert training_arguments(given, 1).adam_beta1 == 0.8
    assert training_arguments(checked(GRPOConfig, grpo_settings(optim="sgd")), 1).optim == "sgd"


def test_a_cache_that_an_adapter_switches_off_is_refused(
    half: Adapter, grpo_settings: Settings, tmp_path: Path
) -> None:
    cache = {"feature_cache_dir": str(tmp_path / "cache")}
    config = checked(GRPOConfig, grpo_settings(lora={"target_modules": r".*visual.*qkv"}, **cache))
    with pytest.raises(ConfigError, match="feature_cache_dir has no effect with lora.target_modules .*vision tower"):
        trainable_model(half, config)


def test_lora_needs_its_package_before_anything_is_made(
    grpo_settings: Settings, short_preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from closeup.extras import MissingExtra

    config = checked(GRPOConfig, grpo_settings(lora={}))
    check(config, short_preset, resume=False)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match="peft"):
        check(config, short_preset, resume=False)


CODE = """
class Heavy:
    def __init__(self, size: int):
        raise AssertionError("a scorer of the user's was made before there is a policy")

    def score(self, trajectory):
        return []
"""


def test_rewards_are_checked_without_making_a_users_scorer(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE, encoding="utf-8")

    def stream(**options: Any) -> RewardConfig:
        heavy = {"name": "heavy", "function": f"{tmp_path / 'mine.py'}:Heavy", "options": options}
        return RewardConfig.model_validate({"streams": [{"name": "answer"}, heavy]})

    preset = get_preset("tiny")
    check_rewards(stream(size=3), preset=preset)
    with pytest.raises(RewardError, match="needs the option size"):
        check_rewards(stream(), preset=preset)
    with pytest.raises(RewardError, match="the option size of stream 'heavy' .* cannot be 'big'"):
        check_rewards(stream(size="big"), preset=preset)
    own = RewardConfig.model_validate({"streams": {"answer": 1, "sufficiency": 1}})
    check_rewards(own, preset=preset)  # needs a policy, which is not there yet


def test_a_gated_stream_needs_its_other_one(tmp_path: Path) -> None:
    gated = {"name": "gated", "options": {"of": "zoom"}}
    preset = get_preset("tiny")
    check_rewards(RewardConfig.model_validate({"streams": [gated, {"name": "zoom", "weight": 0}]}), preset=preset)
    with pytest.raises(RewardError, match="'gated' gates 'zoom', which is no stream before it; there are answer"):
        check_rewards(RewardConfig.model_validate({"streams": [gated, {"name": "answer"}]}), preset=preset)


def test_files_are_looked_at_before_anything_is_generated(tmp_path: Path) -> None:
    raw: dict[str, Any] = {"output_dir": str(tmp_path), "max_steps": 1}
    config = checked(SFTConfig, raw | {"trajectories": [str(tmp_path / "gone.jsonl")]})
    with pytest.raises(ValueError, match="no file of episodes at .*gone.jsonl"):
        check_files(config)
    needles = {"needles": {"count": 1, "seed": 1}}
    config = checked(SFTConfig, raw | {"teacher": {"model": "tiney", "tasks": needles}})
    with pytest.raises(ValueError, match="no model 'tiney'"):
        check_files(config)
    config = checked(SFTConfig, raw | {"teacher": {"tasks": {"file": str(tmp_path / "gone.jsonl")}}})
    with pytest.raises(ValueError, match="no task file at"):
        check_files(config)


def test_a_judge_that_does_not_answer_is_found_before_the_model_is_loaded() -> None:
    judge = {
        "name": "answer",
        "function": "judge",
        "options": {"base_url": "http://127.0.0.1:9/v1", "model": "none", "attempts": 1},
    }
    with pytest.raises(RewardError, match="the stream 'answer' cannot be scored"):
        check_rewards(RewardConfig.model_validate({"streams": [judge]}), preset=get_preset("tiny"))


@pytest.mark.parametrize("name", ["learning_rate", "max_steps", "num_generations", "loss_type", "delta"])
def test_a_switch_is_no_number(grpo_settings: Settings, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is no switch, and got true"):
        checked(GRPOConfig, grpo_settings(**{name: True}))


def test_switches_stay_switches(grpo_settings: Settings) -> None:
    given = checked(GRPOConfig, grpo_settings(gradient_checkpointing=True, use_cpu=True))
    assert given.gradient_checkpointing is True and given.use_cpu is True
