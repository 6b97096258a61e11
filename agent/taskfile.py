"""The rows of a file of tasks or annotations, whatever it is kept in.

- JSON Lines (any name that is none of the below): one JSON object per line;
- `.json`: a list of objects, an object with one list under "results" (what LOVE-R1's mining scripts write), or, failing
  both, JSON Lines under another name;
- `.parquet`, a folder of `.parquet` files (read in the order of their names), or a folder that `datasets` saved with
  `save_to_disk`: read through `datasets` (extra `train`), streamed, nothing copied to a cache.

Invariants
1. Rows come in the file's order, and a row's place in words ("line 3", "row 3", counted from 1) is the same each time.
2. A row that cannot be read is yielded as its fault, not dropped; only a file that cannot be read at all raises.
3. A column that a table holds only for other rows (null) is absent from a row, as it would be in JSON Lines.
4. Only files and folders are opened: a pipe or a device would be waited for without end.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from closeup.agent.task import TaskError
from closeup.extras import require

RESULTS = "results"


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in its file.

    Attributes:
        number: counted from 1 (for JSON Lines: the line). place: where it stands, in words.
        fields: the row's fields; empty when it cannot be read. fault: why it cannot be read, or "".
    """

    number: int
    place: str
    fields: dict[str, Any]
    fault: str = ""


def is_table(path: Path) -> bool:
    """Whether `path` is read through `datasets`: a parquet file, or a folder."""
    return path.suffix.lower() == ".parquet" or path.is_dir()


def raw_rows(path: Path, *, what: str = "file", missing: str = "") -> Iterator[RawRow]:
    """Yield every row of a file.

    Args:
        what: what the file is, and missing: what to do when there is none; both for the error's sentence.

    Raises:
        TaskError: the file cannot be read at all. MissingExtra: it is a table and `datasets` is not installed.
    """
    try:
        mode = path.stat().st_mode
        odd = not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
        # utf-8-sig: some editors and spreadsheets begin a file with a byte order mark
        text = "" if odd or is_table(path) else path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TaskError(f"no {what} at {path}" + (f"; {missing}" if missing else "")) from None
    except (OSError, ValueError) as error:  # no permission, not UTF-8, no name a file can have
        raise TaskError(f"cannot read the {what} {path}: {error}") from None
    if odd:
        raise TaskError(f"the {what} {path} is a pipe or a device; copy what comes out of it to a file and give that")
    if is_table(path):
        yield from _table(path)
        return
    whole = _whole(text) if path.suffix.lower() == ".json" else None
    if whole is not None:
        for number, value in enumerate(whole, 1):
            yield _row(number, f"row {number}", value)
        return
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: a JSON string may hold U+2028
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield RawRow(number, f"line {number}", {}, str(error))
        else:
            yield _row(number, f"line {number}", value)


def _row(number: int, place: str, value: Any) -> RawRow:
    if not isinstance(value, dict):
        return RawRow(number, place, {}, f"a row is a JSON object, got {type(value).__name__}")
    return RawRow(number, place, value)


def _whole(text: str) -> list[Any] | None:
    """The rows of a `.json` file that is one JSON value; None when it is something else (JSON Lines, or broken)."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        inner = value.get(RESULTS)
        return inner if isinstance(inner, list) and len(value) == 1 else [value]
    return value if isinstance(value, list) else None


def _table(path: Path) -> Iterator[RawRow]:
    """Rows of a parquet file, or of a folder of a dataset. Raises `TaskError` and `MissingExtra`."""
    rows = iter(_open_table(path))
    number = 0
    while True:
        number += 1
        try:
            row = next(rows, None)
        except Exception as error:  # pyarrow and datasets raise many kinds for a damaged file
            raise TaskError(f"{path}, row {number}: {type(error).__name__}: {_first_line(error)}") from error
        if row is None:
            return
        yield RawRow(number, f"row {number}", {k: v for k, v in row.items() if v is not None})


def _open_table(path: Path) -> Iterable[dict[str, Any]]:
    if (path / "dataset_dict.json").is_file():
        return _open_table(_only_split(path))
    saved = (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    shards = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not saved and not shards:
        raise TaskError(
            f"{path} is a folder without a dataset in it; accepted: a folder that datasets' save_to_disk wrote, a "
            "folder of .parquet files, a .parquet file, or a file in JSON Lines"
        )
    datasets = require("train", "datasets")
    try:
        rows: Iterable[dict[str, Any]]
        if saved:
            rows = datasets.load_from_disk(str(path))
        else:
            files = [str(shard) for shard in shards]
            rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
        return rows
    except Exception as error:
        raise TaskError(f"cannot read {path} as a table: {type(error).__name__}: {_first_line(error)}") from error


def _only_split(path: Path) -> Path:
    """The folder of a saved dataset's split, when it has just one. Raises `TaskError`."""
    try:
        splits = [str(name) for name in json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TaskError(f"cannot read {path / 'dataset_dict.json'}: {error}; save the dataset again") from None
    if len(splits) != 1:
        raise TaskError(
            f"{path} holds {len(splits)} splits, and a task file is one; "
            f"give one of: {', '.join(str(path / split) for split in splits) or 'none is there'}"
        )
    return path / splits[0]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
