"""Settings of a training run: what `closeup train` reads from a YAML file, checked before anything is loaded.

Names are those of TRL's `GRPOConfig` and of `TrainingArguments` where the meaning is the same. A name that is not here
is refused: no setting is accepted and ignored (a test runs a training and sees every field being read). So is one that
is given where another setting leaves it without effect; null and false count as not given.

Departures from TRL, most of them because the unit of work is a group's tree, not a row:
- `per_device_train_batch_size` counts groups (SFT: trees) per process and micro-step;
- `max_completion_length` bounds one message of the agent, of which an episode has several; the constant of
  `loss_type: dr_grpo` is that times the messages an episode may have, per episode, however many rows it makes;
- `loss_type: grpo` and `importance_sampling_level: sequence` take a row for a completion: an episode while its context
  grows, one message where every step's context is built anew;
- `loss_type: bnpo` takes a group for a micro-batch, whatever `per_device_train_batch_size` is;
- `scale_rewards` has no "batch", and with "group" `decoupled`, `episode_sum` and `outcome_only` bound the deviation
  from below (`std_floor`) where TRL adds 1e-4 to it, which `grpo` does;
- a reward of None is left out of its stream's statistics; TRL adds it to the completion's sum as 0;
- failed and cancelled episodes, which TRL does not have, count nowhere: not in statistics, not in denominators;
- `top_p` and `top_k` do not exist: the log-probabilities would be of another distribution than the one sampled from.

Reading files and command lines is `closeup.rl.configfile`.
"""

from __future__ import annotations

import re
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from closeup.agent.models.attention import Core
from closeup.rl.advantages import ESTIMATORS, estimate, options_of
from closeup.rl.credit import GroupRewards
from closeup.rl.data.needles import EVALUATION_SEEDS, plan
from closeup.rl.losses import PolicyLossSettings
from closeup.rl.returns import ScaleRewards
from closeup.rl.reward_config import REWARD_PRESETS, RewardConfig, get_reward_config

