"""The rewards of a group as arrays: what counts, what was not scored, and what the logs say of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from closeup.agent.dialects.love_r1 import ANSWER_PREFIX, ZOOM_PREFIX
from closeup.agent.live import CANCELLED
from closeup.agent.task import Task
from closeup.agent.trajectory import CallRecord, Outcome, StartRecord, StepRecord, Trajectory
from closeup.rl.credit import (
    GroupRewards,
    as_metrics,
    group_rewards,
    masked_second_zoom,
    ran,
    stream_statistics,
    without_truncated,
)

Rewards = dict[str, float | None]
TASK = Task(id="red", question="Which digit?", options=("3", "7"), answer="7")
ANSWERED = Outcome(terminated=True, answer="7", choice="B")
CUT = Outcome(truncated=True, reason="max_steps: it ran out of steps")


def episode(name: str, *rewards: Rewards, outcome: Outcome = ANSWERED, task: Task = TASK, **rest: Any) -> Trajectory:
    steps = tuple(StepRecord(rewards=one, call=CallRecord(name="zoom_clip", arguments={})) for one in rewards)
    return Trajectory(id=name, task=task, steps=steps, outcome=outcome, **rest)


FIRST = episode("red/0", {"format": 1.0, "zoom": 0.5, "answer": None}, {"format": 1.0, "zoom": None, "answer": 1.0})
SHORT = episode("red/1", {"format": 0.0, "zoom": None, "answer": 0.0})


def test_rewards_lie_by_stream_rollout_and_step_and_unscored_is_nan() -> None:
    group = group_rewards([FIRST, SHORT])
    assert group.streams == ("answer", "format", "zoom")
    nan = math.nan
    np.testing.assert_equal(group.stream("format"), [[1, 1], [0, nan]])
    np.testing.assert_equal(group.stream("zoom"), [[0.5, nan], [nan, nan]])
    np.testing.assert_equal(group.stream("answer"), [[nan, 1], [0, nan]])
    np.testing.assert_equal(group.reached, [[True, True], [True, False]])
    assert group.values.dtype == np.float64 and group.values.shape == (3, 2, 2)


def test_streams_are_those_asked_for_in_that_order() -> None:
    group = group_rewards([FIRST, SHORT], ["zoom", "answer"])
    assert group.streams == ("zoom", "answer")
    np.testing.assert_equal(group.values[1], [[math.nan, 1], [0, math.nan]])


@pytest.mark.parametrize(
    ("outcome", "counts"),
    [
        (ANSWERED, True),
        (CUT, True),
        (Outcome(failed=True, reason="the decoder broke"), False),
        (Outcome(truncated=True, failed=True, reason="scoring failed"), False),
        (Outcome(truncated=True, reason=CANCELLED), False),
    ],
)
def test_which_episodes_count(outcome: Outcome, counts: bool) -> None:
    trajectory = episode("red/0", {"format": 1.0}, {"format": 0.5}, outcome=outcome)
    group = group_rewards([trajectory, SHORT])
    assert ran(trajectory) == counts
    assert group.reached[0].tolist() == [counts, counts]
    assert np.isnan(group.stream("format")[0]).all() != counts
    assert group.reached[1].tolist() == [True, False]


def test_what_truncated_episodes_earned_counts_and_nothing_is_learnt_from_them() -> None:
    trajectories = [FIRST, episode("red/1", {"format": 1.0, "zoom": None, "answer": 0.0}, outcome=CUT)]
    group = group_rewards(trajectories)
    assert group.reached.tolist() == [[True, True], [True, False]]
    learnt = without_truncated(group, trajectories)
    assert learnt.streams == group.streams and learnt.reached.tolist() == [[True, True], [False, False]]
    np.testing.assert_equal(learnt.values[:, 0], group.values[:, 0])
    assert np.isnan(learnt.values[:, 1]).all()


def test_a_masked_step_does_not_count_and_its_neighbours_do() -> None:
    group = group_rewards([FIRST, SHORT], masked=lambda t: [0] if t.id == "red/0" else [])
    assert group.reached.tolist() == [[False, True], [True, False]]
    np.testing.assert_equal(group.values[:, 0, 0], [math.nan] * 3)
    np.testing.assert_equal(group.stream("answer")[0], [math.nan, 1])


def test_a_group_in_which_everything_failed_is_empty_and_has_its_streams() -> None:
    broken = Outcome(failed=True, reason="no such file")
    group = group_rewards([episode("red/0", outcome=broken), episode("red/1", outcome=broken)], ["format", "answer"])
    assert group.values.shape == (2, 2, 0) and group.reached.shape == (2, 0)


@pytest.mark.parametrize(
    ("trajectories", "options", "words"),
    [
        ([], {}, "at least one"),
        ([FIRST, FIRST], {}, "twice"),
        ([FIRST, episode("blue/0", task=TASK.model_copy(update={"id": "blue"}))], {}, "not of one group"),
        ([FIRST, episode("red/1", start=StartRecord(assistant_prefix="I"))], {}, "not of one group"),
        ([FIRST, SHORT], {"streams": ["zoom", "zoo"]}, r"\['zoo'\].*'answer', 'format', 'zoom'"),
        ([FIRST, SHORT], {"streams": ["zoom", "zoom"]}, "named once"),
        ([FIRST, SHORT], {"masked": lambda t: [1]}, r"\[1\] of trajectory 'red/1', which has 1 steps"),
    ],
)
def test_what_is_no_group_is_refused(trajectories: list[Trajectory], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        group_rewards(trajectories, options.pop("streams", None), **options)


@pytest.mark.parametrize(
    ("values", "reached", "words"),
    [
        ([[1.0, 2.0]], [[True, True]], "streams, rollouts, steps"),
        ([[[1.0]], [[1.0]]], [[True]], "streams, rollouts, steps"),
        (np.zeros((1, 0, 2)), np.zeros((0, 2)), "at least one rollout"),
        ([[[1.0, math.inf]]], [[True, True]], "finite"),
        ([[[1.0, 0.0]]], [[True, False]], "step 1 of rollout 0, which does not count"),
    ],
)
def test_arrays_that_contradict_each_other_are_refused(values: Any, reached: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GroupRewards(("format",), np.array(values), np.array(reached))


def test_a_group_cannot_be_changed_nor_its_source_change_it() -> None:
    values, reached = np.ones((1, 2, 2)), np.ones((2, 2), bool)
    group = GroupRewards(("format",), values, reached)
    values[:] = 7
    assert group.values.max() == 1
    with pytest.raises(ValueError, match="read-only"):
        group.values[0, 0, 0] = 7
    with pytest.raises(ValueError, match=r"no reward stream 'zoo'; it has \['format'\]"):
        group.stream("zoo")


ZOOMS = f"{ZOOM_PREFIX}There. "


@pytest.mark.parametrize(
    ("said", "answer", "gold", "masked"),
    [
        ([("ok", ZOOMS), ("ok", ZOOMS)], None, "7", {0, 1}),  # two looks where the second had to answer
        ([("ok", ZOOMS)] * 3, None, "7", {1, 2}),
        ([("ok", ZOOMS), ("broken_call", ZOOMS)], None, "7", {0, 1}),  # its mask does not ask whether it could be read
        ([("ok", ZOOMS), ("refused", ZOOMS)], None, "7", {0, 1}),
        ([("ok", ZOOMS), ("unfinished", ZOOMS)], None, "7", {0, 1}),
        ([("refused", ZOOMS), ("ok", ZOOMS)], None, "7", {0, 1}),
        ([("ok", ZOOMS), ("ok", ANSWER_PREFIX)], "7", "7", set()),  # a look and an answer
        ([("ok", ZOOMS), ("broken_call", ANSWER_PREFIX)], None, "7", set()),  # wrong, not unknown
        ([("ok", ZOOMS), ("no_call", f"So: {ZOOM_PREFIX}")], None, "7", set()),
        ([("ok", ZOOMS)], None, "7", set()),
        ([("broken_call", ZOOMS)], None, "7", set()),
        ([("ok", ZOOMS), ("ok", ZOOMS)], None, None, set()),  # a grounding sample: looking is the task
        ([("ok", "<tool_call>"), ("ok", "<tool_call>")], None, "7", {0, 1}),  # a dialect without sentences
        ([("ok", "<tool_call>"), ("refused", "<tool_call>")], None, "7", set()),
    ],
)
def test_love_r1_masks_a_second_look_where_the_answer_was_due(
    said: list[tuple[str, str]], answer: str | None, gold: str | None, masked: set[int]
) -> None:
    calls = [CallRecord(name="answer" if text == ANSWER_PREFIX else "zoom_clip", arguments={}) for _, text in said]
    steps = tuple(StepRecord(outcome=o, text=text, call=call) for (o, text), call in zip(said, calls, strict=True))
    task = Task(question="Which digit?", options=("3", "7"), answer=gold)
    outcome = Outcome(terminated=answer is not None, truncated=answer is None, answer=answer)
    assert masked_second_zoom(Trajectory(id="a", task=task, steps=steps, outcome=outcome)) == masked


def test_statistics_per_stream_and_step() -> None:
    nan = math.nan
    one = GroupRewards(
        ("zoom",),
        np.array([[[1, 3], [2, nan], [3, nan]]]),
        np.array([[True, True], [True, True], [True, False]]),
    )
    two = GroupRewards(("zoom",), np.array([[[5.0], [5.0], [nan]]]), np.array([[True], [True], [True]]))
    found = stream_statistics([one, two])["zoom"]
    np.testing.assert_allclose(found.mean, [16 / 5, 3])
    np.testing.assert_allclose(found.std, [(1 + 0) / 2, nan])  # 1 and 0 within the groups; nothing at step 1
    np.testing.assert_allclose(found.zero_std, [1 / 2, nan])
    np.testing.assert_allclose(found.unscored, [1 / 6, 1 / 2])
    assert found.silent == pytest.approx(1 / 6)  # one of six episodes has no score at any step
    metrics = as_metrics({"zoom": found})
    assert metrics["rewards/zoom/frac_episodes_unscored"] == found.silent
    assert metrics["rewards/zoom/step0/mean"] == pytest.approx(3.2)
    assert metrics["rewards/zoom/step1/frac_unscored"] == 0.5
    assert "rewards/zoom/step1/std" not in metrics
    assert all(math.isfinite(value) for value in metrics.values())


def test_statistics_of_groups_with_other_streams_and_of_nothing() -> None:
    one = GroupRewards(("zoom",), np.array([[[1.0], [0.0]]]), np.ones((2, 1), bool))
    two = GroupRewards(("answer",), np.array([[[1.0, 0.0]]]), np.ones((1, 2), bool))
    found = stream_statistics([one, two])
    assert sorted(found) == ["answer", "zoom"]
    np.testing.assert_allclose(found["zoom"].mean, [0.5, math.nan])
    np.testing.assert_allclose(found["answer"].mean, [1, 0])
    assert stream_statistics([]) == {}
    broken = GroupRewards(("zoom",), np.zeros((1, 1, 0)), np.zeros((1, 0), bool))
    assert as_metrics(stream_statistics([broken])) == {}
