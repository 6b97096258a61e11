"""Cohorts: while one is written for, another's tools run and its frames are decoded; the results stay the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from closeup.agent.environment import VideoQAEnv
from closeup.agent.episode import run_episodes
from closeup.agent.events import Event, Finished, Opened
from closeup.agent.policies.base import Completion, Request
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import Preset
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory
from closeup.tools.answer import AnswerTool
from closeup.tools.base import Tool, ToolArgs, ToolContext, ToolResult
from closeup.tools.video import Video

Say = Callable[..., str]


@pytest.fixture
def tasks(task: Task) -> list[Task]:
    return [task.model_copy(update={"id": name}) for name in "abcde"]


def timeless(trajectory: Trajectory) -> Trajectory:
    steps = tuple(s.model_copy(update={"generate_seconds": 0.0, "tool_seconds": 0.0}) for s in trajectory.steps)
    outcome = trajectory.outcome.model_copy(update={"seconds": 0.0})
    return trajectory.model_copy(update={"steps": steps, "outcome": outcome})


class Batches(ScriptedPolicy):
    """Keeps which episodes were written for together."""

    def __init__(self, script: Any) -> None:
        super().__init__(script)
        self.batches: list[tuple[str, ...]] = []

    def generate(self, requests: Sequence[Request], **kwargs: Any) -> list[Completion]:
        self.batches.append(tuple(request.episode_id for request in requests))
        return super().generate(requests, **kwargs)


@pytest.mark.parametrize("cohorts", [2, 3, 9])
@pytest.mark.parametrize("max_live", [1, 3, 40])
def test_cohorts_change_nothing_but_who_is_written_for_together(
    preset: Preset, tasks: list[Task], say: Say, cohorts: int, max_live: int
) -> None:
    answer = say("answer", choice="B", evidence=[[12, 14]], thought="red 7, B")
    zoom = say("zoom_clip", start=12, end=13)
    script = {"a": [zoom, answer], "b": [answer], "c": ["?"] * 8, "d": [zoom] * 8, "e": [zoom, "?", answer]}
    plain = run_episodes(tasks, ScriptedPolicy(script), preset=preset, rollouts=2, seed=3)
    policies = [Batches(script), Batches(script)]
    runs = [
        run_episodes(tasks, policy, preset=preset, rollouts=2, seed=3, max_live=max_live, cohorts=cohorts)
        for policy in policies
    ]
    assert [timeless(t) for t in runs[0]] == [timeless(t) for t in runs[1]] == [timeless(t) for t in plain]
    assert policies[0].batches == policies[1].batches  # not a matter of timing
    assert max(map(len, policies[0].batches)) <= max_live


def test_rollouts_of_a_task_share_a_cohort_and_tasks_are_dealt(preset: Preset, tasks: list[Task], say: Say) -> None:
    policy = Batches([say("answer", choice="B")])
    run_episodes(tasks[:3], policy, preset=preset, rollouts=2, cohorts=2)
    assert policy.batches == [("a/0", "a/1", "c/0", "c/1"), ("b/0", "b/1")]


class SlowArgs(ToolArgs):
    pass


class Slow(Tool[SlowArgs]):
    """Wait until somebody is written for."""

    writing = threading.Event()
    running = threading.Event()
    seen: list[bool] = []

    def run(self, args: SlowArgs, context: ToolContext) -> ToolResult:
        type(self).running.set()
        type(self).seen.append(type(self).writing.wait(20))
        return ToolResult(text="waited")


class Waits(ScriptedPolicy):
    """Its second message takes until a tool of the first one's episode runs."""

    calls = 0
    met = False

    def generate(self, requests: Sequence[Request], **kwargs: Any) -> list[Completion]:
        self.calls += 1
        if self.calls == 2:
            Slow.writing.set()
            self.met = Slow.running.wait(20)
        return super().generate(requests, **kwargs)


def test_a_tool_runs_while_another_cohort_is_written_for(preset: Preset, tasks: list[Task], say: Say) -> None:
    Slow.writing.clear()
    Slow.running.clear()
    Slow.seen.clear()
    policy = Waits({"a": [say("slow"), say("answer", choice="B")], "b": [say("answer", choice="B")]})
    runs = run_episodes(tasks[:2], policy, environment=lambda: VideoQAEnv(preset, tools=(Slow, AnswerTool)), cohorts=2)
    assert [run.outcome.terminated for run in runs] == [True, True]
    assert Slow.seen == [True] and policy.met  # the tool waited for the generation, and the generation for the tool


