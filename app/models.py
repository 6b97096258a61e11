"""`closeup models`: the families of checkpoints that `--model` takes, and what each was seen to do.

What is printed comes from `closeup/agent/models/support.json`, which `make support-table` writes from tests that ran:
a capability is "yes" when all its tests for that family passed, and nobody types one in.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from closeup.agent import models
from closeup.agent.models.load import FAMILIES

UNTESTED = "not recorded; run: make support-table"


def support() -> dict[str, Any]:
    """Per supported family its class, its ways to tell times, and its capabilities ("yes", "no" or "untested")."""
    path = Path(models.__file__).parent / "support.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["families"]
    return {family: known.get(family, {"class": UNTESTED, "times": {}, "capabilities": {}}) for family in FAMILIES}


def run(*, as_json: bool) -> int:
    """Print the families; returns the exit code."""
    families = support()
    if as_json:
        sys.stdout.write(json.dumps(families, indent=2) + "\n")
        return 0
    from rich.console import Console
    from rich.table import Table

    names = list(families)
    table = Table("", *names, show_lines=False)
    table.add_row("class", *(families[name]["class"].removesuffix("ForConditionalGeneration") for name in names))
    table.add_row("times (first: its own)", *(_times(families[name]["times"]) for name in names))
    for capability in dict.fromkeys(c for name in names for c in families[name]["capabilities"]):
        table.add_row(capability, *(families[name]["capabilities"].get(capability, "untested") for name in names))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    sys.stdout.write("Look at a checkpoint of yours with: closeup doctor --model FOLDER_OR_ID\n")
    return 0


def _times(times: dict[str, Any]) -> str:
    if not times:
        return ""
    return ", ".join([times["native"], *(way for way in times["accepted"] if way != times["native"])])
