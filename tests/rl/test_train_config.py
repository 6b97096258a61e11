"""Settings: what is accepted, what is refused and in which words, and that none is accepted and ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from closeup.agent.preset import get_preset
from closeup.rl.advantages import estimate
from closeup.rl.config import GRPOConfig, SFTConfig, TrainConfig
from closeup.rl.configfile import ConfigError, checked, load_config, pairs
from closeup.rl.credit import GroupRewards
from closeup.rl.losses import PolicyLossSettings
from closeup.rl.reward_config import build_rewards

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RAW: dict[str, Any] = {"output_dir": "runs/x", "max_steps": 3, "tasks": {"file": "tasks.jsonl"}}
SFT: dict[str, Any] = {"output_dir": "runs/x", "max_steps": 3, "trajectories": ["a.jsonl"]}


def kind_of(path: Path) -> type[TrainConfig]:
    return SFTConfig if "sft" in path.stem or path.stem in ("stage1", "stage2") else GRPOConfig


def refused(message: str, kind: type[TrainConfig] = GRPOConfig, **changes: Any) -> None:
    base = RAW if kind is GRPOConfig else SFT
    with pytest.raises(ConfigError, match=message):
        checked(kind, {**base, **changes})


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_committed_configuration_is_accepted(path: Path) -> None:
    config = load_config(kind_of(path), path)
    assert config.output_dir
    if config.preset is not None:
        assert get_preset(config.preset)


def test_there_are_configurations() -> None:
    wanted = {f"{name}_{kind}" for name in ("tiny", "longvila_r1") for kind in ("sft", "grpo")}
    wanted |= {"stage1", "stage2", "stage3"}
    assert wanted <= {path.stem for path in CONFIGS.rglob("*.yaml")}


def test_each_stage_of_love_r1_begins_with_what_the_one_before_it_made() -> None:
    first, second, third = (
        load_config(kind_of(path), path) for path in sorted((CONFIGS / "love_r1").glob("stage*.yaml"))
    )
    assert first.model == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert (second.model, third.model) == (f"{first.output_dir}/final", f"{second.output_dir}/final")
    assert (first.preset, second.preset, third.preset) == ("love_r1-template", "love_r1-sft", "love_r1-grpo")


@pytest.mark.parametrize(
    "path", sorted(path for path in CONFIGS.rglob("*.yaml") if kind_of(path) is GRPOConfig), ids=lambda path: path.stem
)
def test_estimator_rewards_and_preset_of_a_recipe_belong_together(path: Path) -> None:
    config = load_config(GRPOConfig, path)
    if config.preset is not None:
        assert get_preset(config.preset).budget.max_new_tokens >= (config.max_completion_length or 1)
    rewards = build_rewards(config.rewards)
    values = np.ones((len(rewards.streams), config.num_generations, 2))
    values[:, ::2] = 0
    group = GroupRewards(rewards.streams, values, np.ones(values.shape[1:], bool))
    (advantages,) = estimate(config.advantage, [group], rewards.weights, **config.estimator_options)
    assert (advantages[1::2, 0] > 0).all()
    assert (advantages[::2, 0] < 0).all()


def test_the_papers_numbers() -> None:
    """seeds.md, sections 1.4 and 2.2."""
    love = load_config(GRPOConfig, CONFIGS / "love_r1" / "stage3.yaml")
    assert (love.learning_rate, love.num_generations, love.beta, love.weight_decay) == (1e-6, 8, 0, 0.01)
    assert (love.max_completion_length, love.temperature, love.epsilon, love.loss_type) == (512, 0.9, 0.2, "grpo")
    for stage, epochs in (("stage1", 1), ("stage2", 2)):
        tuned = load_config(SFTConfig, CONFIGS / "love_r1" / f"{stage}.yaml")
        assert (tuned.learning_rate, tuned.num_train_epochs, tuned.warmup_steps) == (1e-5, epochs, 0.05)
        assert (tuned.gradient_accumulation_steps, tuned.max_grad_norm, tuned.max_length) == (16, 5, 20_500)
        assert (tuned.per_device_train_batch_size, tuned.train_vision, tuned.bf16) == (1, False, True)
    assert (love.max_grad_norm, love.train_vision, love.advantage, love.lr_scheduler_type) == (
        5,
        False,
        "love_r1",
        "cosine",
    )
    vila = load_config(GRPOConfig, CONFIGS / "longvila_r1_grpo.yaml")
    assert (vila.epsilon, vila.epsilon_high, vila.delta, vila.beta) == (0.2, 0.3, 3.0, 0.01)
    assert (8 * vila.gradient_accumulation_steps, 8 * vila.micro_steps, vila.updates_per_generation) == (128, 512, 4)
    assert not vila.train_vision


def test_names_the_trainer_shares_with_trl_have_trls_values() -> None:
    config = checked(GRPOConfig, RAW)
    assert (config.learning_rate, config.num_generations, config.beta, config.temperature) == (1e-6, 8, 0.0, 1.0)
    assert (config.epsilon, config.num_iterations, config.loss_type) == (0.2, 1, "dapo")


def test_a_misspelt_setting_is_refused_with_close_names() -> None:
    refused("there is no setting 'learning_rte'; did you mean learning_rate", learning_rte=1)
    refused("there is no setting 'tasks.needles.sed'; did you mean seed", tasks={"needles": {"count": 1, "sed": 1}})
    refused("there is no setting 'evaluation.every'", evaluation={"tasks": {"file": "x"}, "every": 3})
    refused("there is no setting 'num_generations'", SFTConfig, num_generations=3)


def test_what_is_deliberately_absent_says_why() -> None:
    refused("'top_p'; training needs the log-probabilities of the very distribution", top_p=0.9)
    refused("'num_train_epochs'; rollouts have no epochs", num_train_epochs=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 7}, "epsilon is 7: input should be less than 1"),
        ({"temperature": 0}, "temperature is 0: input should be greater than 0"),
        ({"max_steps": "soon"}, "max_steps is 'soon': input should be a valid integer"),
        ({"max_steps": None}, "max_steps is None"),
        ({"loss_type": "ppo"}, "loss_type is 'ppo': input should be 'grpo', 'dr_grpo', 'dapo' or 'bnpo'"),
        ({"report_to": ["mlflow"]}, "report_to.0 is 'mlflow': input should be 'trackio', 'tensorboard' or 'wandb'"),
        ({"advantage": "gae"}, "advantage is one of decoupled, .*got 'gae'"),
        ({"advantage": "rloo", "scale_rewards": "none"}, "'rloo' has a scale of its own"),
        ({"advantage_options": {"lambda": 1}}, r"takes the options \['gamma', 'std_floor'\], got \['lambda'\]"),
        ({"num_generations": 1}, "num_generations is at least 2"),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 3}, r"steps_per_generation \(3\) is a multiple"),
        ({"dynamic_sampling_max_tries": 2}, "is for dynamic_sampling: true"),
        ({"overlength": "mask"}, "set max_length"),
        ({"rewards": "good"}, "no reward preset 'good'"),
        ({"rewards": {"streams": []}}, "rewards.streams"),
        ({"lora": {"rank": 3}}, "there is no setting 'lora.rank'"),
        ({"lora": {}, "train_vision": True}, "lora trains adapters only"),
        ({"push_to_hub": True}, "push_to_hub needs hub_model_id"),
        ({"tasks": {}}, "exactly one of file .* and needles"),
        ({"tasks": {"needles": {"count": 3, "seed": 500_000}}}, "tasks.needles.seed is below 500000"),
        ({"evaluation": {"tasks": {"needles": {"count": 3, "seed": 1}}}}, "seeds from 500000 on"),
        ({"dynamic_sampling": True, "advantage": "reinforce_plus_plus"}, "switch one of them off"),
        (
            {"advantage": "love_r1", "rewards": "love_r1"},
            "'love_r1' cannot be used .*no reward stream 'zoom'",
        ),
        ({"advantage": "love_r1"}, "advantage 'love_r1' cannot be used .* one finite weight for each of"),
        ({"advantage_options": {"gamma": "abc"}}, "advantage_options: gamma is 'abc': input should be a valid number"),
        ({"advantage_options": {"gamma": {"zom": 1}}}, "gamma names the streams .'zom'., which have no weight"),
        ({"advantage_options": {"std_floor": 0}}, "cannot be used .*: std_floor is a positive number, got 0"),
        ({"advantage": "outcome_only", "advantage_options": {"outcome": "nope"}}, "stream 'nope', which has no weight"),
        ({"advantage": "grpo", "advantage_options": {"eps": None}}, "advantage_options: eps is None: "),
        ({"advantage": "grpo", "advantage_options": {"eps": float("nan")}}, "advantages that are not finite"),
        ({"lora": {"target_modules": "("}}, "lora.target_modules is '.': no regular expression: "),
        ({"tasks": {"needles": {"count": 1, "seed": 1, "seconds": [5, 500]}}}, "16 to 128 whole seconds .*5:500"),
        ({"tasks": {"needles": {"count": 1, "seed": 1, "seconds": [40, 20]}}}, "16 to 128 whole seconds .*40:20"),
        ({"push_to_hub": True, "hub_model_id": "a b/c"}, "hub_model_id is 'a b/c': repo id must use alphanumeric"),
        ({"evaluation": {"tasks": {"file": "x"}, "at_start": False, "at_end": False}}, "it would never be run"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    refused(message, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantage_options": {"std_floor": 0.5}, "scale_rewards": "none"}, "std_floor .*with scale_rewards: none"),
        ({"num_completions_to_print": 4}, "num_completions_to_print .*without log_completions"),
        ({"feature_cache_dir": "x", "train_vision": True}, "feature_cache_dir .*with train_vision"),
        ({"feature_cache_bytes": 10, "train_vision": True}, "feature_cache_bytes .*with train_vision"),
        ({"save_total_limit": 3, "save_steps": 0}, "save_total_limit .*with save_steps: 0"),
        ({"hub_model_id": "a/b"}, "hub_model_id .*without push_to_hub"),
        ({"hub_private_repo": True}, "hub_private_repo .*without push_to_hub"),
        ({"run_name": "x"}, "run_name .*without report_to"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 5}, "warmup_steps .*constant_with_warmup has one"),
        ({"use_bias_correction_kl": True}, "use_bias_correction_kl .*with beta: 0"),
        ({"overlength": "cut"}, "overlength .*without max_length"),
        (
            {"vllm_importance_sampling_correction": False, "vllm_importance_sampling_clip_max": 2.0},
            "vllm_importance_sampling_clip_max .*with vllm_importance_sampling_correction: false",
        ),
    ],
)
def test_a_setting_that_another_leaves_without_effect_is_refused(changes: dict[str, Any], message: str) -> None:
    refused(message.replace(" .*", " has no effect .*", 1), **changes)


def test_what_is_switched_off_is_not_given() -> None:
    off = {"save_total_limit": None, "save_steps": 0, "run_name": None, "hub_private_repo": False}
    assert checked(GRPOConfig, {**RAW, **off, "use_bias_correction_kl": False}).save_steps == 0


def test_options_of_an_estimator_are_numbers_as_yaml_writes_them() -> None:
    config = checked(GRPOConfig, {**RAW, "advantage": "grpo", "advantage_options": {"eps": "1e-5"}})
    assert config.advantage_options == {"eps": 1e-5}


@pytest.mark.parametrize("advantage", ["reinforce_plus_plus", "remax", "rloo", "dr_grpo", "episode_sum", "turn_level"])
def test_every_estimator_takes_the_default_rewards(advantage: str) -> None:
    assert checked(GRPOConfig, {**RAW, "advantage": advantage}).advantage == advantage


def test_sft_needs_one_source_and_one_length() -> None:
    refused("exactly one of trajectories .*, teacher .* and template", SFTConfig, trajectories=[])
    refused("exactly one of max_steps and num_train_epochs", SFTConfig, num_train_epochs=1)
    assert checked(SFTConfig, {**SFT, "max_steps": None, "num_train_epochs": 0.5}).num_train_epochs == 0.5


def write(path: Path, raw: Any) -> Path:
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def test_overrides_reach_into_sections_and_lists(tmp_path: Path) -> None:
    streams = {"streams": [{"name": "answer"}, {"name": "zoom"}]}
    path = write(tmp_path / "c.yaml", {**RAW, "rewards": streams})
    words = ["--learning-rate", "3e-4", "--rewards.streams.1.weight=0.5", "--advantage_options.gamma", "0.9"]
    config = load_config(GRPOConfig, path, [*words, "--lora.r", "4", "--report_to", "[wandb]"])
    assert config.learning_rate == 3e-4
    assert config.rewards.streams[1].weight == 0.5
    assert config.advantage_options == {"gamma": 0.9}
    assert config.lora is not None
    assert (config.lora.r, config.report_to) == (4, ("wandb",))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["learning_rate", "3"], "expected --key value, got 'learning_rate'"),
        (["--learning_rate"], "--learning_rate needs a value"),
        (["--max_steps.more", "3"], "'max_steps' has no place 'more'"),
        (["--rewards.streams.7.weight", "3"], "there is no 'rewards.streams.7'"),
        (["--max_steps", "["], "no YAML"),
    ],
)
def test_bad_overrides_are_refused(tmp_path: Path, words: list[str], message: str) -> None:
    path = write(tmp_path / "c.yaml", {**RAW, "rewards": {"streams": [{"name": "answer"}]}})
    with pytest.raises(ConfigError, match=message):
        load_config(GRPOConfig, path, words)


def test_pairs_take_both_spellings() -> None:
    assert pairs(["--a-b", "1", "--c.d=x=y", "--e", "-3"]) == [("a_b", "1"), ("c.d", "x=y"), ("e", "-3")]


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(GRPOConfig, tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="it holds list"):
        load_config(GRPOConfig, tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="is no YAML"):
        load_config(GRPOConfig, tmp_path / "broken.yaml")


def test_the_loss_gets_every_setting_of_its_own() -> None:
    values: dict[str, Any] = {"epsilon": 0.1, "epsilon_high": 0.3, "delta": 5.0, "beta": 0.1, "loss_type": "bnpo"}
    values |= {"use_bias_correction_kl": False, "importance_sampling_level": "sequence"}
    values |= {"vllm_importance_sampling_correction": True, "vllm_importance_sampling_mode": "sequence_mask"}
    values |= {"vllm_importance_sampling_clip_max": 2.0, "vllm_importance_sampling_clip_min": 0.5}
    assert set(values) == set(PolicyLossSettings.model_fields)
    off = {"vllm_importance_sampling_correction": False}
    assert checked(GRPOConfig, {**RAW, **off}).loss == PolicyLossSettings(**off)
    assert checked(GRPOConfig, {**RAW, **values}).loss == PolicyLossSettings(**values)
