"""Put committed results into the documents, so that no number there was typed by hand.

    python benchmarks/readme.py            rewrite the numbers in README.md and docs/*.md
    python benchmarks/readme.py --check    say which numbers are stale or unfounded; exit 1 if any

A number is written between two comments that name where it comes from, and stays invisible as such to a reader:

    <!-- result tiny-cpu.json agent/accuracy percent -->91.4 %<!-- /result -->

The three words are a file of `benchmarks/results/`, the keys that lead to the value (joined by `/`; a whole number
steps into a list; a `_` stands for a space too), and one of `FORMATS`. Under a heading "Measured results" a number
outside such a pair is a fault. Standard library only.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("benchmarks", "results")

PAIR = re.compile(r"(<!-- result (?P<file>\S+) (?P<keys>\S+) (?P<format>\S+) -->)(?P<text>.*?)(<!-- /result -->)", re.S)
HEADING = re.compile(r"^#+ *(?P<title>.*?) *$", re.M)
# What may hold digits that are no result: pairs, code, link targets, comments, "95 %" as the name of an interval.
FOUNDED = re.compile(r"<!-- result .*?<!-- /result -->|```.*?```|`[^`\n]*`|\]\([^)]*\)|<!--.*?-->|\b95 %", re.S)
NUMBER = re.compile(r"(?<![\w.-])\d[\d.,]*")

# "table": of {"columns": [...], "rows": [[...], ...]}, on lines of its own.
FORMATS: dict[str, Callable[[Any], str]] = {
    "percent": lambda value: f"{100 * value:.1f} %",
    "interval": lambda value: f"{100 * value[0]:.1f}–{100 * value[1]:.1f} %",
    "times": lambda value: f"{value:.1f}×",
    "integer": lambda value: f"{round(value):,}",
    "decimal": lambda value: f"{value:.1f}",
    "hundredths": lambda value: f"{value:.2f}",
    "seconds": lambda value: f"{value:.1f} s",
    "milliseconds": lambda value: f"{1000 * value:.1f} ms",
    "text": str,
    "table": lambda value: _table(value["columns"], value["rows"]),
}


def _table(columns: list[str], rows: list[list[str]]) -> str:
    """A table on lines of its own: the first column names the rows."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n" + "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


class Unfounded(Exception):
    """A pair that names no committed value; the message says which part is wrong and what there is."""


def look_up(root: Path, file: str, keys: str, style: str) -> str:
    """The text of one value: `keys` inside `benchmarks/results/<file>`, written in the format `style`."""
    path = root / RESULTS / file
    if not path.is_file():
        known = ", ".join(sorted(found.name for found in (root / RESULTS).glob("*.json"))) or "none yet"
        raise Unfounded(f"there is no {RESULTS / file}; there are: {known}")
    value: Any = json.loads(path.read_text(encoding="utf-8"))
    for key in keys.split("/"):
        try:
            value = value[int(key)] if isinstance(value, list) else value[_spaced(value, key)]
        except (KeyError, IndexError, ValueError, TypeError):
            there = ", ".join(value) if isinstance(value, dict) else f"a {type(value).__name__}"
            raise Unfounded(f"{file} has no {keys!r}: {key!r} is not among {there}") from None
    if style not in FORMATS:
        raise Unfounded(f"there is no format {style!r}; there are: {', '.join(FORMATS)}")
    try:
        return FORMATS[style](value)
    except (TypeError, ValueError, IndexError):
        raise Unfounded(f"{file}: {keys} is {value!r}, which cannot be written as {style!r}") from None


def _spaced(table: dict[str, Any], key: str) -> str:
    """The key as the file has it: what is written with `_` here may have spaces there."""
    return next((known for known in table if known.replace(" ", "_") == key), key)


def filled(root: Path, text: str) -> str:
    """`text` with every pair's content looked up again."""

    def fill(pair: re.Match[str]) -> str:
        return pair[1] + look_up(root, pair["file"], pair["keys"], pair["format"]) + pair[6]

    return PAIR.sub(fill, text)


def unfounded_numbers(text: str) -> list[str]:
    """Numbers in a "Measured results" section that no pair vouches for."""
    headings = [*HEADING.finditer(FOUNDED.sub(lambda found: " " * len(found[0]), text))]
    found = []
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        if heading["title"].lower().startswith("measured results"):
            section = text[heading.end() : following.start() if following else len(text)]
            found += NUMBER.findall(FOUNDED.sub(" ", section))
    return found


def documents(root: Path) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def main(arguments: list[str], root: Path = ROOT) -> int:
    if arguments not in ([], ["--check"]):
        sys.stderr.write(__doc__ or "")
        return 2
    faults = []
    for document in documents(root):
        name, text = document.relative_to(root), document.read_text(encoding="utf-8")
        try:
            new = filled(root, text)
        except Unfounded as error:
            faults.append(f"{name}: {error}")
            continue
        faults += [f"{name}: {number} is no committed result" for number in unfounded_numbers(text)]
        if new != text and arguments:
            faults.append(f"{name}: its numbers are not those of {RESULTS}; run: make readme")
        elif new != text:
            document.write_text(new, encoding="utf-8")
            sys.stdout.write(f"{name}: rewritten\n")
    for fault in faults:
        sys.stderr.write(fault + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
