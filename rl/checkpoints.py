"""Checkpoints that are whole or not there, weights that are loaded or refused, and model folders anyone can load.

A checkpoint is written beside its place and renamed into it, so a folder `checkpoint-N` is complete however the process
that wrote it ended. It also names its own files, so that a copy that lacks some is not taken for a whole one
(`missing_parts`; checkpoints of older versions name none, and must have weights, optimizer, schedule and state).
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from closeup.agent.models.adapter import Adapter

log = logging.getLogger(__name__)
PARTIAL = ".partial-"
CONFIG_NAME = "train_config.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_NEEDED = ("trainer_state.json", "optimizer.pt", "scheduler.pt")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
_NOT_COPIED = ("config.json", "generation_config.json", "model.safetensors.index.json")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which, why, and what to do."""


def missing_parts(checkpoint: Path) -> list[str]:
    """What a checkpoint folder lacks to go on from: names of files, empty when it is complete."""
    missing = [name for name in _NEEDED if not (checkpoint / name).is_file()]
    if not any((checkpoint / name).is_file() for name in _WEIGHTS):
        missing.append(_WEIGHTS[0])
    return missing + [name for name in _named(checkpoint) if name not in missing and not (checkpoint / name).is_file()]


def files_of(folder: Path) -> list[str]:
    """Every file below a folder, by its path in it with forward slashes, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _named(checkpoint: Path) -> list[str]:
    """The files a checkpoint says it has; none where it does not say (or cannot be read, which is found out later)."""
    try:
        named = json.loads((checkpoint / CONFIG_NAME).read_text(encoding="utf-8"))["files"]
        return [str(name) for name in named]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Steps and folders of the checkpoints in a run's folder, oldest first, complete or not."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return sorted(entry for entry in found if entry[1].is_dir())


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None. Incomplete ones are skipped and said in the log."""
    for _, path in reversed(checkpoints(folder)):
        missing = missing_parts(path)
        if not missing:
            return path
        log.warning("skipping the incomplete checkpoint %s (no %s)", path, ", ".join(missing))
    return None


def clear_partial(folder: Path) -> None:
    """Remove what a process that was killed while writing left behind."""
    for path in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(path)


def rotate(folder: Path, keep: int | None) -> None:
    """Remove the oldest checkpoints but `keep` (None: none are removed)."""
    if keep is not None:
        for _, path in checkpoints(folder)[:-keep]:
            shutil.rmtree(path)


def load_weights(model: Any, folder: Path) -> None:
    """Load the weights of a folder into a model of the same class, or adapters into a peft model; all of them.

    `Trainer` of transformers 5.23 would load by in-memory names what was saved under hub names, not strictly: 80 of 81
    tensors of a Qwen2.5-VL stayed as they were, in silence.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape.
    """
    from safetensors import SafetensorError

    try:
        if hasattr(model, "peft_config"):
            _load_adapters(model, folder)
            return
        loaded = type(model).from_pretrained(folder, dtype=model.dtype, local_files_only=True)
        model.load_state_dict(loaded.state_dict(), strict=True)
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"the weights of {folder} do not fit this model: {_one_line(error)}") from error


def _load_adapters(model: Any, folder: Path) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    state = load_file(folder / "adapter_model.safetensors")
    wanted = get_peft_model_state_dict(model)
    if set(state) != set(wanted):
        odd = sorted(set(state) ^ set(wanted))
        raise RuntimeError(f"{len(odd)} adapter tensors are missing or unknown, first {odd[0]}")
    set_peft_model_state_dict(model, state)


def copy_small_files(adapter: Adapter, folder: Path) -> None:
    """Put tokenizer, templates, pixel settings and `closeup.json` beside weights, so that the folder can be loaded."""
    for pattern in ("*.json", "*.jinja", "*.txt", "*.model"):
        for source in adapter.checkpoint.path.glob(pattern):
            if source.name not in _NOT_COPIED:
                shutil.copyfile(source, folder / source.name)


def save_whole_model(model: Any, adapter: Adapter, folder: Path) -> None:
    """Write a folder that `--model` takes; adapters are merged into a copy of the weights. It appears when complete."""
    temporary = folder.with_name(f"{PARTIAL}{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if hasattr(model, "peft_config"):
        import copy

        copy.deepcopy(model).merge_and_unload().save_pretrained(temporary)
    else:
        model.save_pretrained(temporary)
    copy_small_files(adapter, temporary)
    replace_folder(temporary, folder)


def replace_folder(temporary: Path, folder: Path) -> None:
    """Put a complete folder in its place; one that is there goes."""
    if folder.exists():
        old = folder.with_name(f"{PARTIAL}old-{folder.name}")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old)
    else:
        temporary.rename(folder)


def check_no_dropout(model: torch.nn.Module) -> None:
    """Refuse a model that draws at random in training: its log-probabilities would not be those of the rollouts.

    Raises:
        CheckpointError: names the first module or setting with dropout.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0:
            raise CheckpointError(f"{name} has dropout {module.p}; training needs 0: set it in the model's config.json")
        rate = getattr(module, "attention_dropout", 0.0)
        if isinstance(rate, float) and rate > 0:
            raise CheckpointError(
                f"{name or 'the model'} has attention_dropout {rate}; training needs 0: set it in its config.json"
            )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
