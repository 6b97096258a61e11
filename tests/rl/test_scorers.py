"""Late streams that ask no model: credit by the answer, gating, and how late streams are added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from closeup.agent.dialects.base import ToolCall
from closeup.agent.dialects.hermes import Hermes
from closeup.agent.dialects.love_r1 import ANSWER_PREFIX, ZOOM_PREFIX
from closeup.agent.episode import run_episodes
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import get_preset
from closeup.agent.task import Task
from closeup.agent.trajectory import Outcome, Trajectory
from closeup.rl.looks import close_looks_by_step, final_answer, judgeable
from closeup.rl.reward_config import build_rewards
from closeup.rl.reward_registry import RewardError
from closeup.rl.rewards import DEFAULT_REWARDS, is_correct
from closeup.rl.scorers import Gated, Unanswered, ZoomByAnswer, check_scorers, score_group

TINY = get_preset("tiny")


def say(name: str, **arguments: Any) -> str:
    return Hermes().write("", ToolCall(name, arguments))


ZOOM, AGAIN, SKIM = (
    say("zoom_clip", start=12, end=13),
    say("zoom_clip", start=2, end=4),
    say("resample_frames", num_frames=7),
)
RIGHT, WRONG = say("answer", choice="B"), say("answer", choice="A")


def played(task: Task, *scripts: Sequence[str], preset: Any = TINY, **settings: Any) -> list[Trajectory]:
    """A group: one rollout per script."""
    policy = ScriptedPolicy({f"{task.id}/{i}": script for i, script in enumerate(scripts)})
    rewards = settings.pop("rewards", DEFAULT_REWARDS)
    return run_episodes(
        [task], policy, preset=preset, rewards=rewards, judge=is_correct, rollouts=len(scripts), **settings
    )


def stream(trajectory: Trajectory, name: str) -> list[float | None]:
    return [step.rewards[name] for step in trajectory.steps]


# --- what a record says ----------------------------------------------------------------------------------------------


def test_close_looks_of_a_record_are_those_of_the_live_episode(task: Task) -> None:
    (trajectory,) = played(task, [ZOOM, SKIM, "?", ZOOM, AGAIN, RIGHT])
    looks = [[clip.start for clip in clips] for clips in close_looks_by_step(trajectory)]
    assert looks == [[12.0], [], [], [], [2.0], []], "a sparser resample, a fault and a refusal are no looks"
    assert [step.outcome for step in trajectory.steps] == ["ok", "ok", "no_call", "refused", "ok", "ok"]
    answer = final_answer(trajectory)
    assert answer is not None and (answer.choice, answer.text) == ("B", "7")
    assert judgeable(trajectory)


def test_the_close_look_that_a_preset_shows_by_itself_is_not_the_agents(task: Task) -> None:
    (trajectory,) = played(task, ["?", f"{ANSWER_PREFIX}\\boxed{{B}}"], preset=get_preset("love_r1"))
    assert trajectory.steps[0].clips and close_looks_by_step(trajectory) == [(), ()]


def test_episodes_that_did_not_end_by_themselves_are_not_judged(task: Task) -> None:
    (trajectory,) = played(task, [RIGHT])
    for outcome in (Outcome(failed=True, reason="gone"), Outcome(truncated=True, reason="cancelled")):
        ended = trajectory.model_copy(update={"outcome": outcome})
        assert not judgeable(ended) and final_answer(ended) is None
        assert ZoomByAnswer().score(ended) == [{"zoom_by_answer": None}]
    assert (
        not judgeable(Trajectory(id="none", task=task)) and close_looks_by_step(Trajectory(id="none", task=task)) == []
    )


# --- credit by the answer --------------------------------------------------------------------------------------------


def test_every_look_is_worth_what_the_answer_is(task: Task) -> None:
    right, wrong, none, blind = played(task, [ZOOM, "?", AGAIN, RIGHT], [ZOOM, WRONG], [ZOOM] + ["?"] * 9, [RIGHT])
    scored = score_group([right, wrong, none, blind], [ZoomByAnswer()])
    assert stream(scored[0], "zoom_by_answer") == [1.0, None, 1.0, None]
    assert stream(scored[1], "zoom_by_answer") == [0.0, None]
    assert stream(scored[2], "zoom_by_answer") == [0.0] + [None] * 7, "no answer came of it"
    assert stream(scored[3], "zoom_by_answer") == [None]
    assert stream(scored[0], "zoom") == stream(right, "zoom"), "the other streams are what they were"


def test_a_look_is_not_scored_where_the_answer_cannot_be(task: Task) -> None:
    (trajectory,) = played(task.model_copy(update={"answer": None}), [ZOOM, RIGHT])
    assert ZoomByAnswer("credit").score(trajectory) == [{"credit": None}, {"credit": None}]


def test_credit_by_degree(task: Task) -> None:
    free = task.model_copy(update={"options": (), "answer": "200", "answer_kind": "regression"})
    (trajectory,) = played(free, [ZOOM, say("answer", text="150")])
    assert ZoomByAnswer(by="score").score(trajectory) == [{"zoom_by_answer": 0.75}, {"zoom_by_answer": None}]
    assert ZoomByAnswer(by="correct").score(trajectory)[0] == {"zoom_by_answer": None}
    with pytest.raises(ValueError, match="'correct' or by 'score', got 'luck'"):
        ZoomByAnswer(by="luck")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("script", "steps"),
    [
        # format and accuracy, the latter by the answer for a zoom: LOVE-R1's reward of each step, 0 to 2
        ([f"{ZOOM_PREFIX}\\boxed{{[12, 14]}}", f"{ANSWER_PREFIX}\\boxed{{B}}"], [2.0, 2.0]),
        ([f"{ZOOM_PREFIX}\\boxed{{[12, 14]}}", f"{ANSWER_PREFIX}\\boxed{{A}}"], [1.0, 1.0]),
        ([f"{ZOOM_PREFIX}\\boxed{{[12, 14]}}", "It is B"], [1.0, 0.0]),
        ([f"{ANSWER_PREFIX}\\boxed{{B}}"], [2.0]),
        ([f"{ANSWER_PREFIX}\\boxed{{A}}"], [1.0]),
        ([f"{ZOOM_PREFIX}\\boxed{{[12.5, 14]}}"], [0.0]),
        ([f"{ZOOM_PREFIX}\\boxed{{[0, 20]}}"], [0.0]),  # longer than half of the video
        (["It is \\boxed{B}"], [0.0]),  # neither sentence: the loophole is closed
    ],
)
def test_the_rewards_of_love_r1_step_by_step(task: Task, script: list[str], steps: list[float]) -> None:
    chosen = build_rewards("love_r1")
    (trajectory,) = played(task, script, preset=get_preset("love_r1-grpo"), rewards=chosen.immediate)
    (scored,) = score_group([trajectory], chosen.scorers)
    assert [sum(value or 0.0 for value in step.rewards.values()) for step in scored.steps] == steps
    for step in scored.steps:
        assert None in (step.rewards["answer"], step.rewards["zoom_by_answer"]), "accuracy is counted once"


def test_the_published_format_reward_of_love_r1_has_to_be_asked_for(task: Task) -> None:
    for name, reward in (("love_r1", 0.0), ("love_r1-published", 1.0)):
        rewards = build_rewards(name).immediate
        (trajectory,) = played(task, ["It is B"], preset=get_preset("love_r1-grpo"), rewards=rewards)
        assert trajectory.steps[0].rewards["format"] == reward


# --- gating ----------------------------------------------------------------------------------------------------------


def test_a_gated_stream_is_paid_where_the_answer_is_right(task: Task) -> None:
    right, wrong = score_group(played(task, [ZOOM, RIGHT], [ZOOM, WRONG]), [Gated("zoom")])
    assert stream(right, "gated_zoom") == [1.0, None] and stream(wrong, "gated_zoom") == [0.0, None]


def test_gating_a_stream_that_is_not_there(task: Task) -> None:
    (trajectory,) = played(task, [RIGHT])
    with pytest.raises(
        ValueError, match="'zoom_iou', which 'mine' gates, is not there; the steps have answer, format, zoom"
    ):
        Gated("zoom_iou", "mine").score(trajectory)


def test_a_later_scorer_sees_the_streams_of_an_earlier_one(task: Task) -> None:
    (scored,) = score_group(played(task, [ZOOM, RIGHT]), [ZoomByAnswer(), Gated("zoom_by_answer")])
    assert stream(scored, "gated_zoom_by_answer") == [1.0, None]


# --- adding scores ---------------------------------------------------------------------------------------------------


def test_failed_episodes_are_left_alone(task: Task) -> None:
    sound, broken = played(task, [ZOOM, RIGHT], [ZOOM])
    assert broken.outcome.failed
    scored = score_group([broken, sound], [ZoomByAnswer()])
    assert scored[0] == broken and stream(scored[1], "zoom_by_answer") == [1.0, None]


def test_scorers_that_give_the_wrong_number_of_anything_are_refused(task: Task) -> None:
    class Short:
        def score(self, trajectory: Trajectory) -> list[dict[str, float | None]]:
            return []

    class Fewer(Short):
        def score_many(self, trajectories: Sequence[Trajectory]) -> list[list[dict[str, float | None]]]:
            return []

    group = played(task, [RIGHT])
    with pytest.raises(ValueError, match="Short scored 0 steps of a trajectory that has 1"):
        score_group(group, [Short()])
    with pytest.raises(ValueError, match="Fewer scored 0 of 1 trajectories"):
        score_group(group, [Fewer()])
    with pytest.raises(ValueError, match="a second time"):
        score_group(group, [ZoomByAnswer("zoom")])


def test_a_scorer_that_cannot_work_is_found_out_at_the_start() -> None:
    class Down:
        name = "mood"

        def check(self) -> None:
            raise OSError("nobody listens")

        def score(self, trajectory: Trajectory) -> list[dict[str, float | None]]:
            raise AssertionError

    check_scorers([ZoomByAnswer()])  # has nothing to check
    with pytest.raises(RewardError, match="the stream 'mood' cannot be scored: nobody listens"):
        check_scorers([ZoomByAnswer(), Down()])
    assert Unanswered([Down(), ZoomByAnswer()]).since() == {}  # they ask nobody
