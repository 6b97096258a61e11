"""What a trainer is made of: the model with what is trained switched on, its reference, the Trainer's arguments."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers.trainer import Trainer
from transformers.training_args import TrainingArguments

from closeup.agent.models.adapter import Adapter
from closeup.agent.models.fingerprint import has_adapters
from closeup.extras import require
from closeup.rl.checkpoints import CheckpointError
from closeup.rl.config import TrainConfig
from closeup.rl.configfile import ConfigError
from closeup.tools.video import Video


def trainable_model(adapter: Adapter, config: TrainConfig) -> Any:
    """The adapter's model with what is trained switched on, or a peft model around it (adapters put in place)."""
    model = adapter.model
    model.requires_grad_(True)
    if not config.train_vision:
        for module in adapter.vision_modules:
            module.requires_grad_(False)
    if config.lora is None:
        return model
    require("train", "peft")
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.lora_alpha,
        lora_dropout=0.0,
        target_modules=config.lora.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, settings)
    except ValueError as error:
        raise CheckpointError(
            f"lora.target_modules {config.lora.target_modules!r} reaches no layer of this model: {error}"
        ) from None
    if config.feature_cache_dir is not None and has_adapters(adapter):
        raise ConfigError(
            f"feature_cache_dir has no effect with lora.target_modules {config.lora.target_modules!r}, which reaches"
            " the vision tower: its features are never kept. Leave one of the two out"
        )
    return adapted


def reference_of(adapter: Adapter) -> Adapter:
    """A frozen copy of an adapter's model as it is now, behind an adapter of its own."""
    frozen = copy.copy(adapter)
    frozen.model = copy.deepcopy(adapter.model).requires_grad_(False).eval()
    return frozen


def training_arguments(config: TrainConfig, max_steps: int) -> TrainingArguments:
    """The Trainer's settings of a configuration.

    Raises:
        ConfigError: for what this machine or library cannot do, an optimizer that cannot be made and an attention core
            without gradients here included; and for a setting that the optimizer does not take.
    """
    evaluation = config.evaluation
    try:
        arguments = TrainingArguments(
            output_dir=config.output_dir,
            seed=config.seed,
            max_steps=max_steps,
            learning_rate=config.learning_rate,
            lr_scheduler_type=config.lr_scheduler_type,
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            adam_beta1=config.adam_beta1,
            adam_beta2=config.adam_beta2,
            adam_epsilon=config.adam_epsilon,
            max_grad_norm=config.max_grad_norm,
            optim=config.optim,
            per_device_train_batch_size=config.per_device_train_batch_size,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            activation_checkpointing=config.gradient_checkpointing,
            bf16=config.bf16,
            use_cpu=config.use_cpu,
            logging_steps=config.logging_steps,
            logging_first_step=True,
            logging_nan_inf_filter=False,  # a loss that is not a number must be seen
            save_strategy="steps" if config.save_steps else "no",
            save_steps=config.save_steps or 1,
            save_total_limit=config.save_total_limit,
            eval_strategy="steps" if evaluation is not None and evaluation.steps else "no",
            eval_steps=evaluation.steps if evaluation is not None else None,
            report_to=list(config.report_to) or "none",
            run_name=config.run_name,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
        )
        kind, takes = Trainer.get_optimizer_cls_and_kwargs(arguments)
        kind([torch.nn.Parameter(torch.zeros(1))], **takes)
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"these settings cannot be used here: {reason} (optim: {config.optim})") from None
    for argument, names in (("betas", ("adam_beta1", "adam_beta2")), ("eps", ("adam_epsilon",))):
        for name in names:
            if argument not in takes and name in config.model_fields_set:
                raise ConfigError(
                    f"{name} has no effect with optim: {config.optim}; leave it out, or choose adamw_torch"
                )
    if config.attention_core == "flex" and arguments.device.type != "cuda":
        raise ConfigError(
            "attention_core: flex trains on CUDA devices alone (FlexAttention has no backward pass on others), and this"
            f" run is on {arguments.device.type}; choose segment, split or dense"
        )
    return arguments


def check_trackers(config: TrainConfig) -> None:
    """Raise `ConfigError` for a tracker that is not installed, before anything is loaded."""
    for name in config.report_to:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"report_to names {name}, which is not installed; install it with: pip install {name}")


@contextmanager
def first_process_first() -> Iterator[None]:
    """Within it the first process of a launch works while the others wait; they then find what it wrote."""
    from accelerate import PartialState

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # a state made here would fix the device before settings are read
        yield
        return
    with PartialState().main_process_first():
        yield


@contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Within it, when wanted, torch computes with one thread: small models lose by sharing their products."""
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class OpenVideos(Mapping[str, Video]):
    """Videos by identity, opened when first asked for."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths, self._open = paths, dict[str, Video]()

    def __getitem__(self, identity: str) -> Video:
        if identity not in self._open:
            self._open[identity] = Video(self._paths[identity])
        return self._open[identity]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def close(self) -> None:
        for video in self._open.values():
            video.close()
