"""What the trainers' tests share: a few short generated videos, the half-trained model, settings for seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from closeup.agent.models.adapter import Adapter, Media
from closeup.agent.models.load import load_adapter
from closeup.agent.preset import Preset, get_preset
from closeup.agent.task import Task, load_tasks
from closeup.rl.config import GRPOConfig
from closeup.rl.configfile import checked
from closeup.rl.data.needles import write
from closeup.rl.grpo import GRPOTrainer
from closeup.rl.rows import Row


@pytest.fixture(scope="session")
def needle_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task file of six videos of 16 to 20 seconds."""
    return write(6, 21, tmp_path_factory.mktemp("needles"), seconds=(16, 20))


@pytest.fixture(scope="session")
def needle_tasks(needle_file: Path) -> list[Task]:
    """Its tasks."""
    return load_tasks(needle_file)


@pytest.fixture(scope="session")
def short_preset() -> Preset:
    """The bundled model's preset with at most three messages."""
    preset = get_preset("tiny")
    budget = preset.budget.model_copy(update={"max_steps": 3, "max_new_tokens": 80})
    return preset.model_copy(update={"budget": budget})


@pytest.fixture
def half() -> Adapter:
    """The half-trained model, freshly loaded: trainers change it."""
    return load_adapter("tiny-half", device="cpu")


@pytest.fixture
def grpo_settings(tmp_path: Path, needle_file: Path) -> Callable[..., dict[str, Any]]:
    """`grpo_settings(max_steps=2, …)`: raw settings of a run in this test's folder."""

    def settings(**changes: Any) -> dict[str, Any]:
        raw: dict[str, Any] = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "tasks": {"file": str(needle_file)},
            "num_generations": 4,
            "temperature": 1.3,  # rollouts that differ
            "per_device_train_batch_size": 2,
            "max_steps": 2,
            "learning_rate": 1e-4,
            "lr_scheduler_type": "constant",
            "save_steps": 0,
        }
        return raw | changes

    return settings


@pytest.fixture
def make_grpo(
    grpo_settings: Callable[..., dict[str, Any]], short_preset: Preset, needle_tasks: list[Task]
) -> Iterator[Callable[..., GRPOTrainer]]:
    """`make_grpo(num_iterations=2, …)`: a trainer of a fresh half-trained model; `preset`, `tasks`, `policy` and
    `evaluation_tasks` are arguments, all else are settings."""
    made: list[GRPOTrainer] = []

    def make(**changes: Any) -> GRPOTrainer:
        arguments = {name: changes.pop(name) for name in ("policy", "evaluation_tasks") if name in changes}
        preset, tasks = changes.pop("preset", short_preset), changes.pop("tasks", needle_tasks)
        config = checked(GRPOConfig, grpo_settings(**changes))
        made.append(GRPOTrainer(load_adapter("tiny-half", device="cpu"), config, preset, tasks, **arguments))
        return made[-1]

    yield make
    for trainer in made:
        trainer.rollouts.close()


@pytest.fixture(autouse=True)
def few_threads() -> Any:
    """The models here are too small to share between threads, and test machines are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def stock_logits() -> Callable[..., torch.Tensor]:
    """`stock_logits(adapter, row, frames)`: logits (N, vocabulary) of the stock model on a row, from its pixels."""

    def logits(adapter: Any, row: Row, frames: Callable[[Media], Any]) -> torch.Tensor:
        pixels = [adapter.pixel_values(frames(media)) for media in row.media]
        found: torch.Tensor = adapter.model(
            input_ids=torch.from_numpy(row.ids)[None],
            pixel_values_videos=torch.from_numpy(np.concatenate(pixels)),
            video_grid_thw=torch.tensor([grid for media in row.media for grid in media.grids]),
            position_ids=torch.from_numpy(row.positions)[:, None],
            use_cache=False,
        ).logits[0]
        return found

    return logits
