"""Which instants are asked for: properties that hold for every window."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from closeup.tools.video import Clip, window_iou
from closeup.tools.video.sampling import Density, by_fps, frame_count, slow_fast, uniform

seconds = st.floats(0, 1e6, allow_nan=False)
windows = st.tuples(seconds, seconds).map(lambda pair: (min(pair), max(pair)))
placements = st.sampled_from(["ends", "left", "centre"])
densities = st.builds(
    Density, fps=st.floats(0.01, 60), max_frames=st.integers(1, 800), pixels=st.integers(28 * 28, 1_000_000)
)


@given(windows, st.integers(1, 400), placements)
def test_uniform(window: tuple[float, float], count: int, placement: str) -> None:
    times = uniform(*window, count, placement=placement)  # type: ignore[arg-type]
    assert len(times) == count
    assert list(times) == sorted(times)
    assert window[0] <= times[0] and times[-1] <= window[1]
    steps = [b - a for a, b in zip(times, times[1:], strict=False)]
    assert not steps or max(steps) - min(steps) <= 1e-9 * max(1.0, window[1])
    if placement == "ends" and count > 1:
        assert times[0] == window[0] and times[-1] == pytest.approx(window[1])
    if placement == "left":
        assert times[0] == window[0]
    if placement == "centre":
        assert times[0] - window[0] == pytest.approx(window[1] - times[-1], abs=1e-6)


def test_uniform_by_hand() -> None:
    assert uniform(0, 10, 3) == (0, 5, 10)
    assert uniform(0, 10, 1) == (5,)
    assert uniform(0, 12, 3, placement="left") == (0, 4, 8)
    assert uniform(0, 12, 3, placement="centre") == (2, 6, 10)
    with pytest.raises(ValueError, match="at least 1"):
        uniform(0, 1, 0)


@given(windows, st.floats(1e-3, 1e9), st.integers(1, 500))
def test_by_fps(window: tuple[float, float], fps: float, cap: int) -> None:
    times = by_fps(*window, fps, max_frames=cap)
    span = window[1] - window[0]
    assert 1 <= len(times) <= cap
    assert list(times) == sorted(times)
    assert times[0] == window[0] and times[-1] <= window[1]
    assert len(times) == frame_count(span, fps, max_frames=cap)
    if span * fps < cap:
        assert len(times) == max(1, math.ceil(span * fps - 1e-6))
        assert all(t == pytest.approx(window[0] + i / fps) for i, t in enumerate(times))


def test_by_fps_by_hand() -> None:
    assert by_fps(10, 12, 2, max_frames=100) == (10, 10.5, 11, 11.5)
    assert len(by_fps(0, 0.1, 30, max_frames=100)) == 3
    assert by_fps(0, 8, 100, max_frames=4) == (0, 2, 4, 6)
    assert by_fps(3, 3, 1, max_frames=4) == (3,)
    assert len(by_fps(0, 1e6, 1e308, max_frames=4)) == 4
    for fps, cap in ((0, 1), (-1, 1), (float("nan"), 1), (1, 0)):
        with pytest.raises(ValueError, match=r"fps must be positive|max_frames must be at least 1"):
            by_fps(0, 1, fps, max_frames=cap)


@given(seconds, st.lists(windows, max_size=4), densities, densities, st.integers(1, 10**9) | st.none())
def test_slow_fast_stays_inside_every_limit(
    duration: float, clips: list[tuple[float, float]], fast: Density, slow: Density, allowed: int | None
) -> None:
    free = slow_fast(duration, clips, fast=fast, slow=slow)
    assert free.fast_frames == fast.count(duration) <= fast.max_frames
    assert len(free.slow_frames) == len(clips)
    assert all(1 <= n <= slow.max_frames for n in free.slow_frames)
    if allowed is None:
        return
    if fast.pixels + len(clips) * slow.pixels > allowed:
        with pytest.raises(ValueError, match="pixels"):
            slow_fast(duration, clips, fast=fast, slow=slow, max_pixels=allowed)
        return
    plan = slow_fast(duration, clips, fast=fast, slow=slow, max_pixels=allowed)
    assert plan.pixels(fast, slow) <= allowed
    assert 1 <= plan.fast_frames <= free.fast_frames
    assert all(1 <= n <= most for n, most in zip(plan.slow_frames, free.slow_frames, strict=True))
    if free.pixels(fast, slow) <= allowed:
        assert plan == free
    more = slow_fast(duration, clips, fast=fast, slow=slow, max_pixels=allowed * 2)
    assert more.fast_frames >= plan.fast_frames, "a larger allowance never shows less"


def test_slow_fast_by_hand() -> None:
    patch = 28 * 28
    fast, slow = Density(2, 768, 32 * patch), Density(2, 32, 256 * patch)
    assert slow_fast(3600, [(10, 20), (100, 160)], fast=fast, slow=slow).slow_frames == (20, 32)
    assert slow_fast(3600, [], fast=fast, slow=slow).fast_frames == 768
    assert slow_fast(30, [], fast=fast, slow=slow).fast_frames == 60
    halved = slow_fast(3600, [(0, 60)], fast=fast, slow=slow, max_pixels=(768 * 32 + 32 * 256) * patch // 2)
    assert (halved.fast_frames, halved.slow_frames) == (384, (16,))


@given(windows, windows)
def test_window_iou(a: tuple[float, float], b: tuple[float, float]) -> None:
    assert 0 <= window_iou(a, b) == window_iou(b, a) <= 1
    assert window_iou(a, a) == (1 if a[1] > a[0] else 0)


def test_clip_is_a_pure_request() -> None:
    clip = Clip(video="v", start=2, end=6, fps=2, pixels=1000, max_frames=5)
    assert clip.times() == tuple(2 + 4 * i / 5 for i in range(5))
    assert clip.seconds == 4 and clip.iou(4, 8) == pytest.approx(1 / 3)
    same = Clip.model_validate_json(clip.model_dump_json())
    assert same == clip and same.key == clip.key and hash(same) == hash(clip)
    assert clip.model_copy(update={"pixels": 999}).key != clip.key
    for wrong in ({"end": 1}, {"num_frames": 3}, {"fps": None}, {"pixels": 0}, {"start": -1}, {"start": float("nan")}):
        with pytest.raises(ValidationError):
            Clip(**{"video": "v", "start": 2, "end": 6, "fps": 2, "pixels": 1000, **wrong})
