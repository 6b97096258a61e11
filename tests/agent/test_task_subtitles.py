"""A task file may name a subtitle file beside it instead of listing the cues."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from closeup.agent.task import TaskError, load_tasks


def test_a_row_names_a_subtitle_file(tmp_path: Path) -> None:
    (tmp_path / "film.srt").write_text("1\n00:00:05,000 --> 00:00:06,500\nhello\n")
    file = tmp_path / "tasks.jsonl"
    file.write_text(json.dumps({"video": "film.mp4", "question": "?", "subtitles": "film.srt"}) + "\n")
    (task,) = load_tasks(file)
    assert [(cue.start, cue.end, cue.text) for cue in task.subtitles] == [(5.0, 6.5, "hello")]


def test_a_subtitle_file_that_is_not_there_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text(json.dumps({"video": "film.mp4", "question": "?", "subtitles": "gone.srt"}) + "\n")
    with pytest.raises(TaskError, match=r"line 1: .*gone\.srt"):
        load_tasks(file)
