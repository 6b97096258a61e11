"""A resumed run has the contents the checkpoint was begun with and all of its files, and logs what was not logged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from closeup.agent.models.load import load_adapter
from closeup.agent.models.testing import write_random_checkpoint
from closeup.agent.preset import Preset
from closeup.agent.task import Task
from closeup.agent.trajectory import ClipRecord, StepRecord, Trajectory, VideoRecord
from closeup.rl import checkpoints
from closeup.rl.checkpoints import CheckpointError
from closeup.rl.config import GRPOConfig
from closeup.rl.configfile import checked
from closeup.rl.grpo import GRPOTrainer
from closeup.rl.resumable import contents_of_episodes, differences, shape_of_run
from closeup.rl.trainer import TrainingStopped
from closeup.tools.video.clip import Clip

Make = Callable[..., GRPOTrainer]
Begun = tuple[dict[str, Any], Path]


def stopping_at(trainer: GRPOTrainer, step: int, place: int = 1) -> Callable[..., Any]:
    """The trainer's `training_step`, which stops before the `place`-th micro-batch of the update after `step`."""
    original, calls = trainer.training_step, [0]

    def run(*args: Any, **kwargs: Any) -> Any:
        calls[0] += trainer.state.global_step == step
        if calls[0] == place:
            trainer.stop()
            trainer.check_stop()  # also where this group teaches nothing and no tree is forwarded
        return original(*args, **kwargs)

    return run


@pytest.fixture(scope="module")
def begun(
    tmp_path_factory: pytest.TempPathFactory, needle_file: Path, needle_tasks: list[Task], short_preset: Preset
) -> Begun:
    """Settings and folder of a run that has done one update of three, in the middle of a generation."""
    folder = tmp_path_factory.mktemp("begun")
    raw: dict[str, Any] = {"output_dir": str(folder), "tasks": {"file": str(needle_file)}, "use_cpu": True}
    raw |= {"num_generations": 2, "max_steps": 3, "num_iterations": 3, "logging_steps": 2}
    trainer = made(raw, needle_tasks, short_preset)
    trainer.training_step = stopping_at(trainer, 1)  # type: ignore[method-assign]
    with pytest.raises(TrainingStopped, match="checkpoint-1 holds everything"):
        trainer.train()
    trainer.rollouts.close()
    return raw, folder


def made(
    raw: dict[str, Any], tasks: list[Task], preset: Preset, model: str = "tiny-half", **changes: Any
) -> GRPOTrainer:
    """A trainer of a fresh model."""
    return GRPOTrainer(load_adapter(model, device="cpu"), checked(GRPOConfig, raw | changes), preset, tasks)


def resumed(raw: dict[str, Any], tasks: list[Task], preset: Preset, model: str = "tiny-half") -> Path | None:
    """What a run with these goes on from."""
    return made(raw, tasks, preset, model).checkpoint_for(Path(raw["output_dir"]), True)


@pytest.fixture
def copied(begun: Begun, tmp_path: Path) -> Begun:
    """The same in a folder of this test's own."""
    raw, folder = begun
    shutil.copytree(folder, tmp_path / "copy")
    return raw | {"output_dir": str(tmp_path / "copy")}, tmp_path / "copy" / "checkpoint-1"


# ---- what a run was begun with -------------------------------------------------------------------------------------


def test_other_contents_under_the_same_settings_are_refused(
    begun: Begun, needle_tasks: list[Task], short_preset: Preset, tmp_path: Path
) -> None:
    raw, folder = begun
    assert resumed(raw, needle_tasks, short_preset) == folder / "checkpoint-1"
    wrong = [task.model_copy(update={"answer": task.options[-1]}) for task in needle_tasks]
    assert wrong != needle_tasks
    with pytest.raises(CheckpointError, match=r"other contents .*: the tasks to train on \(other content\); put back"):
        resumed(raw, wrong, short_preset)
    with pytest.raises(CheckpointError, match=r"the tasks to train on \(other content; count 6, now 5\)"):
        resumed(raw, needle_tasks[:5], short_preset)
    with pytest.raises(CheckpointError, match=r"tasks to train on \(other content\)"):
        resumed(raw, needle_tasks[::-1], short_preset)  # their order decides which come when
    budget = short_preset.budget.model_copy(update={"max_steps": 2})
    with pytest.raises(CheckpointError, match=r": the preset \(budget\.max_steps 3, now 2\); put back"):
        resumed(raw, needle_tasks, short_preset.model_copy(update={"budget": budget}))
    with pytest.raises(CheckpointError, match=r"the starting model \(other weights\); put back"):
        resumed(raw, needle_tasks, short_preset, "tiny")
    with pytest.raises(CheckpointError, match=r"the starting model \(other tokenizer; other weights\)"):
        resumed(raw, needle_tasks, short_preset, str(write_random_checkpoint(tmp_path / "random")))