Report = Literal["trackio", "tensorboard", "wandb"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, given: Any) -> Any:
        """pydantic takes `true` for 1, also where a number is meant; a typing mistake is not a learning rate of 1."""
        for name, value in given.items() if isinstance(given, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and bool not in _flat(field.annotation):
                raise ValueError(f"{name} is no switch, and got {str(value).lower()}")
        return given

    def _idle(self, why: str, *names: str) -> None:
        """Raise `ValueError` when one of these settings was given, which have no effect because of `why`."""
        for name in names:
            if name in self.model_fields_set and getattr(self, name) not in (None, False):
                raise ValueError(f"{name} has no effect {why}")


def _flat(annotation: Any) -> set[Any]:
    """The types that an annotation allows, unions taken apart; what a Literal allows are the types of its values."""
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    inside = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    return set().union(*map(_flat, inside)) if inside else {annotation}


class Needles(_Settings):
    """Generated tasks (`closeup data needles`), written once below the run's folder.

    Attributes:
        count: tasks, one video each. seed: task i depends on it and on i alone.
        seconds: shortest and longest video.
    """

    count: int = Field(ge=1, le=100_000)
    seed: int = Field(ge=0)
    seconds: tuple[float, float] = (16, 120)

    @field_validator("seconds")
    @classmethod
    def _possible(cls, value: tuple[float, float]) -> tuple[float, float]:
        plan(0, 0, value)  # raises in the words of the generator
        return value


class TaskSource(_Settings):
    """Where tasks come from: one of a task file and generated needles.

    Attributes:
        file: a task file (JSON Lines or parquet; see `closeup data`). needles: generated tasks.
        limit: only the first so many.
    """

    file: str | None = None
    needles: Needles | None = None
    limit: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one(self) -> TaskSource:
        if (self.file is None) == (self.needles is None):
            raise ValueError("give exactly one of file (a task file) and needles (generated tasks)")
        return self


class Evaluation(_Settings):
    """Greedy evaluation on tasks of its own, as `closeup eval` does it.

    Attributes:
        tasks: the tasks. batch: episodes that run together.
        at_start, at_end: before the first and after the last update.
        steps: every so many updates; None: only at start and end.
    """

    tasks: TaskSource
    batch: int = Field(64, ge=1)
    at_start: bool = True
    at_end: bool = True
    steps: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _unseen(self) -> Evaluation:
        if not (self.at_start or self.at_end or self.steps):
            raise ValueError("it would never be run: switch on at_start or at_end, give steps, or leave evaluation out")
        needles = self.tasks.needles
        if needles is not None and needles.seed < EVALUATION_SEEDS:
            raise ValueError(
                f"needles for evaluation have seeds from {EVALUATION_SEEDS} on (smaller ones train), got {needles.seed}"
            )
        return self


class Lora(_Settings):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) in the place of full training, by peft. Dropout is 0.

    Attributes:
        r, lora_alpha: rank, and the scale lora_alpha / r.
        target_modules: regular expression that a module's whole name matches; default: every linear layer of the
            language model. One that reaches the vision tower also makes it trainable, and its features uncached.
    """

    r: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)
    target_modules: str = r".*language_model\..*(q|k|v|o|gate|up|down)_proj"

    @field_validator("target_modules")
    @classmethod
    def _readable(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        return value


class TrainConfig(_Settings):
    """What both trainers share.

    Attributes:
        model: "tiny", "tiny-half", a checkpoint folder or a hub id. preset: name or .json file; default: the model's.
        dtype: of the weights: auto, float32, bfloat16. bf16: compute in bfloat16 on float32 weights (autocast).
        trust_remote_code: let a checkpoint run code of its own. use_cpu: even where there is a GPU.
        output_dir: everything of the run: data, rollouts, evaluations, checkpoints, `best` and `final`.
        seed: of weights that are drawn, the order of tasks and all sampling.
        learning_rate, lr_scheduler_type, warmup_steps, weight_decay, adam_beta1, adam_beta2, adam_epsilon,
            max_grad_norm, optim: as `TrainingArguments`. warmup_steps below 1 is a share of all steps.
        max_steps: updates. gradient_accumulation_steps: micro-steps per update.
        per_device_train_batch_size: groups (SFT: trees) per process and micro-step.
        gradient_checkpointing: recompute activations in the backward pass.
        two_phase: the tree's first segment once, its branches one by one: least memory (`closeup.rl.forward`).
        attention_core: dense, split, segment or flex (`closeup.agent.models.attention`).
        head_chunk: tokens whose logits are held at a time.
        max_length: tokens of one path of an episode that is trained on; longer ones: see `overlength`, or (SFT) cut
            after the last message that fits.
        train_vision: train tower and merger too; their features are then encoded anew for every update.
        feature_cache_bytes: memory for vision features. feature_cache_dir: a cache on disk (`closeup cache build`).
        lora: adapters instead of full training.
        logging_steps, save_steps: every so many updates; save_steps 0: no checkpoints. save_total_limit: keep so many.
        report_to: trackers. run_name: for them.
        evaluation: greedy evaluation; None: none.
        push_to_hub: upload the final model with a card to hub_model_id (private when hub_private_repo).
    """

    model: str = "tiny-half"
    preset: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    bf16: bool = False
    trust_remote_code: bool = False
    use_cpu: bool = False
    output_dir: str
    seed: int = Field(42, ge=0)

    learning_rate: float = Field(1e-6, gt=0)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: float = Field(0.0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, ge=0)
    optim: str = "adamw_torch"
    per_device_train_batch_size: int = Field(1, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)

    gradient_checkpointing: bool = False
    two_phase: bool = False
    attention_core: Core = "segment"
    head_chunk: int = Field(1024, ge=1)
    max_length: int | None = Field(None, ge=2)
    train_vision: bool = False
    feature_cache_bytes: int = Field(1 << 30, ge=0)
    feature_cache_dir: str | None = None
    lora: Lora | None = None

    logging_steps: int = Field(1, ge=1)
    save_steps: int = Field(50, ge=0)
    save_total_limit: int | None = Field(2, ge=1)
    report_to: tuple[Report, ...] = ()
    run_name: str | None = None
    evaluation: Evaluation | None = None
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool = False

    FREE: ClassVar[frozenset[str]] = frozenset(
        {"logging_steps", "save_steps", "save_total_limit", "report_to", "run_name", "push_to_hub", "hub_model_id"}
        | {"hub_private_repo", "output_dir"}
    )
    """Settings that a resumed run may change: they do not touch what is learnt."""

    @field_validator("hub_model_id")
    @classmethod
    def _repository(cls, value: str | None) -> str | None:
        if value is not None:
            from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # no __all__

            validate_repo_id(value)  # its error is a ValueError
        return value

    @model_validator(mode="after")
    def _together(self) -> TrainConfig:
        if not self.push_to_hub:
            self._idle("without push_to_hub: true", "hub_model_id", "hub_private_repo")
        if not self.report_to:
            self._idle("without report_to: it is the run's name in trackers", "run_name")
        if not self.save_steps:
            self._idle("with save_steps: 0, which writes no checkpoints", "save_total_limit")
        if self.train_vision:
            why = "with train_vision: the features of a tower that is trained are never kept"
            self._idle(why, "feature_cache_dir", "feature_cache_bytes")
        if self.lr_scheduler_type == "constant" and self.warmup_steps:
            self._idle("with lr_scheduler_type: constant; constant_with_warmup has one", "warmup_steps")
        if self.push_to_hub and self.hub_model_id is None:
            raise ValueError("push_to_hub needs hub_model_id, the repository's name: ORG/NAME")
        if self.lora is not None and self.train_vision:
            raise ValueError(
                "lora trains adapters only, and train_vision all of the tower: choose one, or let lora.target_modules"
                " reach the tower"
            )
        return self


class GRPOConfig(TrainConfig, PolicyLossSettings):
    """Multi-turn GRPO. The loss's settings (epsilon, beta, loss_type, …) are those of `PolicyLossSettings`.

    Attributes:
        tasks: what to train on. shuffle_dataset: in an order drawn anew for every epoch.
        num_generations: G, rollouts of each task. temperature: of the sampling, and of all log-probabilities.
        max_completion_length: tokens of one message; default: the preset's. max_live: episodes that run together.
        rollout_cohorts: they run in so many cohorts: while one is generated for, the others' tools run and their
            frames are decoded. 1 generates in the largest batches, which is faster where videos are small.
        steps_per_generation: micro-steps that the rollouts of one generation are divided over; default: one update's.
        num_iterations: mu, how often each rollout is trained on.
        rewards: streams with weights (`closeup.rl.reward_config`), or the name of a preset of them.
        advantage: estimator (`closeup.rl.advantages`); advantage_options: what it takes beside the rewards;
            scale_rewards: "group" or "none", for estimators that take it.
        mask_truncated_completions: learn nothing from episodes that ended without an answer because a budget ran out.
            As in TRL they stay in the mean and deviation that the others are compared with, and in the number of rows.
        mask_second_zoom: leave LOVE-R1's undecided steps out (`closeup.rl.credit.masked_second_zoom`).
        overlength: of an episode longer than max_length, "cut" what does not fit, or "mask" it whole, which leaves it
            out of mean and deviation, too.
        dynamic_sampling: replace groups that teach nothing by other tasks' (DAPO, arXiv 2503.14476), at most
            dynamic_sampling_max_tries times per place; what is then still without signal is left out.
        keep_rollouts: files of the last so many generations. log_completions: show sample rollouts;
            num_completions_to_print: so many.
    """

    max_steps: int = Field(ge=1)
    tasks: TaskSource
    shuffle_dataset: bool = True
    num_generations: int = Field(8, ge=1)
    temperature: float = Field(1.0, gt=0)
    max_completion_length: int | None = Field(None, ge=1)
    max_live: int = Field(64, ge=1)
    rollout_cohorts: int = Field(2, ge=1)
    steps_per_generation: int | None = Field(None, ge=1)
    num_iterations: int = Field(1, ge=1)
    rewards: RewardConfig = REWARD_PRESETS["default"]
    advantage: str = "decoupled"
    advantage_options: dict[str, Any] = Field(default_factory=dict)
    scale_rewards: ScaleRewards = "group"
    mask_truncated_completions: bool = False
    mask_second_zoom: bool = False
    overlength: Literal["cut", "mask"] = "cut"
    dynamic_sampling: bool = False
    dynamic_sampling_max_tries: int = Field(3, ge=1)
    keep_rollouts: int = Field(20, ge=0)
    log_completions: bool = False
    num_completions_to_print: int = Field(4, ge=1)

    @field_validator("rewards", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return get_reward_config(value) if isinstance(value, str) else value

    @field_validator("advantage_options")
    @classmethod
    def _typed(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """The options as the estimator's annotations have them."""
        hints = get_type_hints(ESTIMATORS[info.data["advantage"]]) if info.data.get("advantage") in ESTIMATORS else {}
        options = dict(value)
        for name in set(value) & set(hints):
            try:
                options[name] = TypeAdapter(hints[name]).validate_python(value[name])
            except ValidationError as error:
                message = error.errors()[0]["msg"]
                raise ValueError(f"{name} is {value[name]!r}: {message[0].lower() + message[1:]}") from None
        return options

    @model_validator(mode="after")
    def _grpo(self) -> GRPOConfig:
        if self.advantage not in ESTIMATORS:
            raise ValueError(f"advantage is one of {', '.join(ESTIMATORS)}, got {self.advantage!r}")
        takes = set(options_of(self.advantage)) - {"greedy"}
        if "scale_rewards" in self.model_fields_set and "scale_rewards" not in takes:
            raise ValueError(f"the estimator {self.advantage!r} has a scale of its own: leave scale_rewards out")
        unknown = sorted(set(self.advantage_options) - takes - {"scale_rewards"})
        if unknown or "scale_rewards" in self.advantage_options:
            raise ValueError(
                f"the estimator {self.advantage!r} takes the options {sorted(takes - {'scale_rewards'})}, got"
                f" {sorted(self.advantage_options)}"
            )
        if self.num_generations < 2 and self.advantage not in ("reinforce_plus_plus", "remax"):
            raise ValueError(f"the estimator {self.advantage!r} compares rollouts: num_generations is at least 2")
        if self.micro_steps % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation ({self.steps_per_generation}) is a multiple of gradient_accumulation_steps"
                f" ({self.gradient_accumulation_steps})"
            )
        needles = self.tasks.needles
        if needles is not None and needles.seed >= EVALUATION_SEEDS:
            raise ValueError(
                f"tasks.needles.seed is below {EVALUATION_SEEDS} (larger ones are for evaluation), got {needles.seed}"
            )
        if self.dynamic_sampling is False and "dynamic_sampling_max_tries" in self.model_fields_set:
            raise ValueError("dynamic_sampling_max_tries is for dynamic_sampling: true")
        if not self.log_completions:
            self._idle("without log_completions: true", "num_completions_to_print")
        if not self.beta:
            self._idle("with beta: 0, which leaves the KL term out", "use_bias_correction_kl")
        if not self.vllm_importance_sampling_correction:
            bounds = (f"vllm_importance_sampling_{name}" for name in ("mode", "clip_max", "clip_min"))
            self._idle("with vllm_importance_sampling_correction: false", *bounds)
        if self.scale_rewards == "none" and "std_floor" in self.advantage_options:
            raise ValueError("advantage_options.std_floor has no effect with scale_rewards: none")
        if self.dynamic_sampling and self.advantage == "reinforce_plus_plus":
            raise ValueError(
                "dynamic_sampling drops groups whose rollouts are all alike; reinforce_plus_plus compares with all of"
                " the batch and learns from them: switch one of them off"
            )
        if self.max_length is None:
            self._idle("without max_length, which says what is too long: set max_length", "overlength")
        self._estimate_once()
        return self

    def _estimate_once(self) -> None:
        """Run the estimator on made-up rewards of these streams: what it refuses is refused before anything is made."""
        streams = tuple(stream.name for stream in self.rewards.streams)
        weights = {stream.name: stream.weight for stream in self.rewards.streams if stream.weight != 0}
        values = np.zeros((len(streams), self.num_generations, 2))
        values[:, ::2] = 1
        group = GroupRewards(streams, values, np.ones(values.shape[1:], np.bool_))
        greedy = [GroupRewards(streams, values[:, :1], group.reached[:1])] if self.advantage == "remax" else None
        try:
            (found,) = estimate(self.advantage, [group], weights, greedy=greedy, **self.estimator_options)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise ValueError(
                f"advantage {self.advantage!r} cannot be used with these rewards and advantage_options: {error}"
            ) from None
        if not np.isfinite(found).all():
            raise ValueError(f"advantage_options {self.advantage_options} give advantages that are not finite")

    @property
    def micro_steps(self) -> int:
        """Micro-steps per generation."""
        return self.steps_per_generation or self.gradient_accumulation_steps

    @property
    def slices(self) -> int:
        """Updates it takes to see every rollout of a generation once."""
        return self.micro_steps // self.gradient_accumulation_steps

    @property
    def updates_per_generation(self) -> int:
        """Updates until the next rollouts."""
        return self.slices * self.num_iterations

    @property
    def loss(self) -> PolicyLossSettings:
        """The loss's settings alone."""
        return PolicyLossSettings(**{name: getattr(self, name) for name in PolicyLossSettings.model_fields})

    @property
    def estimator_options(self) -> dict[str, Any]:
        """What the estimator gets beside rewards and weights."""
        scaled = "scale_rewards" in options_of(self.advantage)
        return {**self.advantage_options, **({"scale_rewards": self.scale_rewards} if scaled else {})}


