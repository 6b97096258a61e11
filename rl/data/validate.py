"""`closeup data validate`: every row of a task file is opened, measured and answered with its own gold answer.

A row is good when it parses, its videos open and hold frames, its evidence lies inside them, and the gold answer, given
through the answer tool, scores 1.0: right under the judge that the evaluation uses, or, for kinds that are right by
degree ("ocr", "regression", "grounding"), 1.0 under the score that the rewards use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from closeup.agent.task import Task, TaskError, read_rows
from closeup.rl.answers import answer_score, is_correct, normalise
from closeup.tools.answer import AnswerTool
from closeup.tools.base import ToolContext, ToolError
from closeup.tools.video import Video, VideoError

SLACK_SECONDS = 0.5
"""Evidence may reach this far past the last frame: annotations are often rounded up to whole seconds."""


NEEDED = {
    "numeric": "a numeric answer holds exactly one number",
    "regression": "a regression answer holds exactly one number",
    "ocr": "an ocr answer holds letters or digits",
    "grounding": "a grounding task has evidence, or windows in its answer such as [12, 18.5]",
    "text": "a free answer holds more than quotes and stops",
    "choice": "a free answer holds more than quotes and stops",
}
"""What a gold answer without options must hold to be compared with anything, by answer kind."""


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
        # A grounding task is scored by its evidence, and needs no answer in words. (With options it is a sample of
        # LOVE-R1's, and what is scored is where the agent looks.)
        if task.answer_kind != "grounding" or not task.evidence:
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
    answer = result.answer
    right = None if answer is None else is_correct(task, answer)
    if answer is not None and right is None:
        score = answer_score(task, answer)
        right = None if score is None else score >= 1 - 1e-9
    free = not task.options and task.answer_kind in ("text", "choice")
    if right is None or (free and not normalise(task.answer or "")):
        return [f"the gold answer {task.answer!r} can never be scored: {NEEDED[task.answer_kind]}"]
    return [] if right else [f"the gold answer {task.answer!r} does not score 1.0"]
