"""Immediate streams beside the default ones: measures of close looks, cost, and the rules of single papers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from closeup.agent.environment import VideoQAEnv
from closeup.agent.preset import get_preset
from closeup.agent.scoring import StepFacts
from closeup.agent.task import Task
from closeup.rl.rewards import (
    answer_score_reward,
    best_iou,
    cost_reward,
    format_thought_reward,
    love_r1_accuracy,
    love_r1_format_published,
    window_recall,
    zoom_gain_reward,
    zoom_iou_reward,
    zoom_overlap_reward,
    zoom_recall_reward,
)
from closeup.tools.base import Answer
from closeup.tools.video.clip import Clip

LOOKS = (zoom_overlap_reward, zoom_iou_reward, zoom_recall_reward, zoom_gain_reward)


def task(**changes: Any) -> Task:
    fields: dict[str, Any] = {
        "videos": (Path("a.mp4"),),
        "question": "Which digit?",
        "options": ("3", "7"),
        "answer": "7",
    }
    return Task(**(fields | {"evidence": ((10.0, 20.0), (30.0, 40.0))} | changes))


def clip(start: float, end: float) -> Clip:
    return Clip(video="film", start=start, end=end, num_frames=4, placement="left", pixels=12544)


def facts(*looks: tuple[float, float], earlier: tuple[tuple[float, float], ...] = (), **changes: Any) -> StepFacts:
    fields: dict[str, Any] = {"task": task(), "outcome": "ok", "durations": {"film": 80.0}}
    fields |= {"close": tuple(clip(*look) for look in looks), "earlier": tuple(clip(*look) for look in earlier)}
    return StepFacts(**(fields | changes))


@pytest.mark.parametrize(
    ("looks", "overlap", "iou", "recall"),
    [
        ([(10, 20)], 1.0, 1.0, 0.5),
        ([(15, 25)], 1.0, 1 / 3, 0.25),
        ([(0, 80)], 1.0, 1 / 8, 1.0),
        ([(20, 30)], 0.0, 0.0, 0.0),
        ([(19.9, 20)], 1.0, 0.01, 0.005),  # a moment is enough for LOVE-R1's rule, and for no other
        ([(10, 15), (30, 40)], 1.0, 1.0, 0.75),
    ],
)
def test_measures_of_a_look(looks: list[tuple[float, float]], overlap: float, iou: float, recall: float) -> None:
    step = facts(*looks)
    assert zoom_overlap_reward(step) == overlap
    assert zoom_iou_reward(step) == pytest.approx(iou)
    assert zoom_recall_reward(step) == pytest.approx(recall)
    assert zoom_gain_reward(step) == pytest.approx(iou)
    assert zoom_gain_reward(step, measure="recall") == pytest.approx(recall)


def test_a_look_that_is_no_better_than_the_best_so_far_gains_nothing() -> None:
    step = facts((15, 25), earlier=((10, 20),))
    assert zoom_gain_reward(step) == 0 and zoom_gain_reward(step, measure="recall") == 0
    assert zoom_gain_reward(facts((30, 40), earlier=((10, 20),)), measure="recall") == pytest.approx(0.5)
    assert zoom_gain_reward(facts((10, 20), earlier=((15, 25),))) == pytest.approx(2 / 3)


@pytest.mark.parametrize("reward", LOOKS)
def test_measures_say_nothing_where_nothing_is_known(reward: Any) -> None:
    assert reward(facts()) is None
    assert reward(facts((10, 20), task=task(evidence=()))) is None
    assert reward(facts((10, 20), task=task(videos=(Path("a.mp4"), Path("b.mp4"))))) is None


def test_an_unknown_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="'iou' or 'recall', got 'dice'"):
        zoom_gain_reward(facts((1, 2)), measure="dice")  # type: ignore[arg-type]


WINDOW = st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda w: (float(w[0]), float(w[0] + w[1])))


@given(st.lists(WINDOW, min_size=1, max_size=5))
def test_gains_add_up_to_the_final_best(looks: list[tuple[float, float]]) -> None:
    gold = task().evidence
    for measure, best in (("iou", best_iou), ("recall", window_recall)):
        gains = [
            zoom_gain_reward(facts(look, earlier=tuple(looks[:i])), measure=measure)  # type: ignore[arg-type]
            for i, look in enumerate(looks)
        ]
        assert all(gain is not None and gain >= -1e-12 for gain in gains)
        assert sum(gain or 0.0 for gain in gains) == pytest.approx(best(gold, looks))


def test_graded_answers_follow_the_rules_of_the_answer_stream() -> None:
    free = task(options=(), answer="the red car", answer_kind="text")
    assert answer_score_reward(facts(task=free, answer=Answer(None, "red car"))) == pytest.approx(0.7555555555)
    assert answer_score_reward(facts(task=free)) is None
    assert answer_score_reward(facts(task=free, forced=True, outcome="no_call")) == 0.0
    assert answer_score_reward(facts(answer=Answer("B", "7"))) == 1.0


def test_cost_is_what_the_step_showed() -> None:
    step = facts(frames=16, visual_tokens=2048)
    assert cost_reward(step) == -1.0
    assert cost_reward(step, per_step=0, per_frame=0.5) == -8.0
    assert cost_reward(step, per_step=1, per_visual_token=0.001) == pytest.approx(-3.048)
    assert cost_reward(facts(outcome="refused")) == -1.0, "a step that failed is a step"


def test_the_environment_tells_what_a_step_cost_and_said(make_video: Any) -> None:
    asked = Task(videos=(make_video(seconds=20, size=(112, 112)),), question="?", options=("3", "7"), answer="7")
    seen: list[StepFacts] = []

    def spy(facts: StepFacts) -> None:
        seen.append(facts)

    with VideoQAEnv(get_preset("tiny"), rewards={"spy": spy}) as env:
        env.reset(asked)
        before = env.spent
        zoom = '<tool_call>{"name": "zoom_clip", "arguments": {"start": 2, "end": 4}}</tool_call>'
        env.step(f"<think>too small</think>{zoom}")
        env.step(zoom)
        after = env.spent
    assert (seen[0].frames, seen[0].visual_tokens) == (
        after.frames - before.frames,
        after.visual_tokens - before.visual_tokens,
    )
    assert seen[0].frames == 4 and seen[0].thought == "too small"
    assert (seen[1].outcome, seen[1].frames, seen[1].visual_tokens, seen[1].thought) == ("refused", 0, 0, "")


# --- the rules of single papers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "thought", "reward"),
    [("ok", "red", 1.0), ("ok", "", 0.0), ("no_call", "red", 0.0), ("refused", "r", 0.0)],
)
def test_a_format_reward_that_asks_for_a_thought(outcome: str, thought: str, reward: float) -> None:
    assert format_thought_reward(facts(outcome=outcome, thought=thought)) == reward


GROUNDING = task(answer=None)


@pytest.mark.parametrize(
    ("step", "accuracy"),
    [
        # answer samples: the letter decides; a zoom waits for the answer it leads to; evidence is not looked at
        (facts(answer=Answer("B", "7")), 1.0),
        (facts(answer=Answer("A", "3")), 0.0),
        (facts((10, 20)), None),
        (facts((60, 62)), None),
        (facts(outcome="refused"), 0.0),
        (facts(outcome="broken_call"), 0.0),
        (facts(outcome="no_call"), 0.0),
        (facts(outcome="no_call", forced=True), 0.0),
        # grounding samples: 1 for any overlap
        (facts((19.9, 25), task=GROUNDING), 1.0),
        (facts((20, 25), task=GROUNDING), 0.0),
        (facts(outcome="refused", task=GROUNDING), 0.0),
        (facts(answer=Answer("B", "7"), task=GROUNDING), None),
    ],
)
def test_love_r1_accuracy(step: StepFacts, accuracy: float | None) -> None:
    assert love_r1_accuracy(step) == accuracy


@pytest.mark.parametrize(
    ("outcome", "reward"),
    [("ok", 1.0), ("no_call", 1.0), ("broken_call", 0.0), ("refused", 0.0), ("several_calls", 0.0)],
)
def test_the_published_loophole_is_there_by_name_alone(outcome: str, reward: float) -> None:
    """A message with neither sentence is the outcome "no_call" of the dialect love_r1, and keeps its reward there."""
    assert love_r1_format_published(facts(outcome=outcome)) == reward
