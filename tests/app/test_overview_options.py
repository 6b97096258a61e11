"""--fps, --frames and --bound: another overview under any preset, with limits that hold it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from closeup.agent.environment import VideoQAEnv
from closeup.agent.preset import PRESETS, get_preset
from closeup.agent.task import Task
from closeup.agent.trajectory import read_trajectories
from closeup.app.cli import app
from closeup.app.errors import BadInput
from closeup.app.setup import Overrides, choose_preset


@pytest.mark.parametrize(
    ("name", "flags", "seconds", "frames", "first", "last"),
    [
        ("longvila_r1", {"frames": 100}, 60, 100, 0, 60),
        ("longvila_r1", {"frames": 8192}, 60, 8192, 0, 60),
        ("longvila_r1", {"fps": 2}, 60, 120, 0, 59.5),
        ("longvila_r1", {"fps": 2}, 7200, 8192, 0, None),
        ("longvila_r1-fps", {"frames": 64}, 60, 64, 0, 60),
        ("video_r1", {"fps": 2, "frames": 32}, 10, 20, 0, 10),
        ("video_r1", {"fps": 2, "frames": 32}, 60, 32, 0, 60),
        ("internvl3", {"frames": 32, "bound": "10:42"}, 60, 32, 10.5, 41.5),
        ("internvl3", {"bound": "10:900"}, 58, 8, 13, 55),
        ("tiny", {"frames": 16}, 60, 16, 0, 60),
        ("love_r1", {"fps": 1}, 60, 60, 0, 60),
        ("love_r1", {}, 60, 120, 0, 60),
    ],
)
def test_the_overview_is_as_the_flags_say(
    name: str, flags: dict[str, Any], seconds: float, frames: int, first: float, last: float | None
) -> None:
    preset = choose_preset("tiny", name, Overrides(**flags))
    times = preset.overview.clip("film", seconds).times()
    assert (len(times), times[0]) == (frames, first)
    assert last is None or times[-1] == pytest.approx(last)
    assert preset.name == name, "a flag changes a setting, which is recorded, and not the name"
    assert (preset == get_preset(name)) is not bool(flags)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_larger_overview_fits_the_limits(name: str, make_video: Callable[..., Path]) -> None:
    """An episode opens, and has as much room for looks as before."""
    task = Task(id="film", videos=(make_video(seconds=20, size=(112, 112)),), question="Which?", options=("3", "7"))
    larger = get_preset(name).showing(frames=2000)
    with VideoQAEnv(larger) as env:
        opened = env.reset(task)
        (clip,) = opened.overviews
        assert len(clip.times()) == 2000
        assert env.spent.frames == 2000
    old, new = get_preset(name).budget, larger.budget
    assert new.max_frames >= old.max_frames and new.max_visual_tokens >= old.max_visual_tokens
    assert get_preset(name).showing(frames=1).budget == old


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"bound": "10"}, "START:END.*got '10'"),
        ({"bound": "a:b"}, "START:END.*got 'a:b'"),
        ({"bound": "20:10"}, r"0 <= start < end, got \[20.0, 10.0\]"),
        ({"bound": "nan:10"}, "0 <= start < end"),
        ({"bound": "0:inf"}, "0 <= start < end"),
        ({"frames": 9000}, "8192"),
        ({"fps": 0.0}, "greater than 0"),
    ],
)
def test_what_no_overview_can_be_is_a_sentence(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        choose_preset("tiny", "video_r1", Overrides(**flags))


def test_ask_takes_them_and_records_what_was_shown(make_video: Callable[..., Path], tmp_path: Path) -> None:
    video, saved = make_video(seconds=20, size=(112, 112)), tmp_path / "t.jsonl"
    words = ["ask", str(video), "Which digit?", "--option", "3", "--option", "7", "--json", "--save", str(saved)]
    done = CliRunner().invoke(app, [*words, "--frames", "8", "--bound", "5:15"])
    assert done.exit_code in (0, 1), done.output
    assert set(json.loads(done.stdout.splitlines()[-1])) >= {"answer", "visual_tokens"}
    (trajectory,) = read_trajectories(saved)
    overview = next(c for c in trajectory.settings["used"]["clips"].values() if c["role"] == "overview")
    assert (overview["frames"], overview["shown"]) == (8, True)
    assert trajectory.settings["preset"]["overview"]["bound"] == [5.0, 15.0]
    late = CliRunner().invoke(app, [*words, "--bound", "30:40"])
    assert late.exit_code != 0 and "begins inside it" in late.output + late.stderr


def test_eval_takes_them(make_video: Callable[..., Path], tmp_path: Path) -> None:
    row = {
        "id": "a",
        "video": str(make_video(seconds=20, size=(112, 112))),
        "question": "Which?",
        "options": ["3", "7"],
    }
    tasks, out = tmp_path / "tasks.jsonl", tmp_path / "out"
    tasks.write_text(json.dumps(row | {"answer": "3"}) + "\n", encoding="utf-8")
    done = CliRunner().invoke(app, ["eval", str(tasks), "--out", str(out), "--fps", "1", "--frames", "6", "--json"])
    assert done.exit_code == 0, done.output
    (trajectory,) = read_trajectories(next(out.glob("*.jsonl")))
    overview = next(c for c in trajectory.settings["used"]["clips"].values() if c["role"] == "overview")
    assert overview["frames"] == 6
