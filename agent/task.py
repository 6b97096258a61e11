"""`Task`: a question about zero or more videos, with whatever is known of its answer.

A row of a task file (JSON Lines, parquet, or a dataset folder) is `{"id"?, "video" | "videos", "question", "options"?,
"answer"?, "evidence"?, "seen"?, "kind"?, "answer_kind"?, "subtitles"?, "audio"?}`, and may carry "duration" and "meta",
which are not read; paths in it are relative to the folder that holds the file. `load_tasks` says which line or row is
wrong and why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

AnswerKind = Literal["choice", "numeric", "text", "ocr", "regression", "grounding"]
Window = tuple[float, float]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class TaskError(ValueError):
    """A task or task file that cannot be used; the message names file, line, fault and what is accepted."""


class Cue(BaseModel):
    """One subtitle: text shown from `start` to `end` (seconds)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    start: float = Field(ge=0, allow_inf_nan=False)
    end: float = Field(ge=0, allow_inf_nan=False)
    text: str


class Task(BaseModel):
    """A question, the videos it is about, and what is known of its answer.

    Attributes:
        id: name of the task, unique in its file.
        videos: paths of the video files, in the order tools index them; may be empty (a text-only task).
        question: what is asked.
        options: answer options; empty for free answers. Option i has letter `LETTERS[i]`.
        answer: gold answer: the exact text of an option, or free text; None when unknown.
        evidence: gold windows `(start, end)` in seconds; () when unknown.
        seen: windows `(start, end)` in seconds of the first video that were watched closely before the task begins: an
            episode opens with them beside the overview. What is cut off at the video's end is not shown.
        answer_kind: how an answer is judged.
        kind: a label to report accuracy by.
        subtitles: timed cues of the first video, shown with the frames they belong to.
        audio: path of a sound track, for models that listen; carried, not used by vision-only policies.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: str = "task"
    videos: tuple[Path, ...] = ()
    question: str = Field(min_length=1)
    options: tuple[str, ...] = ()
    answer: str | None = None
    evidence: tuple[Window, ...] = ()
    seen: tuple[Window, ...] = ()
    answer_kind: AnswerKind = "choice"
    kind: str = ""
    subtitles: tuple[Cue, ...] = ()
    audio: Path | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        if len(self.options) > len(LETTERS):
            raise ValueError(f"at most {len(LETTERS)} options, got {len(self.options)}")
        if len(set(self.options)) != len(self.options):
            raise ValueError("two options have the same text")
        if self.options and self.answer is not None and self.answer not in self.options:
            raise ValueError(f"the answer {self.answer!r} is none of the options {list(self.options)}")
        for start, end in self.evidence:
            if not 0 <= start <= end:
                raise ValueError(f"evidence window [{start:g}, {end:g}] is not an interval of seconds")
        for start, end in self.seen:
            if not 0 <= start < end:
                raise ValueError(f"the window [{start:g}, {end:g}] in 'seen' has no seconds that could be shown")
        if self.seen and not self.videos:
            raise ValueError("'seen' names windows of the first video, and the task has no video")
        return self

    @property
    def letters(self) -> str:
        """The letters of the options, in order."""
        return LETTERS[: len(self.options)]

    @property
    def gold_choice(self) -> str | None:
        """Letter of the gold answer, when there are options and it is known."""
        if not self.options or self.answer is None:
            return None
        return LETTERS[self.options.index(self.answer)]


def task_from_row(row: dict[str, Any], *, folder: Path, default_id: str) -> Task:
    """Build a `Task` from one row of a task file; relative paths are taken from `folder`. Raises `ValueError`."""
    row = dict(row)
    if "video" in row and "videos" in row:
        raise ValueError("give 'video' or 'videos', not both")
    videos = row.pop("videos", None)
    if "video" in row:
        videos = [row.pop("video")]
    if not isinstance(videos or [], list) or not all(isinstance(v, str) for v in videos or []):
        raise ValueError("'video' is a path and 'videos' a list of paths")
    known = set(Task.model_fields)
    extra = sorted(set(row) - known - {"duration", "meta"})
    if extra:
        raise ValueError(f"unknown fields {extra}; accepted: {sorted(known | {'video', 'duration', 'meta'})}")
    fields = {k: v for k, v in row.items() if k in known}
    fields["videos"] = [str(folder / v) for v in videos or []]
    if fields.get("audio"):
        fields["audio"] = str(folder / fields["audio"])
    fields["id"] = str(fields.get("id", default_id))
    if isinstance(fields.get("subtitles"), str):
        from closeup.agent.subtitles import read_subtitles

        fields["subtitles"] = [cue.model_dump() for cue in read_subtitles(folder / fields["subtitles"])]
    if "answer_kind" not in fields and not fields.get("options"):
        fields["answer_kind"] = "text"
    try:
        return Task.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise ValueError(f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}") from None


def load_tasks(path: Path) -> list[Task]:
    """Read a task file: JSON Lines, parquet, or a dataset folder (see `closeup.agent.taskfile`).

    Raises:
        TaskError: names the file, and the line or row of the first fault.
        MissingExtra: parquet or a dataset folder, and `datasets` is not installed.
    """
    tasks = []
    for _, task in read_rows(path):
        if isinstance(task, TaskError):
            raise task
        tasks.append(task)
    if not tasks:
        raise TaskError(f"{path} holds no task")
    return tasks


def read_rows(path: Path) -> Iterator[tuple[int, Task | TaskError]]:
    """Yield `(line or row number, task or what is wrong with it)`.

    Raises:
        TaskError: the file itself cannot be read. MissingExtra: see `load_tasks`.
    """
    from closeup.agent.taskfile import raw_rows

    seen: set[str] = set()
    hint = "make one with: closeup data needles --count 16 --seed 1 --out DIR"
    for row in raw_rows(path, what="task file", missing=hint):
        try:
            if row.fault:
                raise ValueError(row.fault)
            task = task_from_row(row.fields, folder=path.parent, default_id=f"{path.stem}-{row.number}")
            if task.id in seen:
                raise ValueError(f"the id {task.id!r} stands on an earlier {row.place.split()[0]} too")
        except (ValueError, RecursionError) as error:
            yield row.number, TaskError(f"{path}, {row.place}: {error}")
            continue
        seen.add(task.id)
        yield row.number, task
