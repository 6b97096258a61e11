"""LOVE-R1's three stages on generated videos, each from the model that the one before it made, by the very configs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from closeup.agent.preset import get_preset
from closeup.agent.task import Task, load_tasks
from closeup.agent.trajectory import read_trajectories
from closeup.app.train import TrainOptions, run
from closeup.rl.config import SFTConfig, Template
from closeup.rl.configfile import checked
from closeup.rl.data.convert import VideoFinder, convert
from closeup.rl.data.needles import write
from closeup.rl.sources import check_files, episodes_from

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "love_r1"
SMALL = {
    "use_cpu": "true",
    "bf16": "false",
    "attention_core": "segment",
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": "false",
    "logging_steps": 1,
    "learning_rate": "1e-4",
    "save_steps": 0,
}


def words(**changes: Any) -> tuple[str, ...]:
    return tuple(f"--{key}={value}" for key, value in (SMALL | changes).items())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final" / "model.safetensors")


def cot_rows(tasks: list[Task]) -> list[dict[str, Any]]:
    """Two rows of LOVE-R1's fine-tuning form per task: a zoom to its gold window, and the answer after it."""
    rows = []
    for task in tasks:
        lines = [f"{letter}. {text}" for letter, text in zip(task.letters, task.options, strict=True)]
        asked = "\n".join(["<video>", task.question, "Options:", *lines, ""])
        ((start, end),) = task.evidence
        window = [int(start), int(end) + 1]
        zoom = f"I need to zoom in on the video.\n\nIt is too small.\n\\boxed{{[{window[0]}, {window[1]}]}}"
        answer = f"I get the answer.\n\nNow it shows.\n\\boxed{{{task.gold_choice}}}"
        for name, said, seen in (("zoom", zoom, []), ("answer", answer, [window])):
            rows.append(
                {
                    "id": f"{task.id}-{name}",
                    "video": str(task.videos[0]),
                    "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}],
                    "tgt": [window],
                    "zoomin_intervals": seen,
                    "cot_data": True,
                }
            )
    return rows


def rl_rows(tasks: list[Task]) -> list[dict[str, Any]]:
    """One answer sample and one grounding sample of LOVE-R1's reinforcement form."""
    rows = []
    for task, grounding in zip(tasks, (False, True), strict=True):
        rows.append(
            {
                "id": task.id,
                "problem": task.question,
                "problem_type": "multiple choice",
                "options": [f"{letter}. {text}" for letter, text in zip(task.letters, task.options, strict=True)],
                "solution": f"<answer>{task.gold_choice}</answer>",
                "path": str(task.videos[0]),
                "data_type": "video",
                "tgt": [list(window) for window in task.evidence] if grounding else None,
                "zoomin_intervals": [],
            }
        )
    return rows


