"""Task files and annotations in parquet and in dataset folders (extra `train`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from closeup.agent.task import TaskError, load_tasks, read_rows
from closeup.agent.taskfile import is_table, raw_rows
from closeup.extras import MissingExtra
from closeup.rl.data.convert import VideoFinder, convert

ROWS: list[dict[str, Any]] = [
    {"id": "a", "video": "a.mp4", "question": "Which?", "options": ["x", "y"], "answer": "y", "evidence": [[1.0, 2.0]]},
    {"id": "b", "videos": ["b.mp4", "c.mp4"], "question": "How many?", "answer": "3", "kind": "count"},
]
COLUMNS = sorted({key for row in ROWS for key in row})
PADDED = [{key: row.get(key) for key in COLUMNS} for row in ROWS]  # a table has every column in every row


def test_a_missing_extra_is_named_with_its_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r'pip install "closeup\[train\]"'):
        load_tasks(tmp_path / "t.parquet")


def test_a_folder_without_a_dataset_is_refused_without_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TaskError, match="is a folder without a dataset in it; accepted"):
        load_tasks(tmp_path)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}', encoding="utf-8")
    with pytest.raises(TaskError, match="2 splits.*give one of: .*train, .*test"):
        load_tasks(tmp_path)
    (tmp_path / "dataset_dict.json").write_text("{}", encoding="utf-8")
    with pytest.raises(TaskError, match="cannot read .*dataset_dict.json"):
        load_tasks(tmp_path)


def test_which_paths_are_tables(tmp_path: Path) -> None:
    assert is_table(tmp_path) and is_table(tmp_path / "x.PARQUET") and not is_table(tmp_path / "x.jsonl")


class TestWithDatasets:
    @pytest.fixture
    def datasets(self) -> Any:
        return pytest.importorskip("datasets", reason="the extra `train` is not installed")

    @pytest.fixture(params=["parquet", "folder of parquet", "saved", "saved with one split"])
    def table(self, request: pytest.FixtureRequest, tmp_path: Path, datasets: Any) -> Path:
        data = datasets.Dataset.from_list(PADDED)
        match request.param:
            case "parquet":
                data.to_parquet(str(tmp_path / "tasks.parquet"))
                return tmp_path / "tasks.parquet"
            case "folder of parquet":
                (tmp_path / "tasks").mkdir()
                for i in range(2):
                    data.select([i]).to_parquet(str(tmp_path / "tasks" / f"{i}.parquet"))
            case "saved":
                data.save_to_disk(str(tmp_path / "tasks"))
            case _:
                datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "tasks"))
        return tmp_path / "tasks"

    def test_tasks_are_those_of_json_lines(self, table: Path, tmp_path: Path) -> None:
        (tmp_path / "same.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
        assert load_tasks(table) == load_tasks(tmp_path / "same.jsonl")

    def test_a_wrong_row_is_named(self, tmp_path: Path, datasets: Any) -> None:
        datasets.Dataset.from_list([*PADDED, PADDED[0] | {"answer": "z", "id": "c"}]).to_parquet(
            str(tmp_path / "t.parquet")
        )
        found = list(read_rows(tmp_path / "t.parquet"))
        assert [number for number, _ in found] == [1, 2, 3]
        assert isinstance(found[2][1], TaskError) and "row 3: the answer 'z'" in str(found[2][1])

    def test_a_damaged_file_is_named(self, tmp_path: Path, datasets: Any) -> None:
        datasets.Dataset.from_list(PADDED).to_parquet(str(tmp_path / "t.parquet"))
        whole = (tmp_path / "t.parquet").read_bytes()
        (tmp_path / "t.parquet").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(TaskError, match="t.parquet"):
            load_tasks(tmp_path / "t.parquet")

    def test_several_splits_are_not_one_file(self, tmp_path: Path, datasets: Any) -> None:
        data = datasets.Dataset.from_list(PADDED)
        datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(str(tmp_path / "ds"))
        with pytest.raises(TaskError, match="2 splits"):
            load_tasks(tmp_path / "ds")
        (task,) = load_tasks(tmp_path / "ds" / "test")
        assert task.videos == (tmp_path / "ds" / "a.mp4",)

    def test_annotations_may_be_parquet(self, tmp_path: Path, datasets: Any) -> None:
        rows = [
            {
                "problem": "Which?\nA. x\nB. y",
                "videos": "v.mp4",
                "answer": "<answer>B</answer>",
                "problem_type": "goal",
            },
            {"problem": "Why?", "videos": "v.mp4", "answer": "because", "problem_type": None},
        ]
        datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "in.parquet"))
        assert [row.fields.get("problem_type") for row in raw_rows(tmp_path / "in.parquet")] == ["goal", None]
        finder = VideoFinder([tmp_path], keep_missing=True)
        done = convert(tmp_path / "in.parquet", tmp_path / "out.jsonl", layout="longvideo_reason", videos=finder)
        assert (done.rows, done.written, done.faults) == (2, 2, ())
        assert [task.answer for task in load_tasks(tmp_path / "out.jsonl")] == ["y", "because"]
