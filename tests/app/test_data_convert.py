"""`closeup data convert` at work."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

ROW = {
    "problem": "Which digit is in the red box?",
    "problem_type": "multiple choice",
    "options": ["A. 3", "B. 7"],
    "solution": "<answer>B</answer>",
    "path": "/data/love/digit.mp4",
    "zoomin_intervals": [],
    "data_type": "video",
}


@pytest.fixture
def source(tmp_path: Path, examples: Path) -> Path:
    (tmp_path / "videos").mkdir()
    shutil.copy(examples / "digit.mp4", tmp_path / "videos")
    rows: list[dict[str, Any]] = [ROW, *[ROW | {"id": f"bad{i}", "solution": "E"} for i in range(3)]]
    (tmp_path / "love.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path / "love.json"


def test_annotations_become_tasks_that_validate(cli, source: Path) -> None:  # type: ignore[no-untyped-def]
    out = source.parent / "tasks.jsonl"
    args = ("data", "convert", source, "--layout", "love_r1", "--videos", source.parent / "videos", "--out", out)
    ran = cli(*args, "--strip", "/data/love", "--show", "2", "--faults", source.parent / "left.jsonl")
    assert ran.code == 0, ran
    lines = ran.out.splitlines()
    assert lines[0].startswith("row 2 (bad0): the gold answer 'E' is none of the letters A, B")
    assert lines[2].startswith("… and 1 more; all are in")
    assert lines[3:] == ["4 rows, 1 tasks written, 3 left out", "  3 gold answer", str(out)]
    left = [json.loads(line) for line in (source.parent / "left.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in left] == ["bad0", "bad1", "bad2"] and left[0]["place"] == "row 2"
    assert cli("data", "validate", out).out == "1 rows, 0 with faults\n"
    counted = json.loads(cli(*args, "--strip", "/data/love/", "--json").out)
    assert counted == {"rows": 4, "written": 1, "faults": {"gold answer": 3}, "out": str(out)}


def test_chains_of_thought_become_episodes_that_replay(cli, source: Path) -> None:  # type: ignore[no-untyped-def]
    said = "I need to zoom in on the video.\n\nSomething red is there.\n\\boxed{[%d, %d]}"
    question = {"role": "user", "content": "Which digit is in the red box?\nA. 3\nB. 7"}
    rows = [
        {"video": "digit.mp4", "messages": [question, {"role": "assistant", "content": said % window}]}
        for window in ((2, 6), (900, 904))
    ]
    source.write_text(json.dumps(rows), encoding="utf-8")
    out = source.parent / "cot.jsonl"
    args = ("data", "convert", source, "--layout", "love_r1", "--videos", source.parent / "videos", "--out", out)
    ran = cli(*args, "--trajectories")
    assert ran.code == 0, ran
    assert "start 900 is outside the video" in ran.out
    assert ran.out.splitlines()[-3:] == ["2 rows, 1 trajectories written, 1 left out", "  1 chain", str(out)]
    assert cli("replay", out).code == 0
    refused = cli(*args, "--trajectories", "--keep-missing")
    assert refused.code == 2 and "leave --keep-missing or --trajectories out" in refused.err


def test_no_task_at_all_is_exit_code_1(cli, source: Path) -> None:  # type: ignore[no-untyped-def]
    ran = cli("data", "convert", source, "--layout", "love_r1", "--out", source.parent / "tasks.jsonl")
    assert ran.code == 1 and "4 rows, 0 tasks written, 4 left out" in ran.out
    assert not (source.parent / "tasks.jsonl").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--layout", "nope"), "no layout 'nope'; accepted: love_r1, longvideo_reason, video_r1"),
        (("--layout", "love_r1", "--videos", "/nowhere"), "--videos takes a folder"),
        ((), "Missing option '--layout'"),
    ],
)
def test_bad_input_is_one_sentence(  # type: ignore[no-untyped-def]
    cli, source: Path, args: tuple[str, ...], says: str
) -> None:
    ran = cli("data", "convert", source, *args)
    assert ran.code == 2 and says in ran.err and ran.err.count("\n") == 1


def test_the_file_of_faults_takes_the_place_of_nothing_else(cli, source: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    before = source.read_bytes()
    out = tmp_path / "tasks.jsonl"
    link, hard = tmp_path / "link.json", tmp_path / "hard.json"
    link.symlink_to(source)
    hard.hardlink_to(source)
    args = ("data", "convert", source, "--layout", "love_r1", "--videos", tmp_path / "videos", "--out", out)
    args += ("--strip", "/data/love", "--faults")
    for same in (source, link, hard, tmp_path / "videos" / ".." / "love.json"):
        ran = cli(*args, same)
        assert ran.code == 2 and "is the file to be converted" in ran.err and "--faults" in ran.err
        assert source.read_bytes() == before and not out.exists()
    for there in (False, True):
        ran = cli(*args, out)
        assert ran.code == 2 and "is also where the tasks go (--out)" in ran.err
        assert out.exists() == there
        out.write_text("kept", encoding="utf-8")
    assert out.read_text(encoding="utf-8") == "kept"
    ran = cli(*args, tmp_path / "videos")
    assert ran.code == 2 and "is a folder" in ran.err
    ran = cli(*args, tmp_path / "none" / "faults.jsonl")
    assert ran.code == 2 and "cannot write" in ran.err
    assert not list(tmp_path.rglob("*.part"))


def test_a_pipe_is_refused_and_not_waited_for(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    os.mkfifo(tmp_path / "pipe.json")
    ran = cli("data", "convert", tmp_path / "pipe.json", "--layout", "love_r1", "--out", tmp_path / "tasks.jsonl")
    assert (
        ran.code == 2
        and "closeup: the annotation file" in ran.err
        and "pipe.json is a pipe or a device; copy what comes out of it to a file" in ran.err
    )
    assert cli("data", "validate", tmp_path / "pipe.json").code == 2
    assert not list(tmp_path.glob("tasks*"))