def converted(folder: Path, name: str, rows: list[dict[str, Any]], *, trajectories: bool) -> Path:
    (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    out = folder / f"{name}.jsonl"
    finder = VideoFinder([folder])
    done = convert(folder / f"{name}.json", out, layout="love_r1", videos=finder, trajectories=trajectories)
    assert done.faults == (), done.faults
    return out


@pytest.mark.slow
def test_the_three_stages_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tasks = load_tasks(write(4, 21, tmp_path / "needles", seconds=(16, 18)))
    cot = converted(tmp_path, "cot", cot_rows(tasks[:2]), trajectories=True)
    questions = converted(tmp_path, "rl", rl_rows(tasks[:2]), trajectories=False)

    first = words(model="tiny-half", **{"template.tasks.file": "needles/tasks.jsonl"})
    assert run(TrainOptions("sft", CONFIGS / "stage1.yaml", first)) == 0
    one = Path("runs/love_r1/stage1")
    (made,) = (one / "data").glob("template-*.jsonl")
    episodes = list(read_trajectories(made))
    assert len(episodes) == 4 and all(e.outcome.correct and len(e.steps) == 1 for e in episodes)
    assert {e.settings["preset"]["name"] for e in episodes} == {"love_r1-template"}

    assert run(TrainOptions("sft", CONFIGS / "stage2.yaml", words(trajectories=f"[{cot}]", num_train_epochs=1))) == 0
    two = Path("runs/love_r1/stage2")
    assert {e.settings["preset"]["name"] for e in read_trajectories(cot)} == {"love_r1-sft"}

    third = words(
        **{
            "tasks.file": questions,
            "num_generations": 2,
            "max_steps": 2,
            "max_completion_length": 24,
            "temperature": 1.3,
        }
    )
    assert run(TrainOptions("grpo", CONFIGS / "stage3.yaml", third)) == 0
    three = Path("runs/love_r1/stage3")
    rollouts = [e for path in sorted((three / "rollouts").glob("*.jsonl")) for e in read_trajectories(path)]
    assert {e.settings["preset"]["name"] for e in rollouts} == {"love_r1-grpo", "love_r1-grpo-grounding"}
    assert not any(e.outcome.failed for e in rollouts)

    half = weights_of_tiny_half()
    stages = [weights(folder) for folder in (one, two, three)]
    vision = [name for name in half if "visual." in name]
    assert vision
    for before, after in zip([half, *stages[:2]], stages, strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in vision), "the tower is frozen"
    for before, after in zip([half, *stages[:1]], stages[:2], strict=True):
        assert any(not torch.equal(before[name], after[name]) for name in before), "a stage of SFT moves weights"
    for folder, steps in ((one, 4), (two, 4), (three, 2)):
        logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        losses = [row["loss"] for row in logged if "loss" in row]
        assert len(losses) == steps and all(loss == loss for loss in losses)


def weights_of_tiny_half() -> dict[str, torch.Tensor]:
    from closeup.agent.models.load import find_checkpoint

    return load_file(Path(find_checkpoint("tiny-half").path) / "model.safetensors")


# --- the source of stage 1 -------------------------------------------------------------------------------------------


@pytest.fixture
def config(needle_file: Path, tmp_path: Path) -> Callable[..., SFTConfig]:
    def make(**changes: Any) -> SFTConfig:
        raw = {"output_dir": str(tmp_path / "run"), "model": "tiny-half", "preset": "love_r1-template", "max_steps": 1}
        return checked(SFTConfig, raw | {"template": {"tasks": {"file": str(needle_file)}}} | changes)

    return make


def test_template_episodes_are_made_once(config: Callable[..., SFTConfig], tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    made = episodes_from(config(), tmp_path / "data", progress=lambda *step: told.append(step))
    assert len(made) == 6 and told[-1] == ("episodes", 6, 6)
    told.clear()
    assert episodes_from(config(), tmp_path / "data", progress=lambda *step: told.append(step)) == made
    assert told == []
    other = config(template={"tasks": config().template.tasks.model_dump(), "seed": 1})  # type: ignore[union-attr]
    assert episodes_from(other, tmp_path / "data") != made


def test_tasks_that_are_no_episodes_are_left_out_or_end_the_run(
    config: Callable[..., SFTConfig], tmp_path: Path, needle_tasks: list[Task], caplog: pytest.LogCaptureFixture
) -> None:
    from closeup.agent.trajectory import TrajectoryError

    rows = [
        json.loads(task.model_dump_json(include={"id", "question", "options", "answer", "videos"}))
        for task in needle_tasks
    ]
    rows[0].pop("answer")
    file = tmp_path / "some.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made = episodes_from(
        config(template=Template.model_validate({"tasks": {"file": str(file)}}).model_dump()), tmp_path
    )
    assert len(made) == 5 and f"no episode of task {needle_tasks[0].id}: it has no gold answer" in caplog.text
    for row in rows:
        row.pop("answer", None)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(TrajectoryError, match="none of the 6 tasks becomes an episode.*no gold answer"):
        episodes_from(config(template={"tasks": {"file": str(file)}}), tmp_path)


def test_a_task_file_that_is_not_there_is_seen_before_anything_is_made(config: Callable[..., SFTConfig]) -> None:
    with pytest.raises(ValueError, match="gone.jsonl"):
        check_files(config(template={"tasks": {"file": "gone.jsonl"}}))
    assert get_preset("love_r1-template").rules.seen_frames == (32, 16)