def test_frames_are_decoded_ahead(preset: Preset, tasks: list[Task], say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[str, str]] = []
    real = Video.frames

    def frames(self: Video, clip: Any, *args: Any, **kwargs: Any) -> Any:
        decoded.append((clip.key, threading.current_thread().name))
        return real(self, clip, *args, **kwargs)

    monkeypatch.setattr(Video, "frames", frames)
    script = [say("zoom_clip", start=12, end=13), say("answer", choice="B")]
    runs = run_episodes(tasks[:2], ScriptedPolicy(script), preset=preset, cohorts=2)
    assert {key for key, _ in decoded} == set(runs[0].clips)  # the overview and the zoom; this policy asks for neither
    assert all(name.startswith("closeup-cohort") for _, name in decoded)


def test_a_clip_that_cannot_be_decoded_ahead_is_no_fault(
    preset: Preset, tasks: list[Task], say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    def frames(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("gone")

    monkeypatch.setattr(Video, "frames", frames)
    runs = run_episodes(tasks[:2], ScriptedPolicy([say("answer", choice="B")]), preset=preset, cohorts=2)
    assert [run.outcome.correct for run in runs] == [True, True]


class Breaks(ScriptedPolicy):
    """Raises for one task."""

    def generate(self, requests: Sequence[Request], **kwargs: Any) -> list[Completion]:
        if any(request.episode_id.startswith("b") for request in requests):
            raise RuntimeError("out of luck")
        return super().generate(requests, **kwargs)


def test_a_policy_that_raises_fails_its_cohort_alone(preset: Preset, tasks: list[Task], say: Say) -> None:
    runs = run_episodes(tasks[:4], Breaks([say("answer", choice="B")]), preset=preset, cohorts=2, max_live=2)
    assert [run.outcome.failed for run in runs] == [False, True, False, False]  # d came after b's batch of one
    assert "out of luck" in runs[1].outcome.reason


def test_a_listener_that_raises_ends_the_run_and_everything_is_closed(
    preset: Preset, tasks: list[Task], say: Say
) -> None:
    closed: list[str] = []

    class Told(VideoQAEnv):
        def close(self) -> None:
            closed.append("")
            super().close()

    def listen(event: Event) -> None:
        if isinstance(event, Finished):
            raise RuntimeError("enough")

    made: list[Told] = []

    def make() -> Told:
        made.append(Told(preset))
        return made[-1]

    with pytest.raises(RuntimeError, match="enough"):
        run_episodes(tasks, ScriptedPolicy(["?"] * 8), environment=make, cohorts=2, on_event=listen)
    assert len(closed) >= len(made) == 5


def test_the_listener_is_told_one_event_at_a_time(preset: Preset, tasks: list[Task]) -> None:
    inside = threading.Lock()
    opened: list[str] = []

    def listen(event: Event) -> None:
        assert inside.acquire(blocking=False)
        if isinstance(event, Opened):
            opened.append(event.episode_id)
        inside.release()

    run_episodes(tasks, ScriptedPolicy(["?"] * 8), preset=preset, cohorts=3, on_event=listen)
    assert sorted(opened) == [f"{name}/0" for name in "abcde"]


def test_cancelling_ends_every_cohort(preset: Preset, tasks: list[Task]) -> None:
    cancel = threading.Event()
    seen: list[int] = []

    def script(request: Request) -> str:
        seen.append(1)
        if len(seen) == 4:
            cancel.set()
        return "?"

    runs = run_episodes(tasks, ScriptedPolicy(script), preset=preset, cohorts=2, max_live=2, cancel=cancel)
    assert [run.outcome.reason for run in runs] == ["cancelled"] * 5


def test_there_is_at_least_one_cohort(preset: Preset, tasks: list[Task]) -> None:
    with pytest.raises(ValueError, match="cohorts are at least 1, got 1, 32 and 0"):
        run_episodes(tasks, ScriptedPolicy(["?"]), preset=preset, cohorts=0)