def test_a_data_set_may_be_moved_but_not_its_videos_changed(
    begun: Begun, needle_tasks: list[Task], short_preset: Preset, tmp_path: Path
) -> None:
    raw, folder = begun
    moved = []
    for task in needle_tasks:
        paths = tuple(tmp_path / path.name for path in task.videos)
        for old, new in zip(task.videos, paths, strict=True):
            new.write_bytes(old.read_bytes())
        moved.append(task.model_copy(update={"videos": paths}))
    assert resumed(raw, moved, short_preset) == folder / "checkpoint-1"
    with moved[0].videos[0].open("ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match="the tasks to train on"):
        resumed(raw, moved, short_preset)


def test_prompts_and_evaluation_tasks_are_compared_too(needle_tasks: list[Task], short_preset: Preset) -> None:
    one = shape_of_run(load_adapter("tiny-half", device="cpu"), short_preset, needle_tasks)
    other = json.loads(json.dumps(one))
    assert differences(other, one) == []
    other["prompts"]["texts digest"] = "0"
    other["evaluation"]["count"] = 7
    assert differences(other, one) == [
        "the preset's prompts (other texts)",
        "the tasks of the evaluation (count 7, now 6)",
    ]
    del other["prompts"], other["evaluation"]  # as of a version that did not note them
    assert differences(other, one) == []


def test_episodes_are_named_by_what_is_learnt_from_them(needle_tasks: list[Task]) -> None:
    clip = Clip(video="v", start=0, end=1, num_frames=2, pixels=784)
    record = ClipRecord(clip=clip, times=(0.0, 0.5), size=(28, 28), tokens=1, digest="d", seconds=1.0)
    video = VideoRecord(path="a/film.mp4", duration=1.0, width=28, height=28, fps=2.0, codec="h264")
    step = StepRecord(text="answer 1", prompt_ids=(1, 2), ids=(3,), generate_seconds=0.5)
    one = Trajectory(id="e", task=needle_tasks[0], videos={"v": video}, steps=(step,), clips={clip.key: record})
    elsewhere = one.model_copy(
        update={
            "videos": {"v": video.model_copy(update={"path": "b/film.mp4"})},
            "steps": (step.model_copy(update={"generate_seconds": 9.0, "tool_seconds": 1.0}),),
            "clips": {clip.key: record.model_copy(update={"seconds": 0.0})},
            "outcome": one.outcome.model_copy(update={"seconds": 3.0}),
        }
    )
    assert contents_of_episodes([one]) == contents_of_episodes([elsewhere])
    for change in (
        {"steps": (step.model_copy(update={"ids": (4,)}),)},
        {"steps": (step.model_copy(update={"text": "answer 2"}),)},
        {"clips": {clip.key: record.model_copy(update={"digest": "e"})}},
        {"task": needle_tasks[1]},
    ):
        assert contents_of_episodes([one]) != contents_of_episodes([one.model_copy(update=change)])
    assert contents_of_episodes([one, elsewhere])["count"] == 2


def test_runs_of_older_versions_resume_as_before(copied: Begun, needle_tasks: list[Task], short_preset: Preset) -> None:
    raw, place = copied
    record = json.loads((place / "train_config.json").read_text(encoding="utf-8"))
    del record["begun_with"], record["files"]
    del record["settings"]["head_chunk"]  # and a setting that came later
    (place / "train_config.json").write_text(json.dumps(record), encoding="utf-8")
    (place / "unlogged_0.json").unlink()
    trainer = made(raw, needle_tasks[:5], short_preset)
    trainer.train(resume_from_checkpoint=True)
    trainer.rollouts.close()
    assert trainer.state.global_step == 3
    with pytest.raises(CheckpointError, match="other settings: head_chunk None, now 7"):
        made(raw, needle_tasks, short_preset, head_chunk=7).checkpoint_for(place.parent, str(place))


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["generation_0.pt", "rollouts_0.jsonl", "unlogged_0.json", "rng_state.pth"])
def test_a_copy_that_lacks_a_file_is_no_checkpoint(
    copied: Begun, needle_tasks: list[Task], short_preset: Preset, name: str
) -> None:
    raw, place = copied
    assert checkpoints.missing_parts(place) == []
    (place / name).unlink()
    assert checkpoints.missing_parts(place) == [name]
    assert checkpoints.last_checkpoint(place.parent) is None
    with pytest.raises(CheckpointError, match=f"is no complete checkpoint: no {name}; give a folder checkpoint-N"):
        made(raw, needle_tasks, short_preset).checkpoint_for(place.parent, str(place))


