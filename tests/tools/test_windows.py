from __future__ import annotations

from typing import Any

import pytest

from closeup.tools.base import ToolError
from closeup.tools.rules import ToolRules
from closeup.tools.video.clip import Clip
from closeup.tools.windows import close_looks, is_close_look, overview_of, resolve_window, seconds_text, spacing


def clip(start: float = 0, end: float = 64, **changes: Any) -> Clip:
    fields: dict[str, Any] = {"video": "film", "start": start, "end": end, "pixels": 784}
    if "num_frames" not in changes:
        fields["fps"] = 1.0
    return Clip(**(fields | changes))


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.0, "12"), (0.25, "0.25"), (1 / 3, "0.33"), (100.0, "100"), (-0.001, "0"), (1e308, "1e+308"), (0.0, "0")],
)
def test_seconds_are_written_short(value: float, text: str) -> None:
    assert seconds_text(value) == text


@pytest.mark.parametrize(("end", "kept"), [(119, 119), (120, 120), (120.4, 120), (120.5, 120)])
def test_a_window_may_reach_a_little_past_the_end_and_is_cut_there(context_of: Any, end: float, kept: float) -> None:
    assert resolve_window(context_of(), 0, 100, end)[1:] == (100, kept)


def test_one_frame_past_the_end_is_allowed_when_frames_are_long(context_of: Any) -> None:
    assert resolve_window(context_of(fps=0.25), 0, 100, 124)[1:] == (100, 120)
    with pytest.raises(ToolError, match="end 125 is past the video's end"):
        resolve_window(context_of(fps=0.25), 0, 100, 125)


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        (20, 10, "must end after it starts, got 20 to 10 s. Give 0 <= start < end <= 120."),
        (20, 20, "must end after it starts"),
        (130, 10, "start 130 is outside the video, which lasts 120 s"),
        (120, 120.4, "start 120 is outside the video, which lasts 120 s"),
        (-1, 10, "start -1 is outside"),
        (100, 121, "end 121 is past the video's end, it lasts 120 s. Give 0 <= start < end <= 120."),
        (0, 1e308, "end 1e+308 is past"),
    ],
)
def test_a_window_outside_the_video_is_refused(context_of: Any, start: float, end: float, said: str) -> None:
    with pytest.raises(ToolError) as caught:
        resolve_window(context_of(), 0, start, end)
    assert said in str(caught.value)


OVERVIEW = clip()


@pytest.mark.parametrize(
    ("later", "close"),
    [
        (OVERVIEW, False),
        (clip(10, 12, num_frames=4, placement="left", pixels=12544), True),
        (clip(0, 60, num_frames=4, placement="left", pixels=12544), True),  # sparser, but larger frames
        (clip(10, 12, num_frames=21), True),  # denser at the same size
        (clip(10, 12, num_frames=3), False),  # one frame per second, as the overview
        (clip(0, 64, fps=0.5), False),
        (clip(0, 64, fps=2.0), True),
        (clip(10, 12, num_frames=1), False),
        (clip(10, 12, num_frames=21, pixels=196), True),
        (clip(10, 12, fps=50.0, mode="keyframe"), False),
    ],
)
def test_a_close_look_is_larger_or_denser_than_the_overview(later: Clip, close: bool) -> None:
    assert is_close_look(later, OVERVIEW) is close


def test_without_an_overview_every_exact_clip_is_a_close_look() -> None:
    assert is_close_look(clip(), None) and not is_close_look(clip(mode="keyframe"), None)


def test_clips_of_two_videos_are_not_compared() -> None:
    with pytest.raises(ValueError, match="'other'"):
        is_close_look(clip(video="other"), OVERVIEW)


def test_spacing_is_what_the_clip_asks_for() -> None:
    assert spacing(clip(fps=4.0)) == pytest.approx(0.25)
    assert spacing(clip(10, 16, num_frames=7)) == pytest.approx(1.0)
    assert spacing(clip(10, 16, num_frames=6, placement="left")) == pytest.approx(1.0)
    assert spacing(clip(10, 16, num_frames=1)) == 6
    assert spacing(clip(0, 64, fps=10.0, max_frames=32)) == pytest.approx(2.0)


def test_the_first_clip_of_each_video_is_its_overview() -> None:
    other = clip(video="other", pixels=99999)
    zoom, wide = clip(1, 2, num_frames=4, pixels=9999), clip(0, 64, fps=0.5)
    seen = (OVERVIEW, zoom, other, wide)
    assert close_looks(seen) == (zoom,)
    assert overview_of("other", seen) == other and overview_of("third", seen) is None


@pytest.mark.parametrize(
    ("duration", "allowed"), [(120, (0.2, 60)), (20, (0.2, 10)), (0.3, (0.2, 0.2)), (0.1, (0.1, 0.1)), (900, (0.2, 60))]
)
def test_a_window_is_possible_in_every_video(duration: float, allowed: tuple[float, float]) -> None:
    assert ToolRules().window_seconds(duration) == pytest.approx(allowed)


def test_love_r1_rules() -> None:
    rules = ToolRules.love_r1()
    assert rules.window_seconds(300) == (1, 60) and rules.window_seconds(40) == (1, 20)
    assert rules.max_overlap == 0.7


def test_rules_that_allow_no_window_are_refused() -> None:
    with pytest.raises(ValueError, match="no window is allowed"):
        ToolRules(min_seconds=5, max_seconds=2)
