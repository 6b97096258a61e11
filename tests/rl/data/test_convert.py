"""From an annotation file to a task file: every row is a task that loads, or is named with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from closeup.agent.task import TaskError, load_tasks
from closeup.rl.data.convert import Conversion, ConvertError, VideoFinder, convert
from closeup.rl.data.validate import validate

ROW = {
    "problem_id": 5,
    "problem": "How bright is the last frame?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. dark", "B. bright"],
    "solution": "<answer>B</answer>",
    "path": "./clips/a.mp4",
}


@pytest.fixture
def folder(tmp_path: Path, make_video: Any) -> Path:
    """A folder with `videos/clips/a.mp4`, 4 s long."""
    (tmp_path / "videos" / "clips").mkdir(parents=True)
    (tmp_path / "videos" / "clips" / "a.mp4").write_bytes(make_video().read_bytes())
    return tmp_path


def run(folder: Path, rows: Any, *, layout: str = "video_r1", name: str = "in.json", **finder: Any) -> Conversion:
    text = rows if isinstance(rows, str) else json.dumps(rows)
    (folder / name).write_text(text, encoding="utf-8")
    videos = VideoFinder([folder / "videos"], **finder)
    return convert(folder / name, folder / "tasks.jsonl", layout=layout, videos=videos)


def test_each_row_is_a_task_or_a_fault(folder: Path) -> None:
    rows = [
        ROW,
        ROW | {"problem_id": 6, "data_type": "image", "path": "./a.png"},
        ROW | {"problem_id": 7, "path": "./clips/gone.mp4"},
        ROW | {"problem_id": 8, "options": ["A. same", "B. same"]},
        "not an object",
        ROW | {"problem_id": 5, "problem_type": "numerical", "options": [], "solution": "<answer>3</answer>"},
    ]
    done = run(folder, rows)
    assert (done.rows, done.written) == (6, 2)
    assert [(f.place, f.id, f.kind) for f in done.faults] == [
        ("row 2", "6", "no video"),
        ("row 3", "7", "no video file"),
        ("row 4", "8", "not a task"),
        ("row 5", "", "broken row"),
    ]
    assert "same text" in done.faults[2].reason and "clips/gone.mp4" in done.faults[1].reason
    assert done.by_kind == {"no video": 1, "no video file": 1, "not a task": 1, "broken row": 1}
    first, second = load_tasks(folder / "tasks.jsonl")
    assert (first.id, first.options, first.answer) == ("video_r1-5", ("dark", "bright"), "bright")
    assert (second.id, second.answer_kind) == ("video_r1-5-row6", "numeric")  # an id that repeats is told apart
    assert first.videos == (folder / "videos" / "clips" / "a.mp4",)


def test_what_is_written_validates(folder: Path) -> None:
    love = {**ROW, "zoomin_intervals": [[0, 1]], "data_type": "video"}
    open_ended = {"problem": "Where?", "answer": "on a grey wall", "videos": "clips/a.mp4"}
    assert run(folder, [ROW]).written == 1
    assert validate(folder / "tasks.jsonl").faults == ()
    assert run(folder, [love], layout="love_r1").written == 1
    assert validate(folder / "tasks.jsonl").faults == ()
    assert load_tasks(folder / "tasks.jsonl")[0].seen == ((0, 1),)
    assert run(folder, [love | {"tgt": [[1, 2.5]]}], layout="love_r1").written == 2
    assert validate(folder / "tasks.jsonl").faults == ()
    assert load_tasks(folder / "tasks.jsonl")[0].evidence == ((1, 2.5),)
    assert run(folder, [open_ended], layout="longvideo_reason").written == 1
    assert validate(folder / "tasks.jsonl").faults == ()
    run(folder, [love | {"tgt": [[1, 40]], "zoomin_intervals": []}], layout="love_r1")
    (fault,) = validate(folder / "tasks.jsonl").faults  # the video is 4 s long
    assert "reaches past the video" in fault.fault


def test_a_grounding_row_of_love_r1_is_two_tasks_with_ids_of_their_own(folder: Path) -> None:
    row = {**ROW, "tgt": [[1, 2.5]], "zoomin_intervals": [[0, 1.2]]}
    gone = row | {"path": "./clips/gone.mp4"}
    done = run(folder, [row, gone, row | {"problem_id": "5-seen"}, row], layout="love_r1")
    assert (done.rows, done.written, [fault.place for fault in done.faults]) == (4, 6, ["row 2"])
    tasks = load_tasks(folder / "tasks.jsonl")
    assert [task.id for task in tasks[:2]] == ["love_r1-5", "love_r1-5-seen"]
    assert len({task.id for task in tasks}) == 6
    assert [task.seen for task in tasks] == [(), ((0, 1),)] * 3
    assert {(task.answer, task.answer_kind, task.options) for task in tasks} == {
        (None, "grounding", ("dark", "bright"))
    }


def test_the_task_file_can_be_moved_with_its_videos(folder: Path) -> None:
    run(folder, [ROW])
    moved = folder.rename(folder.with_name("elsewhere"))
    (task,) = load_tasks(moved / "tasks.jsonl")
    assert task.videos[0].is_file()


def test_what_a_task_has_no_field_for_is_kept_beside_it(folder: Path) -> None:
    run(folder, [ROW | {"zoomin_intervals": [[0, 1]], "duration": 4.0}], layout="love_r1")
    row = json.loads((folder / "tasks.jsonl").read_text(encoding="utf-8"))
    assert row["meta"] == {"layout": "love_r1", "problem_id": 5, "zoomin_intervals": [[0, 1]]}
    assert row["duration"] == 4.0


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([ROW]),
        json.dumps({"results": [ROW]}, indent=2),
        json.dumps(ROW, indent=2),
        json.dumps(ROW) + "\n",
    ],
    ids=["list", "results", "one object", "JSON Lines"],
)
def test_json_in_any_of_its_forms(folder: Path, text: str) -> None:
    assert run(folder, text).written == 1


def test_a_broken_line_is_a_fault_and_the_others_go_on(folder: Path) -> None:
    done = run(folder, '{"problem": \n' + json.dumps(ROW) + "\n", name="in.jsonl")
    assert done.written == 1
    ((fault),) = done.faults
    assert (fault.place, fault.kind) == ("line 1", "broken row")


def test_names_from_another_machine_need_their_beginning_taken_off(folder: Path) -> None:
    row = ROW | {"path": "/mnt/data/sets/clips/a.mp4"}
    (fault,) = run(folder, [row]).faults
    assert fault.kind == "no video file" and "--strip /mnt/data/sets/clips/" in fault.reason
    assert run(folder, [row], strip=["/mnt/data/sets/"]).written == 1
    assert run(folder, [row], strip=["/elsewhere", "/mnt/data/sets"]).written == 1
    here = str(folder / "videos" / "clips" / "a.mp4")
    assert run(folder, [ROW | {"path": here}]).written == 1


@pytest.mark.parametrize("name", ["../videos/clips/a.mp4", "clips/../../x.mp4", "a\0b.mp4", "."])
def test_a_name_outside_the_folder_is_refused(folder: Path, name: str) -> None:
    (fault,) = run(folder, [ROW | {"path": name}]).faults
    assert fault.kind == "no video file"


def test_folders_are_looked_at_in_order(folder: Path, make_video: Any) -> None:
    (folder / "more").mkdir()
    (folder / "more" / "b.mp4").write_bytes(make_video(shade=50).read_bytes())
    finder = VideoFinder([folder / "videos", folder / "more"])
    assert finder.find("b.mp4") == folder / "more" / "b.mp4"
    assert VideoFinder([folder / "videos"], keep_missing=True).find("b.mp4") == folder / "videos" / "b.mp4"


def test_rows_whose_video_is_not_there_yet_can_be_kept(folder: Path) -> None:
    assert run(folder, [ROW | {"path": "later.mp4"}], keep_missing=True).written == 1
    (task,) = load_tasks(folder / "tasks.jsonl")
    assert task.videos == (folder / "videos" / "later.mp4",)


def test_text_that_no_file_can_hold_is_a_fault(folder: Path) -> None:
    done = run(folder, '[{"problem": "\\ud800?", "answer": "yes", "videos": "clips/a.mp4"}]', layout="longvideo_reason")
    assert done.written == 0 and done.faults[0].kind == "not a task"
    huge = '[{"problem": "?", "answer": "yes", "videos": "clips/a.mp4", "duration": 1%s}]' % ("0" * 400)
    assert run(folder, huge, layout="longvideo_reason").written == 1


def test_nothing_is_written_when_no_row_is_a_task(folder: Path) -> None:
    (folder / "tasks.jsonl").write_text("what was here\n", encoding="utf-8")
    assert run(folder, [ROW | {"path": ""}]).written == 0
    assert (folder / "tasks.jsonl").read_text(encoding="utf-8") == "what was here\n"
    assert not list(folder.glob("*.part"))


def test_what_cannot_begin_is_refused(folder: Path) -> None:
    (folder / "in.json").write_text("[]", encoding="utf-8")
    finder = VideoFinder([folder])
    with pytest.raises(ConvertError, match="no layout 'x'; accepted: love_r1, longvideo_reason, video_r1"):
        convert(folder / "in.json", folder / "out.jsonl", layout="x", videos=finder)
    with pytest.raises(ConvertError, match="is a folder"):
        convert(folder / "in.json", folder / "videos", layout="video_r1", videos=finder)
    with pytest.raises(ConvertError, match="is the file to be converted"):
        convert(folder / "in.json", folder / "in.json", layout="video_r1", videos=finder)
    with pytest.raises(TaskError, match="no annotation file at"):
        convert(folder / "gone.json", folder / "out.jsonl", layout="video_r1", videos=finder)


def test_ids_are_unique_whatever_the_rows_call_themselves(folder: Path) -> None:
    again = [ROW | {"problem_id": name} for name in ("a", "a-row3", "a", "a-row3", "a-row3-row4", "a")]
    assert run(folder, again).written == 6
    assert len({task.id for task in load_tasks(folder / "tasks.jsonl")}) == 6


@pytest.mark.parametrize("name", ["in.json", "in.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(folder: Path, name: str) -> None:
    text = json.dumps([ROW, ROW]) if name == "in.json" else f"{json.dumps(ROW)}\n{json.dumps(ROW)}\n"
    done = run(folder, "\ufeff" + text, name=name)
    assert (done.written, done.faults) == (2, ())


def test_a_part_of_the_source_is_no_place_for_the_tasks(folder: Path) -> None:
    (folder / "set").mkdir()
    (folder / "set" / "a.parquet").write_bytes(b"rows")
    with pytest.raises(ConvertError, match="part of the dataset to be converted"):
        convert(folder / "set", folder / "set" / "a.parquet", layout="video_r1", videos=VideoFinder([folder]))
    assert (folder / "set" / "a.parquet").read_bytes() == b"rows"


def test_only_the_first_rows(folder: Path) -> None:
    (folder / "in.json").write_text(json.dumps([ROW] * 5), encoding="utf-8")
    seen: list[int] = []
    done = convert(
        folder / "in.json",
        folder / "tasks.jsonl",
        layout="video_r1",
        videos=VideoFinder([folder / "videos"]),
        limit=2,
        progress=seen.append,
    )
    assert (done.rows, done.written, seen) == (2, 2, [1, 2])
