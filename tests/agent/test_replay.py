"""Replaying a record: the same when nothing changed, and every kind of change is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from closeup import prompts
from closeup.agent.environment import VideoQAEnv
from closeup.agent.episode import Start, run_episodes
from closeup.agent.policies.base import Completion
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import Preset, get_preset
from closeup.agent.replay import ReplayError, ReplayReport, replay
from closeup.agent.task import Task
from closeup.agent.trajectory import StepRecord, Trajectory, read_trajectories, write_trajectories
from closeup.rl.rewards import DEFAULT_REWARDS
from closeup.tools.video.errors import VideoNotFound

Say = Callable[..., str]


@pytest.fixture
def script(say: Say) -> list[str]:
    return [
        say("zoom_clip", start=12, end=13, thought="red at 12s"),
        "half \ud83d of it",
        say("resample_frames", start=2, end=4.5, num_frames=5),
        say("zoom_clip", start=3, end=1),
        say("answer", choice="B", evidence=[[12, 14]]),
    ]


@pytest.fixture
def recorded(preset: Preset, task: Task, script: list[str]) -> Trajectory:
    (run,) = run_episodes([task], ScriptedPolicy(script), preset=preset, rewards=DEFAULT_REWARDS)
    return run


def again(run: Trajectory, **rest: Any) -> ReplayReport:
    return replay(run, rewards=DEFAULT_REWARDS, **rest)


def with_step(run: Trajectory, index: int, **changes: Any) -> Trajectory:
    steps: list[StepRecord] = list(run.steps)
    steps[index] = steps[index].model_copy(update=changes)
    return run.model_copy(update={"steps": tuple(steps)})


@pytest.mark.parametrize("name", ["tiny", "default"])
def test_a_record_read_from_a_file_replays_the_same(name: str, task: Task, script: list[str], tmp_path: Path) -> None:
    runs = run_episodes([task], ScriptedPolicy(script), preset=get_preset(name), rewards=DEFAULT_REWARDS)
    write_trajectories(tmp_path / "runs.jsonl", runs)
    (run,) = read_trajectories(tmp_path / "runs.jsonl")
    report = again(run)
    assert report.same and report.steps == 5 and not report.versions, [str(d) for d in report.differences]
    assert any(value is not None for step in run.steps for value in step.rewards.values())


def test_truncated_failed_and_cancelled_records_replay_as_far_as_they_went(
    preset: Preset, task: Task, script: list[str], tmp_path: Path
) -> None:
    short = {"red": ["?"] * 8, "b": script[:2], "c": script}
    tasks = [task.model_copy(update={"id": name}) for name in short]
    truncated, failed, whole = run_episodes(tasks, ScriptedPolicy(short), preset=preset)
    assert truncated.outcome.truncated and failed.outcome.failed
    for run, steps in ((truncated, 8), (failed, 2), (whole, 5)):
        report = replay(run)
        assert report.same and report.steps == steps
    cancelled = with_step(whole, 2, finish="cancelled", text="<think>hm")
    cancelled = cancelled.model_copy(update={"steps": cancelled.steps[:3]})
    assert replay(cancelled).steps == 2 and replay(cancelled).same


def test_the_policys_token_counts_are_replayed_too(preset: Preset, task: Task) -> None:
    class Wordy(ScriptedPolicy):
        def generate(self, requests: Any, **rest: Any) -> list[Completion]:
            return [Completion("?", context_tokens=700 * (len(r.messages) // 2 + 1)) for r in requests]

    (run,) = run_episodes([task], Wordy([]), preset=preset)
    assert run.outcome.reason.startswith("max_context_tokens") and [s.forced for s in run.steps] == [
        False,
        False,
        False,
    ]
    assert replay(run).same
    assert not replay(with_step(run, 2, context_tokens=900)).same


def test_a_start_in_the_middle_replays(preset: Preset, task: Task, say: Say, recorded: Trajectory) -> None:
    history = (*recorded.context(4),)
    start = Start(task.model_copy(update={"id": "later"}), history=history, assistant_prefix="<think>")
    (run,) = run_episodes([start], ScriptedPolicy([say("answer", choice="A", thought="3")]), preset=preset)
    assert replay(run).same and run.context(0)[: len(history)] == history


@pytest.mark.parametrize(
    ("index", "changes", "what"),
    [
        (0, {"outcome": "refused"}, "outcome"),
        (0, {"thought": "blue"}, "thought"),
        (0, {"clips": ()}, "clips"),
        (0, {"rewards": {"format": 1.0, "zoom": 0.0, "answer": None}}, "reward zoom"),
        (0, {"rewards": {"format": 1.0, "zoom": 1.0, "answer": 0.0}}, "reward answer"),
        (1, {"note": "another sentence"}, "note"),
        (1, {"forced": True}, "forced"),
        (2, {"assistant_prefix": "<think>"}, "assistant prefix"),
        (0, {"text": "<think>x</think>"}, "outcome"),
    ],
)
def test_every_change_of_a_step_is_seen(recorded: Trajectory, index: int, changes: dict[str, Any], what: str) -> None:
    report = again(with_step(recorded, index, **changes))
    assert not report.same
    assert (index, what) in [(difference.step, difference.what) for difference in report.differences]
    assert all(str(difference).startswith(("step", "episode")) for difference in report.differences)


@pytest.mark.parametrize(
    "changes", [{"answer": "3"}, {"choice": "A"}, {"evidence": ()}, {"frames": 1}, {"visual_tokens": 1}]
)
def test_every_change_of_the_outcome_is_seen(recorded: Trajectory, changes: dict[str, Any]) -> None:
    run = recorded.model_copy(update={"outcome": recorded.outcome.model_copy(update=changes)})
    (difference,) = again(run).differences
    assert difference.step is None and difference.what.replace(" ", "_") in changes


def test_a_changed_observation_is_shown_with_both_texts(recorded: Trajectory) -> None:
    first = recorded.steps[0].messages[0]
    changed = first.model_copy(update={"content": (first.content[0],)})
    (difference,) = again(with_step(recorded, 0, messages=(changed,))).differences[:1]
    assert difference.what == "message 0 of the context"
    assert "Which digit" in difference.replayed and "Which digit" not in difference.recorded


def test_a_record_that_is_longer_or_shorter_than_its_episode(recorded: Trajectory) -> None:
    longer = recorded.model_copy(update={"steps": (*recorded.steps, recorded.steps[-1])})
    assert "the episode" in [difference.what for difference in again(longer).differences]
    shorter = recorded.model_copy(update={"steps": recorded.steps[:-1]})
    assert {"terminated", "answer"} <= {difference.what for difference in again(shorter).differences}


def test_other_prompts_are_a_difference(recorded: Trajectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "fingerprint", lambda name: "0" * 16)
    assert [difference.what for difference in again(recorded).differences] == ["settings"]


def test_a_reward_stream_without_its_function_is_a_difference(recorded: Trajectory) -> None:
    assert {d.what for d in replay(recorded).differences} == {f"reward stream {name}" for name in DEFAULT_REWARDS}


def test_another_version_is_pointed_out(recorded: Trajectory) -> None:
    settings = {**recorded.settings, "versions": {**recorded.settings["versions"], "pydantic": "1.0"}}
    report = again(recorded.model_copy(update={"settings": settings}))
    assert report.same and report.versions["pydantic"][0] == "1.0"


def test_a_moved_video_is_found_and_another_one_noticed(
    recorded: Trajectory, tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    (identity,) = recorded.videos
    moved = tmp_path / "moved.mp4"
    moved.write_bytes(Path(recorded.videos[identity].path).read_bytes())
    assert again(recorded, videos={identity: moved}).same
    other = make_video(seconds=20, size=(112, 112), shade=90)
    assert "videos" in [difference.what for difference in again(recorded, videos={identity: other}).differences]
    with pytest.raises(VideoNotFound):
        again(recorded, videos={identity: tmp_path / "gone.mp4"})


def test_settings_that_make_no_environment(recorded: Trajectory, preset: Preset) -> None:
    bare = recorded.model_copy(update={"settings": {}})
    with pytest.raises(ReplayError, match="'red/0'.*environment"):
        replay(bare)
    unknown = recorded.model_copy(update={"settings": {**recorded.settings, "tools": ["answer", "teleport"]}})
    with pytest.raises(ReplayError, match="teleport"):
        replay(unknown)
    assert again(recorded, environment=VideoQAEnv(preset, rewards=DEFAULT_REWARDS)).same
