from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from closeup.agent.dialects.base import FormatOutcome
from closeup.agent.scoring import StepFacts
from closeup.agent.task import Task
from closeup.agent.trajectory import CallRecord, ClipRecord, StepRecord, Trajectory, VideoRecord
from closeup.rl.rewards import (
    DEFAULT_REWARDS,
    answer_reward,
    best_iou,
    format_reward,
    is_correct,
    normalise,
    number_in,
    window_recall,
    zoom_reward,
)
from closeup.rl.statistics import is_hit, zoom_hit
from closeup.tools.base import Answer
from closeup.tools.video.clip import Clip

DIGITS = ("3", "7", "1", "9")


def task(**changes: Any) -> Task:
    fields: dict[str, Any] = {"videos": (Path("a.mp4"),), "question": "Which digit?", "options": DIGITS, "answer": "7"}
    return Task(**(fields | {"evidence": ((12.0, 14.0),)} | changes))


def clip(start: float, end: float, video: str = "film") -> Clip:
    return Clip(video=video, start=start, end=end, num_frames=4, placement="left", pixels=12544)


def facts(**changes: Any) -> StepFacts:
    fields: dict[str, Any] = {"task": task(), "outcome": "ok", "durations": {"film": 80.0}}
    return StepFacts(**(fields | changes))


@pytest.mark.parametrize("outcome", get_args(FormatOutcome))
def test_format_is_one_for_a_call_that_ran_and_zero_for_everything_else(outcome: FormatOutcome) -> None:
    assert format_reward(facts(outcome=outcome)) == (1.0 if outcome == "ok" else 0.0)


@pytest.mark.parametrize(
    ("windows", "reward"),
    [
        ([(12, 13)], 1.0),
        ([(5, 12.5)], 1.0),
        ([(4.5, 14.5)], 1.0),  # exactly an eighth of 80 s
        ([(4, 14.5)], 0.0),  # overlaps, but too long
        ([(0, 80)], 0.0),
        ([(14, 16)], 0.0),  # only touches
        ([(30, 32), (13.9, 15)], 1.0),
        ([(30, 32)], 0.0),
    ],
)
def test_zoom_rewards_a_short_window_that_overlaps_the_evidence(
    windows: list[tuple[float, float]], reward: float
) -> None:
    assert zoom_reward(facts(close=tuple(clip(*window) for window in windows))) == reward


def test_zoom_says_nothing_where_nothing_is_known() -> None:
    look = (clip(12, 13),)
    assert zoom_reward(facts()) is None
    assert zoom_reward(facts(clips=look)) is None  # a resample no denser than the overview
    assert zoom_reward(facts(close=look, task=task(evidence=()))) is None
    assert zoom_reward(facts(close=look, task=task(videos=(Path("a.mp4"), Path("b.mp4"))))) is None


def test_a_clip_of_unknown_length_is_a_bug_not_a_miss() -> None:
    with pytest.raises(ValueError, match="no duration is known for video 'other'"):
        zoom_reward(facts(close=(clip(12, 13, video="other"),)))


def test_answer_rewards_the_answer_and_says_nothing_before_it() -> None:
    assert answer_reward(facts(answer=Answer("B", "7"))) == 1.0
    assert answer_reward(facts(answer=Answer("A", "3"))) == 0.0
    assert answer_reward(facts()) is None
    assert answer_reward(facts(answer=Answer("B", "7"), task=task(answer=None))) is None


def test_a_forced_step_without_an_answer_is_wrong() -> None:
    assert answer_reward(facts(forced=True, outcome="no_call")) == 0.0
    assert answer_reward(facts(forced=True, outcome="no_call", task=task(answer=None))) is None


def test_the_default_streams() -> None:
    right = facts(answer=Answer("B", "7"), close=(clip(12, 13),))
    assert {name: reward(right) for name, reward in DEFAULT_REWARDS.items()} == {"format": 1, "zoom": 1, "answer": 1}


FREE: dict[str, Any] = {"options": (), "answer": "At the door."}