class Teacher(_Settings):
    """Episodes of another model to learn from, run once below the run's folder.

    Attributes:
        model: as in `TrainConfig`. tasks: what it is asked. temperature: 0 is greedy. batch: episodes together.
    """

    model: str = "tiny"
    tasks: TaskSource
    temperature: float = Field(0.0, ge=0)
    batch: int = Field(64, ge=1)


class Template(_Settings):
    """Tasks whose gold answers are learnt beside windows drawn at random (`closeup.rl.data.template`).

    Attributes:
        tasks: with gold answers. seed: of the windows.
    """

    tasks: TaskSource
    seed: int = Field(0, ge=0)


class SFTConfig(TrainConfig):
    """Supervised fine-tuning on recorded episodes; only the agent's own messages are learnt.

    Attributes:
        trajectories: .jsonl files of recorded episodes; or teacher: a model that makes them; or template: tasks that
            are made into episodes of one message, the gold answer.
        only_correct: leave episodes out that did not answer rightly. Failed ones are always left out.
        max_steps: updates; or num_train_epochs: passes over the episodes.
        packing: put episodes of several tasks into one tree (a forest) up to max_tree_tokens; without it a tree holds
            the episodes of one task.
        max_tree_tokens: most distinct tokens of a tree that is put together of several tasks or episodes.
    """

    learning_rate: float = Field(2e-5, gt=0)
    trajectories: tuple[str, ...] = ()
    teacher: Teacher | None = None
    template: Template | None = None
    only_correct: bool = False
    max_steps: int | None = Field(None, ge=1)
    num_train_epochs: float | None = Field(None, gt=0)
    packing: bool = True
    max_tree_tokens: int = Field(16_384, ge=1)

    @model_validator(mode="after")
    def _sft(self) -> SFTConfig:
        if bool(self.trajectories) + (self.teacher is not None) + (self.template is not None) != 1:
            raise ValueError(
                "give exactly one of trajectories (recorded .jsonl files), teacher (a model) and template (tasks with"
                " gold answers)"
            )
        if (self.max_steps is None) == (self.num_train_epochs is None):
            raise ValueError("give exactly one of max_steps and num_train_epochs")
        return self
