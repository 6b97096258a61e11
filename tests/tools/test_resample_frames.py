from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from closeup.tools.base import ToolContext, ToolError
from closeup.tools.resample_frames import ResampleFrames
from closeup.tools.video.clip import Clip
from closeup.tools.windows import is_close_look


def resample(context: ToolContext, **arguments: Any) -> Clip:
    tool = ResampleFrames()
    args: Any = tool.parse_args(arguments)
    result = tool.run(args, context)
    (clip,) = result.clips
    assert result.text == "" and result.answer is None
    return clip


def test_a_number_of_frames_includes_both_ends_at_skim_resolution(context_of: Any) -> None:
    clip = resample(context_of(), start=11.6, end=11.9, num_frames=7)
    assert clip == Clip(video="film", start=11.6, end=11.9, num_frames=7, placement="ends", pixels=784)
    assert clip.times() == pytest.approx((11.6, 11.65, 11.7, 11.75, 11.8, 11.85, 11.9))


def test_a_rate_counts_from_the_start_and_nothing_is_thinned(context_of: Any) -> None:
    clip = resample(context_of(), start=10, end=20, fps=4)
    assert len(clip.times()) == 40 and clip.times()[:2] == (10.0, 10.25)


@pytest.mark.parametrize(
    ("arguments", "window"),
    [({}, (0, 120)), ({"start": 100}, (100, 120)), ({"end": 30}, (0, 30)), ({"end": 120.4}, (0, 120))],
)
def test_without_a_window_it_is_the_whole_video(
    context_of: Any, arguments: dict[str, float], window: tuple[float, float]
) -> None:
    clip = resample(context_of(), num_frames=10, **arguments)
    assert (clip.start, clip.end) == window


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "give exactly one of fps and num_frames, got neither."),
        ({"fps": 1, "num_frames": 4}, "got both."),
        ({"fps": 1, "start": 0}, "over 120 s at most 64 frames are allowed now. Give fps up to 0.533"),
        ({"fps": 1e308}, "fps is too large"),
        ({"num_frames": 65}, "num_frames is too large: at most 64 frames are allowed now."),
        ({"num_frames": 10**18}, "at most 64 frames"),
        ({"num_frames": 4, "start": 130}, "start 130 is outside the video, which lasts 120 s"),
        ({"num_frames": 4, "start": 20, "end": 10}, "must end after it starts"),
        ({"num_frames": 4, "end": 0}, "must end after it starts"),
        ({"num_frames": 4, "video": 2}, "there is no video 2"),
    ],
)
def test_what_is_not_allowed_is_refused(context_of: Any, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ToolError) as caught:
        resample(context_of(), **arguments)
    assert said in str(caught.value)


@given(duration=st.floats(0.1, 40_000), left=st.integers(1, 64))
def test_the_rate_a_refusal_names_is_allowed(context_of: Any, duration: float, left: int) -> None:
    context = context_of(duration=duration, frames_left=left, seen=())
    with pytest.raises(ToolError) as caught:
        resample(context, fps=100_000)
    named = re.search(r"Give fps up to ([0-9.]+),", str(caught.value))
    assert named is not None
    assert 0.98 * left - 1 <= len(resample(context, fps=float(named[1])).times()) <= left


def test_an_absurdly_low_rate_is_one_frame(context_of: Any) -> None:
    assert resample(context_of(), fps=5e-324).times() == (0.0,)


@pytest.mark.parametrize(("left", "limit"), [(5, 5), (100, 64)])
def test_the_frame_budget_is_kept(context_of: Any, left: int, limit: int) -> None:
    assert len(resample(context_of(frames_left=left), num_frames=limit).times()) == limit
    with pytest.raises(ToolError, match=f"at most {limit} frames"):
        resample(context_of(frames_left=left), num_frames=limit + 1)
    with pytest.raises(ToolError, match="no frames are left"):
        resample(context_of(frames_left=0), num_frames=1)


def test_the_same_frames_are_not_shown_twice(context_of: Any) -> None:
    first = resample(context_of(), start=10, end=12, num_frames=5)
    with pytest.raises(ToolError, match="shown already"):
        resample(context_of(first), start=10, end=12, num_frames=5)
    with pytest.raises(ToolError, match="shown already"):
        resample(context_of(), fps=0.5)  # the overview itself
    assert resample(context_of(first), start=10, end=12, num_frames=6).num_frames == 6


def test_denser_is_a_close_look_and_sparser_is_not(context_of: Any) -> None:
    context = context_of()
    assert is_close_look(resample(context, start=10, end=12, num_frames=21), context.seen[0])
    assert not is_close_look(resample(context, num_frames=20), context.seen[0])
