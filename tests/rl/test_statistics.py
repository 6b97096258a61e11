from __future__ import annotations

from typing import Any

import pytest

from closeup.agent.task import Task
from closeup.agent.trajectory import CallRecord, ClipRecord, Outcome, StepRecord, Trajectory, VideoRecord
from closeup.rl.statistics import summarise, wilson, zoom_hit
from closeup.tools.video.clip import Clip

VIDEO = VideoRecord(path="a.mp4", duration=80.0, width=112, height=112, fps=10, codec="h264")


def episode(
    name: str,
    *,
    correct: bool | None,
    window: tuple[float, float] | None = (12, 14),
    kind: str = "digit",
    **outcome: Any,
) -> Trajectory:
    clips: dict[str, ClipRecord] = {}
    steps = []
    if window is not None:
        clip = Clip(video="v", start=window[0], end=window[1], num_frames=4, pixels=100)
        clips[clip.key] = ClipRecord(clip=clip, times=(12.0,), size=(28, 28), tokens=2)
        steps.append(StepRecord(call=CallRecord(name="zoom_clip", arguments={}), clips=(clip.key,)))
    steps.append(StepRecord(call=CallRecord(name="answer", arguments={})))
    return Trajectory(
        id=name,
        task=Task(id=name, question="?", kind=kind, evidence=((13, 15),)),
        videos={"v": VIDEO},
        steps=tuple(steps),
        clips=clips,
        outcome=Outcome(**{"terminated": True, "correct": correct, "steps": len(steps), "visual_tokens": 40} | outcome),
    )


def test_wilson_equals_published_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I: 81/263 and 0/20
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_figures_by_kind_and_overall() -> None:
    summary = summarise(
        [
            episode("a", correct=True),
            episode("b", correct=False, window=(40, 42)),
            episode("c", correct=True, kind="count", window=None),
        ]
    )
    assert summary.overall.n == 3
    assert summary.overall.accuracy == pytest.approx(2 / 3)
    assert summary.by_kind["digit"].accuracy == 0.5
    assert summary.by_kind["digit"].hit_rate == 0.5
    assert summary.by_kind["digit"].calls == {"answer": 1.0, "zoom_clip": 1.0}
    assert summary.overall.steps == pytest.approx((2 + 2 + 1) / 3)


def test_a_broken_episode_is_counted_apart_and_never_as_wrong() -> None:
    summary = summarise([episode("a", correct=True), episode("b", correct=None, failed=True, terminated=False)])
    assert (summary.overall.n, summary.overall.failed, summary.overall.accuracy) == (1, 1, 1.0)


def test_an_episode_cut_short_is_wrong_and_counted() -> None:
    summary = summarise([episode("a", correct=False, terminated=False, truncated=True)])
    assert (summary.overall.accuracy, summary.overall.truncated) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("window", "hit"),
    [((12, 14), True), ((5, 15), True), ((5, 15.5), False), ((15, 16), False), ((40, 42), False)],
)
def test_a_hit_overlaps_the_evidence_and_is_at_most_an_eighth_long(window: tuple[float, float], hit: bool) -> None:
    assert zoom_hit(episode("a", correct=True, window=window)) is hit


def test_without_evidence_there_is_no_hit_to_speak_of() -> None:
    trajectory = episode("a", correct=True)
    assert zoom_hit(trajectory.model_copy(update={"task": Task(question="?")})) is None
