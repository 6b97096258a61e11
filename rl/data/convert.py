"""`closeup data convert`: annotations in another project's layout become a task file, and every row is accounted for.
With `trajectories`, their chains of thought become recorded episodes instead, and the same holds.

    from closeup.rl.data.convert import VideoFinder, convert
    finder = VideoFinder([Path("videos")])
    done = convert(Path("Video-R1-260k.json"), Path("tasks.jsonl"), layout="video_r1", videos=finder)

Invariants
1. Every row of the input is either in the output (on one line; some of LOVE-R1's on two, `formats.samples`) or a fault
   of the result, with its place, id and reason.
2. Every line of the output loads (`closeup.agent.task`), under an id of its own; ids depend on the input alone.
3. The output appears whole, or not at all; the input is never written to.
4. A video is where the annotation says, below one of the folders given, or the row is a fault: no search by name.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from closeup.agent.task import TaskError, task_from_row
from closeup.agent.taskfile import raw_rows
from closeup.rl.data.chains import CHAINS, recorded
from closeup.rl.data.formats import LAYOUTS, Annotation, samples
from closeup.rl.data.options import RowFault


class ConvertError(ValueError):
    """A conversion that cannot begin; the message says what was given and what is accepted."""


@dataclass(frozen=True, slots=True)
class RowReport:
    """A row that became no task: where it stands ("row 3"), its own id, what kind of fault, and the fault in words."""

    place: str
    id: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Conversion:
    """What came of a file: rows read, tasks written, and the rows that became none."""

    rows: int
    written: int
    faults: tuple[RowReport, ...]

    @property
    def by_kind(self) -> dict[str, int]:
        """How many rows have which kind of fault, the most frequent first."""
        return dict(Counter(fault.kind for fault in self.faults).most_common())


@dataclass(frozen=True)
class VideoFinder:
    """Finds the files that annotations name.

    Attributes:
        folders: where relative names start; the first folder that has the file counts.
        strip: beginnings to take off a name first, such as "/mnt/data/" or "longvila_videos/"; the first that fits.
        keep_missing: take a video that is not there as the first folder's; otherwise its row is a fault.
    """

    folders: Sequence[Path]
    strip: Sequence[str] = ()
    keep_missing: bool = False
    _known: dict[str, Path] = field(default_factory=dict, repr=False, compare=False)

    def find(self, name: str) -> Path:
        """The absolute path of a video. Raises `RowFault`."""
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: str) -> Path:
        short = next((name[len(prefix) :] for prefix in self.strip if prefix and name.startswith(prefix)), name)
        if short != name:
            short = short.lstrip("/")
        path = PurePosixPath(short)
        if not path.parts or ".." in path.parts or "\0" in short:
            raise RowFault("no video file", f"{name!r} is no path inside a folder of videos")
        if path.is_absolute():
            if os.path.isfile(path):
                return Path(path)
            raise RowFault(
                "no video file",
                f"there is no file {name}; take its folder off with --strip {path.parent}/ and give --videos",
            )
        places = [Path(os.path.abspath(folder / path)) for folder in self.folders]
        for place in places:
            if os.path.isfile(place):
                return place
        if self.keep_missing and places:
            return places[0]
        raise RowFault("no video file", f"there is no {short} in {', '.join(str(folder) for folder in self.folders)}")


def convert(
    source: Path,
    out: Path,
    *,
    layout: str,
    videos: VideoFinder,
    trajectories: bool = False,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Conversion:
    """Write the tasks of an annotation file, or what its chains of thought say as recorded episodes.

    Args:
        source: JSON Lines, a JSON list, parquet, or a dataset folder (see `closeup.agent.taskfile`).
        out: the task file; replaced when it is there, and not written when no row became a task.
        layout: one of `LAYOUTS`. trajectories: write one episode per row (`closeup.rl.data.chains`), to be learnt by
            `closeup train sft`, in the place of tasks. limit: only the first rows. progress: called with the rows done.

    Raises:
        ConvertError: an unknown layout, an output that cannot be written, or trajectories of videos that are not there
            (`VideoFinder.keep_missing`). TaskError: the source cannot be read.
        MissingExtra: the source is parquet, and `datasets` is not installed.
    """
    if layout not in LAYOUTS:
        raise ConvertError(f"no layout {layout!r}; accepted: {', '.join(LAYOUTS)}")
    if trajectories and videos.keep_missing:
        raise ConvertError(
            "a trajectory holds what its video is, so the video has to be there: leave --keep-missing or --trajectories"
            " out"
        )
    if out.is_dir():
        raise ConvertError(f"--out takes a file, {out} is a folder; give e.g. {out / 'tasks.jsonl'}")
    if out.exists() and source.exists() and out.samefile(source):
        raise ConvertError(f"{out} is the file to be converted; give another one to --out")
    if out.exists() and source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise ConvertError(f"{out} is part of the dataset to be converted; give another file to --out")
    partial = out.with_name(f"{out.name}.{os.getpid()}.part")
    faults: list[RowReport] = []
    rows = written = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            for rows, outcome in _outcomes(source, out, layout, videos, trajectories):
                if isinstance(outcome, RowReport):
                    faults.append(outcome)
                else:
                    written += len(outcome)
                    file.writelines(line + "\n" for line in outcome)
                if progress:
                    progress(rows)
                if rows == limit:
                    break
        if written:
            partial.replace(out)
    except OSError as error:
        raise ConvertError(f"cannot write {out}: {error.strerror or error}; give another file to --out") from None
    finally:
        partial.unlink(missing_ok=True)
    return Conversion(rows, written, tuple(faults))


def _outcomes(
    source: Path, out: Path, layout: str, videos: VideoFinder, trajectories: bool
) -> Iterator[tuple[int, list[str] | RowReport]]:
    """`(rows so far, its lines of the task file or why there are none)` for each row of the source."""
    taken: set[str] = set()
    for count, row in enumerate(raw_rows(source, what="annotation file"), 1):
        name = ""
        try:
            if row.fault:
                raise RowFault("broken row", row.fault)
            name = str(next((row.fields[key] for key in ("problem_id", "qid", "id") if key in row.fields), ""))
            chain = CHAINS[layout](row.fields) if trajectories else None
            parts = samples(LAYOUTS[layout](row.fields)) if chain is None else (chain.annotation,)
            ids, texts = list[str](), list[str]()
            for number, annotation in enumerate(parts):
                task_id = f"{layout}-{annotation.id or f'row{row.number}'}" + ("-seen" if number else "")
                while task_id in taken or task_id in ids:  # a row may have the very id that another one was given
                    task_id += f"-row{row.number}"
                line = _line(annotation, task_id, layout, out, videos)
                task = task_from_row(line, folder=Path(os.path.abspath(out.parent)), default_id=task_id)
                texts.append(
                    json.dumps(line, ensure_ascii=False, allow_nan=False)
                    if chain is None
                    else recorded(task, chain).model_dump_json()
                )
                texts[-1].encode()  # halves of surrogate pairs fit in JSON, and in no file
                ids.append(task_id)
        except RowFault as fault:
            yield count, RowReport(row.place, name, fault.kind, str(fault))
        except (TaskError, ValueError, RecursionError) as error:  # what a task does not allow: equal options, and so on
            yield count, RowReport(row.place, name, "not a task", str(error))
        else:
            taken.update(ids)
            yield count, texts


def _line(annotation: Annotation, task_id: str, layout: str, out: Path, videos: VideoFinder) -> dict[str, Any]:
    """The row of the task file; videos below its folder are named from there, so that the folder can be moved."""
    folder = Path(os.path.abspath(out.parent))
    found = [videos.find(name) for name in annotation.videos]
    files = [str(path.relative_to(folder) if path.is_relative_to(folder) else path) for path in found]
    line: dict[str, Any] = {"id": task_id}
    line |= {"video": files[0]} if len(files) == 1 else {"videos": files}
    line["question"] = annotation.question
    if annotation.options:
        line["options"] = list(annotation.options)
    if annotation.answer is not None:
        line["answer"] = annotation.answer
    line["answer_kind"] = annotation.answer_kind
    for name in ("evidence", "seen"):
        if windows := getattr(annotation, name):
            line[name] = [list(window) for window in windows]
    if annotation.kind:
        line["kind"] = annotation.kind
    if annotation.duration is not None:
        line["duration"] = annotation.duration
    line["meta"] = {"layout": layout, **annotation.meta}
    return line
