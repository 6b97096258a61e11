"""`closeup data`: generate needle tasks, check a task file."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from closeup.app.errors import NO_ANSWER, BadInput
from closeup.app.progress import bar


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
        for fault in result.faults:
            name = f" ({fault.task})" if fault.task else ""
            sys.stdout.write(f"line {fault.line}{name}: {fault.fault}\n")
        bad = len({fault.line for fault in result.faults})
        sys.stdout.write(f"{result.rows} rows, {bad} with faults\n")
    return NO_ANSWER if result.faults or not result.rows else 0
