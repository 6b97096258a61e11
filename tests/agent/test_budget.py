"""Budgets, evidence and headings: the arithmetic under the environment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from closeup.agent.budget import Budget, Cost, Meter, Spent, clip_cost, text_tokens
from closeup.agent.evidence import merge, watched_part
from closeup.agent.geometry import VisionGeometry
from closeup.agent.headings import CUE_OVERHEAD, fitting, seconds
from closeup.agent.task import Cue
from closeup.tools.video.clip import Clip

whole = st.integers(0, 60).map(float)
windows = st.lists(st.tuples(whole, whole).map(lambda pair: (min(pair), max(pair))), max_size=6)


def inside(point: float, spans: tuple[tuple[float, float], ...]) -> bool:
    return any(low <= point <= high for low, high in spans)


@given(windows)
def test_merged_windows_are_disjoint_and_cover_the_same(spans: list[tuple[float, float]]) -> None:
    merged = merge(spans)
    assert all(one[1] < other[0] for one, other in zip(merged, merged[1:], strict=False))
    for point in (i / 2 for i in range(121)):
        assert inside(point, merged) == inside(point, tuple(spans))


@given(windows, windows)
def test_cited_windows_split_into_watched_and_unwatched(
    cited: list[tuple[float, float]], watched: list[tuple[float, float]]
) -> None:
    kept, dropped = watched_part(cited, watched)
    assert all(any(low <= start and end <= high for low, high in merge(watched)) for start, end in kept)
    assert all(start < end or (start, end) in cited for start, end in (*kept, *dropped))
    for point in (i + 0.5 for i in range(60)):  # inner points: windows have whole ends
        assert inside(point, kept) == (inside(point, tuple(cited)) and inside(point, tuple(watched)))
        assert inside(point, dropped) == any(
            low < point < high and not inside(point, tuple(watched)) for low, high in cited
        )


def test_an_instant_is_kept_and_a_touch_is_not() -> None:
    assert watched_part([(3, 3), (9, 9)], [(2, 4)]) == (((3, 3),), ((9, 9),))
    assert watched_part([(4, 6)], [(2, 4)]) == ((), ((4, 6),))


def test_clips_cost_frames_visual_tokens_and_their_labels() -> None:
    clip = Clip(video="v", start=0, end=1, num_frames=5, pixels=112 * 112)
    assert clip_cost(clip, width=640, height=640, geometry=VisionGeometry()) == Cost(5, 3 * 16, 3 * 16 + 3 * 8)
    assert Cost(1, 2, 3) + Cost(4, 5, 6) == Cost(5, 7, 9)
    assert text_tokens("") == 0 and text_tokens("abcd") == 2


def test_the_first_broken_limit_is_named() -> None:
    budget = Budget(max_frames=10, max_visual_tokens=100, max_context_tokens=1000, max_new_tokens=50)
    meter = Meter(budget)
    meter.show(Cost(8, 90))
    meter.report(900)
    assert meter.broken(Cost(3, 20, 200)) == "max_frames"
    assert meter.broken(Cost(2, 20, 200)) == "max_visual_tokens"
    assert meter.broken(Cost(2, 10, 101)) == "max_context_tokens"
    assert meter.broken(Cost(2, 10, 100)) == ""
    assert meter.broken(Cost(2, 10, 50), messages=1) == ""
    assert meter.broken(Cost(2, 10, 51), messages=1) == "max_context_tokens"
    assert meter.refusal(Cost(2, 10, 50)) == "" and "2 are left" in meter.refusal(Cost(3, 10, 50))
    assert meter.spent.exceeded(budget, frames=3) == "max_frames"
    assert meter.spent.exceeded(budget, visual_tokens=11) == "max_visual_tokens"
    assert Spent().exceeded(budget) is None


def test_the_last_step_must_be_the_answer() -> None:
    meter = Meter(Budget(max_steps=2))
    assert meter.must_answer(Cost()) == ""
    meter.spent.steps = 1
    assert meter.must_answer(Cost()) == "max_steps"
    assert Meter(Budget(max_frames=3)).must_answer(Cost(4)) == "max_frames"


def test_a_context_without_room_for_an_answer_is_full() -> None:
    meter = Meter(Budget(max_context_tokens=100))
    meter.report(68)
    assert not meter.full
    meter.grow(1)
    assert meter.full


@given(st.lists(st.integers(0, 80), max_size=60), st.integers(0, 2000))
def test_fitting_cues_fit_and_are_all_of_them_when_those_fit(lengths: list[int], limit: int) -> None:
    cues = [Cue(start=i, end=i + 1, text="x" * n) for i, n in enumerate(lengths)]
    shown = fitting(cues, limit)
    total = sum(n + CUE_OVERHEAD for n in lengths)
    assert (shown == cues) if total <= limit else (sum(len(c.text) + CUE_OVERHEAD for c in shown) <= limit)
    assert shown == sorted(shown, key=lambda cue: cue.start)


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (12.0, "12"), (0.25, "0.25"), (1 / 3, "0.33"), (100.0, "100")])
def test_times_are_short(value: float, text: str) -> None:
    assert seconds(value) == text
