"""The tables of docs/tools.md are what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from closeup.tools.registry import registered_tools
from closeup.tools.rules import ToolRules

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "tools.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """Cells of the table whose header begins with `heading`, header and ruler left out."""
    table = TEXT[TEXT.index(f"| {heading} |") :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_rules_table() -> None:
    default, love = (
        {
            name: value or "none" if isinstance(value, list) else value
            for name, value in rules.model_dump(mode="json").items()
        }
        for rules in (ToolRules(), ToolRules.love_r1())
    )
    told = set()
    for names, usual, ours, _ in rows("rule"):
        for name, value, other in zip(
            re.findall(r"`(\w+)`", names), usual.split(","), (ours if ours != "same" else usual).split(","), strict=True
        ):
            for told_value, real in ((value, default[name]), (other, love[name])):
                assert real == (float(told_value) if isinstance(real, int | float) else told_value.strip()), name
            told.add(name)
    assert told == set(ToolRules.model_fields)


def test_the_tools_table() -> None:
    told = {name.strip("`"): set(re.findall(r"`(\w+)`", arguments)) for name, arguments, _ in rows("tool")}
    built_in = registered_tools(["zoom_clip", "resample_frames", "answer"])
    assert told == {name: set(tool.Args.model_fields) for name, tool in built_in.items()}
