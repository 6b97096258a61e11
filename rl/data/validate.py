"""`closeup data validate`: every row of a task file is opened, measured and answered with its own gold answer.

A row is good when it parses, its videos open and hold frames, its evidence lies inside them, and the gold answer, given
through the answer tool, scores 1.0 under the same judge the evaluation uses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from closeup.agent.task import Task, TaskError, read_rows
from closeup.rl.rewards import is_correct
from closeup.tools.answer import AnswerTool
from closeup.tools.base import ToolContext, ToolError
from closeup.tools.video import Video, VideoError

SLACK_SECONDS = 0.5
"""Evidence may reach this far past the last frame: annotations are often rounded up to whole seconds."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with one line of a task file."""

    line: int
    task: str
    fault: str


@dataclass(frozen=True, slots=True)
class Validation:
    """How many rows were read, and what is wrong with those that are."""

    rows: int
    faults: tuple[Fault, ...]


def validate(path: Path, *, progress: Callable[[int], None] | None = None) -> Validation:
    """Check every row of a task file. Raises `TaskError` only when the file itself cannot be read."""
    faults: list[Fault] = []
    rows = 0
    for line, row in read_rows(path):
        rows += 1
        if isinstance(row, TaskError):
            faults.append(Fault(line, "", str(row).split(": ", 1)[-1]))
        else:
            faults += [Fault(line, row.id, fault) for fault in task_faults(row)]
        if progress:
            progress(rows)
    return Validation(rows, tuple(faults))


def task_faults(task: Task) -> list[str]:
    """What is wrong with a task, as sentences; empty when nothing is."""
    faults = []
    longest = 0.0
    for path in task.videos:
        try:
            with Video(path) as video:
                video.frames([0.0])
                longest = max(longest, video.duration)
        except VideoError as error:
            faults.append(str(error))
    if task.videos and longest:
        faults += [
            f"evidence [{start:g}, {end:g}] s reaches past the video, which is {longest:g} s long"
            for start, end in task.evidence
            if end > longest + SLACK_SECONDS
        ]
    if task.answer is None:
        faults.append("no gold answer: it can be asked but not evaluated")
    else:
        faults += _answer_faults(task)
    return faults


def _answer_faults(task: Task) -> list[str]:
    arguments = {"choice": task.gold_choice} if task.options else {"text": task.answer}
    tool = AnswerTool()
    try:
        result = tool.run(tool.parse_args(arguments), ToolContext(options=task.options))  # type: ignore[arg-type]
    except ToolError as error:
        return [f"the answer tool refuses the gold answer: {error}"]
    if result.answer is None or is_correct(task, result.answer) is False:
        return [f"the gold answer {task.answer!r} does not score 1.0"]
    return []
