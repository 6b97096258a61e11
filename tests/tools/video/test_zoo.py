"""The default decoder against the ffmpeg program, on every container and codec that has made some decoder wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from closeup.tools.video import Frames, Video, clear_caches, probe, set_cache_limits

Zoo = Callable[[str], Any]
LEVELS = 4.0  # mean difference allowed: swscale's releases upsample colour differently; another frame differs by > 10


@pytest.fixture(autouse=True)
def no_frame_cache() -> Any:
    """Every picture in this file comes from the decoder."""
    set_cache_limits(frames_bytes=0)
    yield
    set_cache_limits(frames_bytes=512 << 20)


def stored_size(sample: Any) -> tuple[int, int]:
    return sample.frames.shape[1:3]


def assert_same_pictures(got: Frames, sample: Any, expected: list[int]) -> None:
    for place, number in enumerate(expected):
        assert got.times[place] == pytest.approx(sample.times[number], abs=1e-6), f"t={got.requested[place]}"
        difference = np.abs(got.pixels[place].astype(int) - sample.frames[number]).mean()
        assert difference < LEVELS, f"t={got.requested[place]}: {difference:.1f} levels off"


def test_exact_frames_equal_ffmpegs(zoo_name: str, zoo: Zoo) -> None:
    sample = zoo(zoo_name)
    order = random.Random(zoo_name)
    with Video(sample.path) as video:
        end = sample.times[-1] + 0.5
        scattered = [order.uniform(-0.2, end) for _ in range(12)]
        exactly = [float(sample.times[order.randrange(len(sample.times))]) for _ in range(12)]
        between = [float(t) - 1e-3 for t in exactly[:6]]
        for times in ([t] for t in [*scattered, *exactly, *between]):  # one call each: a seek from wherever it stands
            got = video.frames(times, stored_size(sample))
            assert_same_pictures(got, sample, [sample.index_at(times[0])])
        clear_caches()
        everything = [float(t) for t in sample.times]
        order.shuffle(everything)
        got = video.frames(everything, stored_size(sample))
        assert_same_pictures(got, sample, [sample.index_at(t) for t in everything])
        assert got.bad_packets == 0 or zoo_name == "ts-cut"


def test_facts_equal_ffmpegs(zoo_name: str, zoo: Zoo) -> None:
    sample = zoo(zoo_name)
    facts = probe(sample.path)
    height, width = stored_size(sample)
    expected_width = {"sar-2-1": width * 2, "sar-8-9": round(width * 8 / 9)}.get(zoo_name, width)
    assert facts.size == (height, expected_width)
    last = sample.times[-1]
    step = float(np.median(np.diff(sample.times))) if len(sample.times) > 1 else 1 / 30
    assert last < facts.duration <= last + max(3 * step, 1.2), "the duration ends with the last frame"
    assert facts.fps > 0 and facts.nominal_fps > 0


def test_key_frames_are_the_last_before_each_time(zoo_name: str, zoo: Zoo, make: Any) -> None:
    sample = zoo(zoo_name)
    with Video(sample.path) as video:
        times = np.linspace(0, sample.times[-1] + 0.3, 23)
        got = video.frames(list(times), stored_size(sample), mode="keyframe")
        assert_same_pictures(got, sample, [sample.index_at(t) for t in got.times])
        assert (got.times[1:] <= times[1:] + 1e-9).all() or zoo_name == "ts-cut"
        again = video.frames(list(reversed(times)), stored_size(sample), mode="keyframe")
        assert (again.times[::-1] == got.times).all()
