"""Where a training run's tasks and episodes come from: files, generated needles, another model's episodes.

What is generated is written once below the run's folder, under a name made of all that shapes it, and found there
again.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from closeup.agent.models.load import default_preset
from closeup.agent.policies.transformers_policy import TransformersPolicy
from closeup.agent.preset import Preset, get_preset
from closeup.agent.task import Task, load_tasks
from closeup.agent.trajectory import Trajectory, TrajectoryError, read_trajectories, write_trajectories
from closeup.rl.config import GRPOConfig, Needles, SFTConfig, TaskSource, Teacher, Template, TrainConfig
from closeup.rl.data.needles import write
from closeup.rl.data.template import Fault, template_episodes
from closeup.rl.evaluate import evaluate

log = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]
"""Called as `progress(what, done, total)`."""


def tasks_from(source: TaskSource, folder: Path, *, progress: Progress | None = None) -> list[Task]:
    """The tasks of a source; needles are generated below `folder` unless they are there.

    Raises:
        TaskError: a task file that cannot be read. ValueError: a range of lengths that is not possible.
    """
    path = Path(source.file) if source.file is not None else _needles(source.needles, folder, progress)
    return load_tasks(path)[: source.limit]


def _needles(needles: Needles | None, folder: Path, progress: Progress | None) -> Path:
    assert needles is not None  # a source has one of the two
    low, high = needles.seconds
    place = folder / f"needles-{needles.seed}-{needles.count}-{low:g}-{high:g}"
    if not (place / "tasks.jsonl").is_file():
        partial = place.with_name(f".partial-{place.name}")
        shutil.rmtree(partial, ignore_errors=True)
        told = None if progress is None else (lambda done, total: progress("videos", done, total))
        write(needles.count, needles.seed, partial, needles.seconds, progress=told)
        partial.rename(place)
    return place / "tasks.jsonl"


def check_files(config: TrainConfig) -> None:
    """Read every task file that a run names, before anything is generated, and see that its other files are there.

    Raises:
        TaskError: a task file that cannot be read. TrajectoryError: a file of episodes that is not there. ModelError: a
            teacher that is not there.
    """
    sources = [config.evaluation.tasks] if config.evaluation is not None else []
    if isinstance(config, GRPOConfig):
        sources.append(config.tasks)
    if isinstance(config, SFTConfig):
        for path in map(Path, config.trajectories):
            if not path.is_file():
                raise TrajectoryError(f"no file of episodes at {path}; give a .jsonl file that closeup recorded")
        if config.teacher is not None:
            default_preset(config.teacher.model)
            sources.append(config.teacher.tasks)
        if config.template is not None:
            sources.append(config.template.tasks)
    for source in sources:
        if source.file is not None:
            load_tasks(Path(source.file))


def episodes_from(config: SFTConfig, folder: Path, *, progress: Progress | None = None) -> list[Trajectory]:
    """The episodes an SFT run learns from: recorded ones, a teacher's, or tasks made into episodes.

    What is made is made below `folder`, unless it was.

    Raises:
        TrajectoryError: a file that cannot be read, or tasks of which none becomes an episode. ModelError: a teacher
            that cannot be loaded.
    """
    if config.template is not None:
        return _templates(config.template, preset_of(config.model, config.preset), folder, progress)
    if config.teacher is not None:
        return _taught(config.teacher, folder, progress)
    return [t for path in config.trajectories for t in read_trajectories(Path(path))]


def _taught(teacher: Teacher, folder: Path, progress: Progress | None) -> list[Trajectory]:
    tasks = tasks_from(teacher.tasks, folder, progress=progress)
    preset = get_preset(default_preset(teacher.model))
    name = hashlib.sha256(teacher.model_dump_json().encode()).hexdigest()[:12]
    total = len(tasks)
    _, episodes = evaluate(
        tasks,
        TransformersPolicy(teacher.model, timestamps=preset.timestamps),
        preset,
        out=folder / f"teacher-{name}",
        batch=teacher.batch,
        temperature=teacher.temperature,
        progress=None if progress is None else (lambda done: progress("teacher", done, total)),
    )
    return episodes


def _templates(template: Template, preset: Preset, folder: Path, progress: Progress | None) -> list[Trajectory]:
    tasks = tasks_from(template.tasks, folder, progress=progress)
    shape = template.model_dump_json() + preset.model_dump_json() + "".join(task.model_dump_json() for task in tasks)
    path = folder / f"template-{hashlib.sha256(shape.encode()).hexdigest()[:12]}.jsonl"
    if not path.is_file():
        total = len(tasks)
        told = None if progress is None else (lambda done: progress("episodes", done, total))
        made = list(template_episodes(tasks, preset, seed=template.seed, progress=told))
        faults = [one for one in made if isinstance(one, Fault)]
        for fault in faults:
            log.warning("no episode of task %s: %s", fault.task, fault.reason)
        if len(faults) == total:
            raise TrajectoryError(
                f"none of the {total} tasks becomes an episode to learn; the first, {faults[0].task!r}:"
                f" {faults[0].reason}"
            )
        partial = path.with_suffix(".part")
        write_trajectories(partial, [one for one in made if isinstance(one, Trajectory)])
        partial.replace(path)
    return list(read_trajectories(path))


def preset_of(model: str, name: str | None) -> Preset:
    """The preset named, or the model's own. Raises `PresetError` or `ModelError`."""
    return get_preset(name or default_preset(model))


def missing_videos(tasks: Sequence[Task]) -> list[str]:
    """Ids of tasks with a video that is not there."""
    return [task.id for task in tasks if not all(video.is_file() for video in task.videos)]
