from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from closeup.app.thumbnails import strip, thumbnail
from closeup.app.timeline import TRACK, WATCHED, cells, clock, span, timeline


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (7.44, "0:07.4"), (59.96, "1:00"), (750, "12:30"), (3725, "1:02:05"), (-1, "0:00")],
)
def test_clock_reads_like_a_player(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_span_joins_two_times() -> None:
    assert span(12, 13.5) == "0:12–0:13.5"


def test_a_window_is_drawn_where_it_lies() -> None:
    assert timeline(100, [(50, 60)], 10) == TRACK * 5 + WATCHED + TRACK * 4


def test_a_short_window_of_a_long_film_is_still_seen() -> None:
    assert timeline(7200, [(7199.5, 7200)], 40) == TRACK * 39 + WATCHED


@given(
    duration=st.floats(0.1, 1e5),
    start=st.floats(0, 1),
    length=st.floats(0, 1),
    width=st.integers(1, 200),
)
def test_cells_are_inside_the_line_and_never_empty(duration: float, start: float, length: float, width: int) -> None:
    first, last = cells(duration, (start * duration, (start + length) * duration), width)
    assert 0 <= first < last <= width


def test_a_thumbnail_shows_the_frames_colours() -> None:
    frame = np.zeros((40, 40, 3), np.uint8)
    frame[:20], frame[20:] = (255, 0, 0), (0, 0, 255)
    lines = thumbnail(frame, columns=4, rows=2)
    assert [len(line) for line in lines] == [4, 4]
    assert str(lines[0][0].style) == "#ff0000 on #ff0000"
    assert str(lines[1][0].style) == "#0000ff on #0000ff"


def test_a_strip_has_one_picture_per_frame_and_captions_below() -> None:
    frames = [np.full((10, 20, 3), shade, np.uint8) for shade in (0, 100, 200)]
    lines = strip(frames, ["0:00", "0:10", "0:20"], columns=8, rows=3)
    assert len(lines) == 4
    assert "".join(segment.text for segment in lines[-1]).split() == ["0:00", "0:10", "0:20"]
