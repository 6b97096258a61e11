"""`closeup replay`, `tools` and `data` at work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from closeup.agent.episode import run_episodes
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import get_preset
from closeup.agent.task import load_tasks
from closeup.agent.trajectory import read_trajectories, write_trajectories
from closeup.rl.rewards import DEFAULT_REWARDS, is_correct

ZOOM = '<tool_call>\n{"name": "zoom_clip", "arguments": {"start": 18, "end": 21}}\n</tool_call>'
ANSWER = '<tool_call>\n{"name": "answer", "arguments": {"choice": "C"}}\n</tool_call>'


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": {"name": "x", "dialect": "nope"}},
        {"preset": {"name": "x", "prompts": "nope"}},
        {"tools": 5},
        {"video_backend": "nope"},
        {"rewards": 3},
        {"versions": 3},
    ],
)
def test_a_trajectory_with_odd_settings_is_no_crash(  # type: ignore[no-untyped-def]
    cli, recorded: Path, settings: dict[str, object]
) -> None:
    (trajectory,) = read_trajectories(recorded)
    write_trajectories(recorded, [trajectory.model_copy(update={"settings": {**trajectory.settings, **settings}})])
    ran = cli("replay", recorded)
    assert ran.code in (0, 1) and "Traceback" not in ran.err and "internal error" not in ran.err


@pytest.fixture
def recorded(examples: Path, tmp_path: Path) -> Path:
    (task, *_) = load_tasks(examples / "tasks.jsonl")
    video = tmp_path / "film.mp4"
    shutil.copy(task.videos[0], video)
    trajectories = run_episodes(
        [task.model_copy(update={"videos": (video,)})],
        ScriptedPolicy([ZOOM, "no call", ANSWER]),
        preset=get_preset("tiny"),
        rewards=DEFAULT_REWARDS,
        judge=is_correct,
    )
    write_trajectories(tmp_path / "t.jsonl", trajectories)
    return tmp_path / "t.jsonl"


def test_a_replay_is_the_same(cli, recorded: Path) -> None:  # type: ignore[no-untyped-def]
    ran = cli("replay", recorded)
    assert ran.code == 0, ran
    assert "same (3 steps)" in ran.out
    assert ran.out.endswith("1 trajectories, 0 came out differently\n")


def test_a_changed_reward_is_told(cli, recorded: Path) -> None:  # type: ignore[no-untyped-def]
    (trajectory,) = read_trajectories(recorded)
    steps = list(trajectory.steps)
    steps[0] = steps[0].model_copy(update={"rewards": {**steps[0].rewards, "zoom": 0.25}})
    write_trajectories(recorded, [trajectory.model_copy(update={"steps": tuple(steps)})])
    ran = cli("replay", recorded, "--json")
    assert ran.code == 1
    row = json.loads(ran.out)
    assert not row["same"] and any("0.25" in line for line in row["differences"])


def test_a_moved_video_is_found_by_its_content(  # type: ignore[no-untyped-def]
    cli, recorded: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "film.mp4").rename(tmp_path / "elsewhere" / "other-name.mp4")
    gone = cli("replay", recorded)
    assert gone.code == 1 and "film.mp4" in gone.err
    assert cli("replay", recorded, "--videos", tmp_path / "elsewhere").code == 0


def test_tools_lists_schema_and_origin(cli) -> None:  # type: ignore[no-untyped-def]
    ran = cli("tools", "--json")
    assert ran.code == 0
    rows = {row["function"]["name"]: row for row in json.loads(ran.out)}
    assert {"zoom_clip", "resample_frames", "answer"} <= set(rows)
    assert rows["zoom_clip"]["package"] == "closeup"
    assert rows["zoom_clip"]["function"]["parameters"]["required"] == ["start", "end"]
    assert "zoom_clip" in cli("tools").out


def test_needles_are_made_and_valid(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ran = cli("data", "needles", "--count", "4", "--seed", "7", "--out", tmp_path, "--seconds", "16:24")
    assert ran.code == 0, ran
    tasks = Path(ran.out.strip())
    assert len(load_tasks(tasks)) == 4
    checked = cli("data", "validate", tasks)
    assert checked.code == 0, checked
    assert checked.out == "4 rows, 0 with faults\n"


def test_validate_names_every_fault(cli, tmp_path: Path, examples: Path) -> None:  # type: ignore[no-untyped-def]
    shutil.copy(examples / "digit.mp4", tmp_path / "film.mp4")
    rows = [
        {"video": "film.mp4", "question": "?", "options": ["1", "2"], "answer": "1"},
        {"video": "gone.mp4", "question": "?", "options": ["1", "2"], "answer": "1"},
        {"video": "film.mp4", "question": "?", "options": ["1", "2"], "answer": "1", "evidence": [[70, 99]]},
        {"video": "film.mp4", "question": "?", "options": ["1", "2"]},
        {"video": "film.mp4", "question": "?", "options": ["1", "2"], "answer": "3"},
        {"video": "film.mp4", "question": "?", "answer": "the red box", "colour": 1},
    ]
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "not json\n")
    ran = cli("data", "validate", file, "--json")
    assert ran.code == 1
    report = json.loads(ran.out)
    assert report["rows"] == 7
    assert [fault["line"] for fault in report["faults"]] == [2, 3, 4, 5, 6, 7]
    assert "76 s long" in report["faults"][1]["fault"]
    assert "no gold answer" in report["faults"][2]["fault"]


def test_eval_goes_on_where_it_was_stopped(  # type: ignore[no-untyped-def]
    cli, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def script(request) -> str:  # type: ignore[no-untyped-def]
        asked.append(request.episode_id)
        return ANSWER

    monkeypatch.setattr("closeup.app.evaluate.open_policy", lambda model, preset: ScriptedPolicy(script))
    out = tmp_path / "run"
    args = ("eval", examples / "tasks.jsonl", "--preset", "tiny", "--out", out, "--json")
    ran = cli(*args)
    assert ran.code == 0, ran
    summary = json.loads(ran.out)
    assert summary["overall"]["n"] == 4 and set(summary["by_kind"]) == {"digit", "colour", "when", "count"}
    assert summary["by_kind"]["digit"]["accuracy"] == 1.0
    lines = (out / "trajectories.jsonl").read_bytes().splitlines(keepends=True)
    (out / "trajectories.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:100])  # killed while writing the third
    asked.clear()
    again = json.loads(cli(*args).out)
    assert len(asked) == 2
    assert again["overall"] == summary["overall"]
    moved = (out / "trajectories.jsonl").read_text().splitlines(keepends=True)
    broken = json.loads(moved[0])
    broken["outcome"] |= {
        "failed": True,
        "terminated": False,
        "correct": None,
        "answer": None,
        "reason": "out of memory",
    }
    (out / "trajectories.jsonl").write_text(json.dumps(broken) + "\n" + "".join(moved[1:]))
    asked.clear()
    assert json.loads(cli(*args).out)["overall"] == summary["overall"]
    assert len(asked) == 1  # a failed episode is tried again, and its last line counts
    assert json.loads(cli(*args).out)["overall"] == summary["overall"]
    refused = cli(*args, "--seed", "5")
    assert refused.code == 2 and "another run (other seed)" in refused.err
