"""`closeup data`: generate needle tasks, check a task file, convert other projects' annotations."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from closeup.app.errors import NO_ANSWER, BadInput, complain
from closeup.app.progress import bar

if TYPE_CHECKING:
    from closeup.rl.data.convert import Conversion


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """The arguments of `closeup data convert`, as typed."""

    source: Path
    layout: str
    out: Path
    videos: Sequence[Path] = ()
    strip: Sequence[str] = ()
    keep_missing: bool = False
    trajectories: bool = False
    show: int = 10
    faults: Path | None = None
    limit: int | None = None
    as_json: bool = False


def make_needles(count: int, seed: int, out: Path, seconds: str) -> int:
    """Write `count` videos and `tasks.jsonl` to `out`; returns the exit code. Raises `BadInput`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)", seconds)
    if match is None:
        raise BadInput(
            f"--seconds takes A:B, the shortest and the longest video in seconds, e.g. 16:120; got {seconds!r}"
        )
    shortest, longest = float(match[1]), float(match[2])
    if not 16 <= shortest <= longest <= 120:
        raise BadInput(f"--seconds must lie inside 16:120 with A <= B; got {seconds}")
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out must be a folder; {out} is a file")
    from closeup.rl.data.needles import write

    with bar("needles", count) as advance:
        try:
            path = write(count, seed, out, (shortest, longest), progress=advance)
        except OSError as error:
            raise BadInput(f"cannot write to {out}: {error}; give another folder to --out") from None
    sys.stdout.write(f"{path}\n")
    return 0


def validate_file(file: Path, *, as_json: bool) -> int:
    """Check a task file; 0 when every row is good, 1 otherwise."""
    from closeup.rl.data.validate import validate

    with bar("validate", None) as advance:
        result = validate(file, progress=advance)
    if as_json:
        faults = [{"line": f.line, "task": f.task, "fault": f.fault} for f in result.faults]
        sys.stdout.write(json.dumps({"rows": result.rows, "faults": faults}) + "\n")
    else:
        from closeup.agent.taskfile import is_table

        place = "row" if is_table(file) or file.suffix.lower() == ".json" else "line"
        for fault in result.faults:
            name = f" ({fault.task})" if fault.task else ""
            sys.stdout.write(f"{place} {fault.line}{name}: {fault.fault}\n")
        bad = len({fault.line for fault in result.faults})
        sys.stdout.write(f"{result.rows} rows, {bad} with faults\n")
        if not result.rows:
            complain("there is no task in the file, so nothing was validated")
    return NO_ANSWER if result.faults or not result.rows else 0


def convert_file(options: ConvertOptions) -> int:
    """Convert an annotation file; 0 when anything was written, 1 when nothing was. Raises `BadInput`."""
    from closeup.rl.data.convert import ConvertError, VideoFinder, convert

    folders = options.videos or (options.source.parent,)
    for folder in options.videos:
        if not folder.is_dir():
            raise BadInput(f"--videos takes a folder, and {folder} is none; give the folder the videos are in")
    _check_faults_file(options)
    finder = VideoFinder(tuple(folders), tuple(options.strip), options.keep_missing)
    try:
        with bar("convert", options.limit) as advance:
            done = convert(
                options.source,
                options.out,
                layout=options.layout,
                videos=finder,
                trajectories=options.trajectories,
                limit=options.limit,
                progress=advance,
            )
    except ConvertError as error:
        raise BadInput(str(error)) from None
    if options.faults is not None:
        lines = [json.dumps(asdict(fault), ensure_ascii=True) + "\n" for fault in done.faults]
        _write_beside(options.faults, "".join(lines))
    if options.as_json:
        report = {"rows": done.rows, "written": done.written, "faults": done.by_kind, "out": str(options.out)}
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        _print_conversion(done, options)
    return 0 if done.written else NO_ANSWER


def _check_faults_file(options: ConvertOptions) -> None:
    """Refuse a --faults that would take the place of something else, before anything is done. Raises `BadInput`."""
    faults = options.faults
    if faults is None:
        return
    another = "give another file to --faults"
    if faults.is_dir():
        raise BadInput(f"--faults takes a file, {faults} is a folder; {another}, e.g. {faults / 'faults.jsonl'}")
    if _same(faults, options.source) or (options.source.is_dir() and _inside(faults, options.source)):
        raise BadInput(f"{faults} is the file to be converted, or part of it; {another}")
    if _same(faults, options.out):
        raise BadInput(f"{faults} is also where the tasks go (--out); {another}")
    if faults.exists() and not faults.is_file():
        raise BadInput(f"--faults takes a file, {faults} is a device or a pipe; {another}")


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one file; of files that are not there yet, whether they would be."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def _inside(file: Path, folder: Path) -> bool:
    return file.exists() and file.resolve().is_relative_to(folder.resolve())


def _write_beside(file: Path, text: str) -> None:
    """Write a file that appears whole; what was there stays until then. Raises `BadInput`."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise BadInput(f"cannot write {file}: {error.strerror}; give another file to --faults") from None
    finally:
        partial.unlink(missing_ok=True)


def _print_conversion(done: Conversion, options: ConvertOptions) -> None:
    for fault in done.faults[: options.show]:
        name = f" ({fault.id})" if fault.id else ""
        sys.stdout.write(f"{fault.place}{name}: {fault.reason}\n")
    if len(done.faults) > options.show:
        where = f"; all are in {options.faults}" if options.faults else "; see all with --faults FILE"
        sys.stdout.write(f"… and {len(done.faults) - options.show} more{where}\n")
    what = "trajectories" if options.trajectories else "tasks"
    sys.stdout.write(f"{done.rows} rows, {done.written} {what} written, {len(done.faults)} left out\n")
    for kind, count in done.by_kind.items():
        sys.stdout.write(f"  {count} {kind}\n")
    if done.written:
        sys.stdout.write(f"{options.out}\n")
