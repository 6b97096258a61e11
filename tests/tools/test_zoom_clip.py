from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from closeup.tools.base import ToolContext, ToolError
from closeup.tools.rules import ToolRules
from closeup.tools.video import Video
from closeup.tools.video.clip import Clip
from closeup.tools.zoom_clip import ZoomArgs, ZoomClip


def zoom(context: ToolContext, start: float, end: float, video: int = 0) -> Clip:
    result = ZoomClip().run(ZoomArgs(start=start, end=end, video=video), context)
    (clip,) = result.clips
    assert result.text == "" and result.answer is None
    return clip


def test_a_close_look_is_a_few_frames_from_the_left_at_full_resolution(context_of: Any) -> None:
    clip = zoom(context_of(), 12, 13)
    assert clip == Clip(video="film", start=12, end=13, num_frames=4, placement="left", pixels=112 * 112)
    assert clip.times() == (12.0, 12.25, 12.5, 12.75)


def test_it_draws_what_the_overview_draws(context_of: Any) -> None:
    overview = Clip(video="film", start=0, end=120, fps=0.5, pixels=784, overlay="seconds")
    assert zoom(context_of(seen=(overview,)), 12, 13).overlay == "seconds"


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        (12, 12.1, "a window of 0.1 s is too short. A close look may last 0.2 to 60 s."),
        (12, 12.0001, "too short"),
        (12, 73, "a window of 61 s is too long. A close look may last 0.2 to 60 s."),
        (13, 12, "must end after it starts"),
        (119, 130, "end 130 is past"),
    ],
)
def test_windows_that_are_not_allowed_are_refused(context_of: Any, start: float, end: float, said: str) -> None:
    with pytest.raises(ToolError) as caught:
        zoom(context_of(), start, end)
    assert said in str(caught.value)


@pytest.mark.parametrize(("start", "end"), [(12, 12.2), (0.1, 0.3), (12, 72), (60, 120.3)])
def test_the_shortest_and_longest_windows_are_allowed(context_of: Any, start: float, end: float) -> None:
    assert zoom(context_of(), start, end).start == start


@given(duration=st.floats(0.05, 400))
def test_the_lengths_a_refusal_names_are_allowed(context_of: Any, duration: float) -> None:
    context = context_of(duration=duration, seen=())
    with pytest.raises(ToolError) as caught:
        zoom(context, 0, duration if duration > 1 else 0.02)
    named = re.search(r"may last ([0-9.]+) to ([0-9.]+) s", str(caught.value))
    assert named is not None
    for length in named.groups():
        assert zoom(context, 0, float(length)).start == 0


def test_a_very_short_video_may_be_looked_at_whole(context_of: Any) -> None:
    assert zoom(context_of(duration=0.1, seen=()), 0, 0.1).seconds == pytest.approx(0.1)


def test_half_the_video_is_the_longest_window(context_of: Any) -> None:
    with pytest.raises(ToolError, match="may last 0.2 to 8 s"):
        zoom(context_of(duration=16.0), 0, 9)


LOVE = ToolRules.love_r1()


def earlier(start: float, end: float, pixels: int = LOVE.zoom_pixels) -> Clip:
    return Clip(video="film", start=start, end=end, num_frames=16, placement="left", pixels=pixels)


@pytest.mark.parametrize(
    ("start", "end", "allowed"), [(10, 20, False), (11, 21, False), (12, 22, True), (10, 24, False)]
)
def test_overlap_with_an_earlier_close_look_is_bounded(
    context_of: Any, start: float, end: float, allowed: bool
) -> None:
    context = context_of(earlier(40, 50), earlier(10, 20), rules=LOVE)
    if allowed:
        assert zoom(context, start, end).start == start
        return
    with pytest.raises(ToolError, match=r"already looked closely at 10 to 20 s \(overlap .*, allowed 0.7\)"):
        zoom(context, start, end)


def test_the_overview_and_a_mere_resample_do_not_forbid_a_close_look(context_of: Any) -> None:
    resample = Clip(video="film", start=10, end=20, num_frames=64, pixels=784)
    assert zoom(context_of(resample, rules=LOVE), 10, 20).num_frames == 16


def test_another_video_does_not_count_as_seen(context_of: Any) -> None:
    other = earlier(10, 20).model_copy(update={"video": "other"})
    assert zoom(context_of(other, other, rules=LOVE), 10, 20).video == "film"


def test_an_overlap_limit_of_one_allows_the_same_window_again(context_of: Any) -> None:
    rules = LOVE.model_copy(update={"max_overlap": 1.0})
    again = zoom(context_of(earlier(10, 20), rules=rules), 10, 20)
    assert (again.start, again.end) == (10, 20)


@pytest.mark.parametrize(("left", "allowed"), [(None, True), (4, True), (3, False), (0, False), (-2, False)])
def test_the_frame_budget_is_kept(context_of: Any, left: int | None, allowed: bool) -> None:
    context = context_of(frames_left=left)
    if allowed:
        assert len(zoom(context, 12, 13).times()) == 4
        return
    with pytest.raises(ToolError, match=rf"needs 4 frames and only {max(0, left or 0)} are left"):
        zoom(context, 12, 13)


def test_a_video_that_is_not_there(context_of: Any) -> None:
    with pytest.raises(ToolError, match="no video 1. Accepted: 0."):
        zoom(context_of(), 1, 2, video=1)


def test_the_frames_of_a_close_look_can_be_read(sample_video: Path) -> None:
    with Video(sample_video) as video:
        clip = zoom(ToolContext(videos=(video,), rules=ToolRules(zoom_frames=4, zoom_pixels=48 * 64)), 2, 4)
        frames = video.frames(clip)
    assert frames.pixels.shape == (4, 48, 64, 3)
    np.testing.assert_allclose(frames.times, [2.0, 2.5, 3.0, 3.5])
    upper = frames.pixels[:, :20].astype(float).mean(axis=(1, 2))
    assert np.abs(upper[1] - upper[2]).max() > 50 > np.abs(upper[0] - upper[1]).max()  # the cut at 3.0 s
