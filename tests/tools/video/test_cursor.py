"""The seek loop from the inside: leaving pictures out, jumping and reusing a position never change the answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from closeup.tools.video import probe
from closeup.tools.video.backends._decord import REFUSALS
from closeup.tools.video.backends.cursor import Cursor
from closeup.tools.video.backends.keyframes import list_keys
from closeup.tools.video.backends.table import frame_table


def cursor(path: Path, *, droppable: bool, threads: int = 2) -> Cursor:
    facts = probe(path)
    return Cursor(facts.stamp.path, facts.stream, start=facts.start, threads=threads, droppable=droppable)


@pytest.mark.parametrize("name", ["bframes", "opengop", "vfr-mp4", "mkv", "interlaced"])
def test_leaving_pictures_out_changes_no_pixel(name: str, make: Callable[[str], Path]) -> None:
    path = make(name)
    facts = probe(path)
    assert facts.droppable == (name != "interlaced")
    quick, full = cursor(path, droppable=facts.droppable), cursor(path, droppable=False, threads=1)
    order = random.Random(name)
    for _ in range(60):
        tick = facts.ticks(order.uniform(0, facts.duration))
        (ours, until), (theirs, then) = quick.at(tick), full.at(tick)
        assert (ours.pts, until) == (theirs.pts, then)
        assert (ours.to_ndarray() == theirs.to_ndarray()).all()


def test_a_long_way_decodes_less(barcode_mp4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = probe(barcode_mp4)
    counts = {}
    for droppable in (True, False):
        reader = cursor(barcode_mp4, droppable=droppable, threads=1)
        frames = []
        original = reader._pull

        def counted(original: Any = original, frames: list[Any] = frames) -> Any:
            frames.append(original())
            return frames[-1]

        monkeypatch.setattr(reader, "_pull", counted)
        for n in range(1, 7):
            reader.at(facts.ticks((n * 24 + 23) / 30))
        counts[droppable] = len(frames)
    assert counts[True] < 0.8 * counts[False]


def test_key_frames_of_a_plain_file(barcode_mp4: Path) -> None:
    facts = probe(barcode_mp4)
    table = frame_table(facts, "decord", REFUSALS)
    assert len(table.pts) == 180 and [round(facts.seconds(k) * 30) for k in table.keys] == list(range(0, 180, 24))
    assert len(list_keys(facts)) == len(table.keys)
    assert table.find(table.pts[30], "exact") == (30, table.pts[31])
    assert table.find(table.pts[30], "keyframe") == (24, table.pts[25])
    assert table.find(table.pts[-1] + 99, "exact") == (179, None)
    assert table.find(table.pts[0] - 99, "keyframe") == (0, table.pts[1])
