"""Uploading a trained model with a card that says what it is, how it was trained and what it reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from closeup import __version__, prompts
from closeup.rl.config import TrainConfig
from closeup.rl.configfile import ConfigError
from closeup.rl.statistics import Summary

if TYPE_CHECKING:
    from huggingface_hub import RepoUrl


def model_card(
    config: TrainConfig, kind: str, *, steps: int, before: Summary | None = None, after: Summary | None = None
) -> str:
    """The README.md of a trained model; `kind` is "grpo" or "sft"."""
    shown = json.loads(config.model_dump_json(exclude={"output_dir", "hub_model_id", "report_to", "run_name"}))
    return prompts.render_alone(
        "model_card",
        kind=kind.upper(),
        name=config.hub_model_id or Path(config.output_dir).name,
        base=config.model,
        steps=steps,
        version=__version__,
        before=None if before is None else figures(before),
        after=None if after is None else figures(after),
        settings=json.dumps(shown, indent=2),
    )


def figures(summary: Summary) -> str:
    """Accuracy with its interval, in words."""
    of = summary.overall
    return f"{of.accuracy:.1%} ({of.low:.1%} to {of.high:.1%}, {of.n} tasks)"


class HubError(ConfigError):
    """A model that cannot be uploaded; the message says why, and what to do."""


def make_repository(config: TrainConfig) -> RepoUrl:
    """Make the repository of a configuration unless it is there, and return its address.

    Raises:
        HubError: not logged in, no right to write, no connection.
    """
    from huggingface_hub import HfApi

    assert config.hub_model_id is not None  # the configuration has seen to it
    try:
        return HfApi().create_repo(config.hub_model_id, private=config.hub_private_repo, exist_ok=True)
    except Exception as error:  # its own kinds, those of its HTTP library, and the system's
        raise HubError(
            f"the repository {config.hub_model_id} cannot be made: {_one_line(error)}; log in with `hf auth login`,"
            " give another hub_model_id, or leave push_to_hub out"
        ) from error


def push(folder: Path, card: str, config: TrainConfig) -> str:
    """Write the card beside the model, upload the folder and return its address.

    Raises:
        HubError: as `make_repository`; the model is in its folder all the same.
    """
    from huggingface_hub import HfApi

    (folder / "README.md").write_text(card, encoding="utf-8")
    place = make_repository(config)
    try:
        HfApi().upload_folder(repo_id=place.repo_id, folder_path=str(folder), commit_message="Train with closeup")
    except Exception as error:  # as above
        raise HubError(
            f"the model is in {folder} and could not be uploaded: {_one_line(error)}; try again with:"
            f" hf upload {place.repo_id} {folder}"
        ) from error
    return str(place)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: " + " ".join(str(error).split())[:300]