@pytest.mark.parametrize(
    ("changes", "text", "correct"),
    [
        ({}, "7", True),
        ({}, "3", False),
        ({"answer_kind": "numeric"}, "7", True),  # options are compared exactly, whatever the kind
        ({"answer": None}, "7", None),
        ({**FREE, "answer_kind": "text"}, ' "at  the DOOR" ', True),
        ({**FREE, "answer_kind": "choice"}, "at the door", True),
        ({**FREE, "answer_kind": "text"}, "at a door", False),
        ({**FREE, "answer_kind": "text"}, "at the door" + " " * 20_000, False),
        ({**FREE, "answer_kind": "numeric", "answer": "1200"}, "about 1,200 m", True),
        ({**FREE, "answer_kind": "numeric", "answer": "0.5"}, ".50", True),
        ({**FREE, "answer_kind": "numeric", "answer": "3"}, "3 or 4", False),
        ({**FREE, "answer_kind": "numeric", "answer": "3"}, "three", False),
        ({**FREE, "answer_kind": "numeric", "answer": "some"}, "3", None),
        ({**FREE, "answer_kind": "ocr"}, "at the door", None),
        ({**FREE, "answer_kind": "regression", "answer": "3"}, "3", None),
        ({**FREE, "answer_kind": "grounding", "answer": "3 to 4"}, "3 to 4", None),
    ],
)
def test_what_counts_as_correct(changes: dict[str, Any], text: str, correct: bool | None) -> None:
    asked = task(**changes)
    choice = "ABCD"[asked.options.index(text)] if asked.options else None
    assert is_correct(asked, Answer(choice, text)) is correct


def test_no_answer_is_wrong_where_an_answer_can_be_judged() -> None:
    assert is_correct(task(), None) is False
    assert is_correct(task(**FREE, answer_kind="text"), None) is False
    assert is_correct(task(options=(), answer="3", answer_kind="numeric"), None) is False
    assert is_correct(task(answer=None), None) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-3", -3.0), ("\N{MINUS SIGN}3", -3.0), ("clip-3", 3.0), ("1e3", 1000.0), ("1,234,567.5 km", 1234567.5),
        ("3.", 3.0), ("\N{FULLWIDTH DIGIT SEVEN}", 7.0), ("", None), ("none", None), ("1 2", None), ("10-12", None),
        ("1e999", None), ("E", None), ("1" * 40, None),
    ],
)  # fmt: skip
def test_the_one_number_in_a_text(text: str, value: float | None) -> None:
    assert number_in(text) == value


@given(st.text(max_size=200) | st.text(alphabet="0123456789,.eE+-", max_size=200))
def test_any_text_can_be_compared(text: str) -> None:
    number_in(text)
    assert normalise(normalise(text)) == normalise(text) or not text.isascii()
    if text.strip():
        free = task(options=(), answer=text, answer_kind="text")
        assert is_correct(free, Answer(None, text)) is True


def test_recall_counts_gold_seconds_once() -> None:
    gold = [(10.0, 20.0), (30.0, 40.0)]
    assert window_recall(gold, []) == 0
    assert window_recall(gold, [(0, 15), (12, 15)]) == pytest.approx(0.25)
    assert window_recall(gold, [(0, 100)]) == 1
    assert window_recall([(5, 5), (9, 9)], [(4, 6)]) == 0.5
    with pytest.raises(ValueError, match="at least one gold window"):
        window_recall([], [(1, 2)])


def test_best_iou_is_the_best_pair() -> None:
    gold = [(10.0, 20.0), (30.0, 40.0)]
    assert best_iou(gold, [(0, 5), (15, 25), (30, 38)]) == pytest.approx(0.8)
    assert best_iou(gold, []) == best_iou([], gold) == 0


WINDOW = st.tuples(st.integers(0, 400), st.integers(0, 60)).map(lambda w: (w[0] / 10, (w[0] + w[1]) / 10))


@given(gold=st.lists(WINDOW, min_size=1, max_size=4), watched=st.lists(WINDOW, max_size=4))
def test_recall_and_iou_agree_on_nothing_and_everything(
    gold: list[tuple[float, float]], watched: list[tuple[float, float]]
) -> None:
    recall, iou = window_recall(gold, watched), best_iou(gold, watched)
    assert 0 <= recall <= 1 and 0 <= iou <= 1
    assert window_recall(gold, [*watched, *gold]) == pytest.approx(1)
    assert recall <= window_recall(gold, [*watched, (0, 50)]) + 1e-12
    if iou > 0:
        assert recall > 0


@given(window=WINDOW, gold=st.lists(WINDOW, min_size=1, max_size=3))
def test_the_reward_and_the_reported_hit_rate_mean_the_same(
    window: tuple[float, float], gold: list[tuple[float, float]]
) -> None:
    """`closeup eval` recomputes hits from the record; training sees them as rewards."""
    look = clip(*window)
    record = Trajectory(
        id="t",
        task=task(evidence=tuple(gold)),
        videos={"film": VideoRecord(path="a.mp4", duration=46.5, width=112, height=112, fps=10, codec="h264")},
        steps=(StepRecord(call=CallRecord(name="zoom_clip", arguments={}), clips=(look.key,)),),
        clips={look.key: ClipRecord(clip=look, times=look.times(), size=(112, 112), tokens=32)},
    )
    step = facts(task=task(evidence=tuple(gold)), close=(look,), durations={"film": 46.5})
    assert zoom_reward(step) == float(is_hit(window, gold, 46.5)) == float(bool(zoom_hit(record)))
