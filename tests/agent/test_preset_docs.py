"""docs/presets.md: its tables are the presets and dialects there are, number by number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from closeup.agent.dialects import DIALECTS, get_dialect
from closeup.agent.preset import PRESETS, get_preset

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "presets.md").read_text(encoding="utf-8")


def rows(text: str) -> dict[str, list[str]]:
    """The cells of a table's rows by the name in the first."""
    cut = (line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `"))
    return {cells[0].strip().strip("`"): [cell.strip() for cell in cells[1:]] for cells in cut}


ROWS, DIALECT_ROWS = map(rows, PAGE.split("## Dialects"))


def density(fps: float, number: int | None, most: int) -> str:
    return f"{number:,}" if number is not None else f"{fps:g} a second, {most:,} at most"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_row_of_the_table_is_the_preset(name: str) -> None:
    preset, (dialect, overview, looks, messages) = get_preset(name), ROWS[name]
    rule, rules, budget = preset.overview, preset.rules, preset.budget
    assert dialect == f"`{preset.dialect}`"
    assert overview == f"{density(rule.fps, rule.num_frames, rule.max_frames)}, {rule.pixels:,}"
    close = density(rules.zoom_fps, None if rules.zoom_fps else rules.zoom_frames, rules.zoom_frames)
    sees = preset.tools is None or "zoom_clip" in preset.tools
    assert looks == (f"{close}, {rules.zoom_pixels:,}" if sees else "none")
    assert messages == f"{budget.max_steps}, {budget.max_new_tokens:,}"


def test_the_page_names_every_preset_and_dialect_and_no_other() -> None:
    assert set(DIALECT_ROWS) == set(DIALECTS) and set(ROWS) == set(PRESETS)
    for name, (_, context) in DIALECT_ROWS.items():
        assert ("anew" in context) is get_dialect(name).rebuilds_context
    assert set(re.findall(r"`(love_r1-\w+|video_r1-\w+|longvila_r1-\w+)`", PAGE)) <= set(PRESETS)