@pytest.mark.parametrize("name", ["generation_0.pt", "rollouts_0.jsonl", "unlogged_0.json", "optimizer.pt"])
def test_a_file_that_was_cut_is_refused(
    copied: Begun, needle_tasks: list[Task], short_preset: Preset, name: str
) -> None:
    raw, place = copied
    whole = (place / name).read_bytes()
    (place / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"checkpoint-1 cannot be read: .*; delete that folder, and --resume"):
        made(raw, needle_tasks, short_preset).train(resume_from_checkpoint=True)


def test_an_incomplete_checkpoint_is_written_again(
    copied: Begun, needle_tasks: list[Task], short_preset: Preset
) -> None:
    raw, place = copied
    (place / "generation_0.pt").unlink()
    trainer = made(raw, needle_tasks, short_preset)
    trainer.training_step = stopping_at(trainer, 1)  # type: ignore[method-assign]
    with pytest.raises(TrainingStopped, match="checkpoint-1 holds everything"):
        trainer.train(resume_from_checkpoint=True)  # begins, since no checkpoint is whole
    trainer.rollouts.close()
    assert checkpoints.missing_parts(place) == []


# ---- logs ----------------------------------------------------------------------------------------------------------

LOGS: dict[str, Any] = {"max_steps": 4, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
LOGS |= {"num_iterations": 2, "logging_steps": 2, "learning_rate": 1e-3}


def training_logs(trainer: GRPOTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def assert_same_logs(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("iterations", [4, 2])
def test_what_was_not_logged_is_in_the_resumed_runs_log(make_grpo: Make, tmp_path: Path, iterations: int) -> None:
    """Stopped in update 4 of 4, before update 3 was logged: its loss (and its rollouts) belong into the last log."""
    settings = {**LOGS, "num_iterations": iterations}
    whole = make_grpo(**settings, output_dir=str(tmp_path / "whole"))
    whole.train()
    expected = training_logs(whole)
    assert [entry["step"] for entry in expected] == [1, 2, 4]
    assert {"loss", "entropy", "tokens", "ratio/mean"} <= set(expected[-1])
    assert ("rollouts/correct" in expected[-1]) == ("rewards/format/step0/mean" in expected[-1]) == (iterations == 2)
    first = make_grpo(**settings)
    first.training_step = stopping_at(first, 3, place=2)  # type: ignore[method-assign]
    with pytest.raises(TrainingStopped, match="checkpoint-3"):
        first.train()
    second = make_grpo(**settings)
    step, losses = second.training_step, list[float]()

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        losses.append(float(loss := step(*args, **kwargs)))
        return loss

    second.training_step = counted  # type: ignore[method-assign]
    output = second.train(resume_from_checkpoint=True)
    assert len(losses) == 2  # both halves of update 4; the half that was done before the stop counts no second time
    assert_same_logs(training_logs(second), expected)
    assert output.training_loss == pytest.approx(sum(losses), abs=1e-6)  # of the updates of this call


@pytest.mark.slow
def test_a_stop_within_rollouts_leaves_nothing_of_them_in_the_log(make_grpo: Make, tmp_path: Path) -> None:
    settings = {**LOGS, "logging_steps": 3}
    whole = make_grpo(**settings, output_dir=str(tmp_path / "whole"))
    whole.train()
    assert [entry["step"] for entry in training_logs(whole)] == [1, 3]
    first = make_grpo(**settings)
    write = first._write

    def stopping(number: int, groups: Any) -> None:
        if number == 1:  # its rollouts are done and counted, and their first update has not begun
            first.tally.note(lone_steps=1e6)
            first.stop()
            first.check_stop()
        write(number, groups)

    first._write = stopping  # type: ignore[method-assign]
    with pytest.raises(TrainingStopped, match="checkpoint-2"):
        first.train()
    second = make_grpo(**settings)
    second.train(resume_from_checkpoint=True)
    assert_same_logs(training_logs(second), training_logs(whole))
