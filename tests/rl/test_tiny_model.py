"""The committed checkpoints: ordinary folders, small, and good at unseen tasks of their world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import closeup.agent.models
from closeup.agent.policies.transformers_policy import TransformersPolicy
from closeup.agent.preset import get_preset
from closeup.agent.task import load_tasks
from closeup.rl.data.needles import EVALUATION_SEEDS, write
from closeup.rl.evaluate import evaluate

FOLDER = Path(closeup.agent.models.__file__).parent
NAMES = ("closeup-tiny", "tiny-half")


@pytest.mark.parametrize("name", NAMES)
def test_checkpoint_is_small_and_of_the_stock_architecture(name: str) -> None:
    files = {file.name: file for file in (FOLDER / name).iterdir()}
    assert sum(file.stat().st_size for file in files.values()) < 16 * 2**20
    config = json.loads(files["config.json"].read_text())
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
    assert json.loads(files["closeup.json"].read_text()) == {"preset": "tiny"}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"} <= set(files)
    assert {"preprocessor_config.json", "video_preprocessor_config.json", "model.safetensors"} <= set(files)


def test_tiny_answers_unseen_tasks_by_looking_closely(tmp_path: Path) -> None:
    tasks = list(load_tasks(write(20, EVALUATION_SEEDS + 79, tmp_path, (16, 60))))
    summary, trajectories = evaluate(tasks, TransformersPolicy("tiny"), get_preset("tiny"), batch=20)
    right = [trajectory.outcome.correct for trajectory in trajectories]
    assert sum(map(bool, right)) >= 15, summary  # chance is 5; fewer than 15 at 90 % has odds of 1 in 90
    for trajectory in trajectories:
        if trajectory.outcome.correct:
            assert len(trajectory.steps) >= 2
            assert trajectory.outcome.evidence
