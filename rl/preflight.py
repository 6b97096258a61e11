"""What can be refused before anything is made: no video is generated and no model loaded for a run that cannot be.

The settings alone are checked by `closeup.rl.config`; here is what needs this machine: the output folder, optimizer,
trackers, the reward functions, the account that a model is uploaded with.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from closeup.agent.models.load import find_checkpoint
from closeup.agent.preset import Preset
from closeup.extras import require
from closeup.rl import checkpoints
from closeup.rl.config import GRPOConfig, TrainConfig
from closeup.rl.configfile import ConfigError
from closeup.rl.hub import make_repository
from closeup.rl.reward_config import check_rewards
from closeup.rl.trainable import check_trackers, training_arguments


def check(config: TrainConfig, preset: Preset, *, resume: bool) -> None:
    """Refuse what cannot be trained here. The output folder is made; with push_to_hub, the repository too.

    Raises:
        ConfigError: settings that this machine cannot use. CheckpointError: an output folder that holds a run.
        RewardError: a reward that is not there, or not with these options. MissingExtra: peft, for lora.
        HubError: a repository that cannot be made. ModelError: a model that is not there.
    """
    find_checkpoint(config.model, trust_remote_code=config.trust_remote_code)
    check_trackers(config)
    training_arguments(config, 1)
    if config.lora is not None:
        require("train", "peft")
    if isinstance(config, GRPOConfig):
        check_rewards(config.rewards, preset=preset)
    cache = None if config.feature_cache_dir is None else Path(config.feature_cache_dir)
    if cache is not None and cache.exists() and not cache.is_dir():
        raise ConfigError(f"feature_cache_dir takes a folder, {cache} is a file; give another")
    folder = Path(config.output_dir)
    _check_writable(folder)
    refuse_used(folder, resume=resume)
    if config.push_to_hub and int(os.environ.get("RANK", "0")) == 0:
        make_repository(config)


def refuse_used(folder: Path, *, resume: bool) -> None:
    """Refuse to write over a run: one that is to begin where one is, or to go on where one ended without checkpoints.

    Raises:
        CheckpointError: says what is there, and what can be done.
    """
    there = checkpoints.checkpoints(folder)
    other = "give another output_dir, or delete that one"
    if there and not resume:
        raise checkpoints.CheckpointError(
            f"{folder} holds a run already (up to step {there[-1][0]}); go on with --resume, {other}"
        )
    if not there and (folder / "final").exists():
        raise checkpoints.CheckpointError(
            f"{folder} holds a finished run already (its model is {folder / 'final'}) and no checkpoint to go on from;"
            f" {other}"
        )
    if not resume and (folder / "metrics.jsonl").exists():
        raise checkpoints.CheckpointError(
            f"{folder} holds a run already (metrics.jsonl) that wrote no checkpoint; begin it again with --resume,"
            f" {other}"
        )


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"output_dir takes a folder, and {folder} is a file or below one; give another") from None
    except OSError as error:
        raise ConfigError(f"output_dir {folder} cannot be written to: {error.strerror}; give another folder") from None
