"""Trajectories, tasks, presets and geometry: what is written is what is read, and faults name their place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from closeup.agent.geometry import VisionGeometry
from closeup.agent.messages import Message, valid_text
from closeup.agent.preset import OverviewRule, PresetError, get_preset
from closeup.agent.task import Task, TaskError, load_tasks
from closeup.agent.trajectory import VERSION, StepRecord, Trajectory, TrajectoryError, read_trajectories
from closeup.tools.video.clip import Clip

CLIP = Clip(video="v", start=0, end=1, num_frames=2, pixels=784)


def step(parent: int | None, prompt: tuple[int, ...] | None, ids: tuple[int, ...] | None, said: str = "") -> StepRecord:
    return StepRecord(parent=parent, prompt_ids=prompt, ids=ids, text=said, messages=(Message.of("user", said + "?"),))


# --- trajectories --------------------------------------------------------------------------------------------------


def test_ids_and_messages_follow_the_paths() -> None:
    steps = (
        step(None, (1, 2), (3,), "a"),
        step(0, (4,), (5,), "b"),
        step(None, (6,), (7,), "c"),
        step(1, (8,), (9,), "d"),
    )
    run = Trajectory(id="t", task=Task(question="?"), steps=steps)
    assert run.path_to(3) == (0, 1, 3)
    assert run.full_prompt_ids(3) == (1, 2, 3, 4, 5, 8)
    assert run.full_prompt_ids(2) == (6,)
    assert [message.text for message in run.context(3)] == ["a?", "a", "b?", "b", "d?"]


def test_a_step_without_ids_is_named() -> None:
    run = Trajectory(id="t", task=Task(question="?"), steps=(step(None, (1,), (2,)), step(0, None, None)))
    assert run.full_prompt_ids(0) == (1,)
    with pytest.raises(ValueError, match="step 1 of trajectory 't'"):
        run.full_prompt_ids(1)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nonsense", "line 2: not JSON"),
        ("[1]", "line 2: not a trajectory"),
        ('{"id": "t"}', "line 2: not a trajectory: its version"),
        (json.dumps({"version": VERSION + 1, "id": "t"}), f"format {VERSION + 1}.*up to {VERSION}"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: str, says: str) -> None:
    good = Trajectory(id="t", task=Task(question="?")).model_dump_json()
    (tmp_path / "runs.jsonl").write_text(f"{good}\n{line}\n", encoding="utf-8")
    reader = read_trajectories(tmp_path / "runs.jsonl")
    assert next(reader).id == "t"
    with pytest.raises(TrajectoryError, match=says):
        next(reader)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(TrajectoryError, match="line 1: not JSON"):
        list(read_trajectories(tmp_path / "runs.jsonl"))


@pytest.mark.parametrize("parent", [0, 1, -1])
def test_a_parent_is_an_earlier_step(parent: int) -> None:
    with pytest.raises(ValueError, match="earlier step"):
        Trajectory(id="t", task=Task(question="?"), steps=(step(parent, (1,), (2,)),))


def test_log_probabilities_belong_to_ids_and_are_numbers() -> None:
    assert StepRecord(ids=(1, 2), logprobs=(-1.0, -0.5)).logprobs == (-1.0, -0.5)
    for ids, logprobs in (((1, 2), (-1.0,)), (None, (-1.0,)), ((1,), (float("-inf"),))):
        with pytest.raises(ValueError, match="log-probabilities|finite"):
            StepRecord(ids=ids, logprobs=logprobs)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match=r"gone\.jsonl"):
        list(read_trajectories(tmp_path / "gone.jsonl"))


# --- messages ------------------------------------------------------------------------------------------------------


def test_neighbouring_texts_join_and_empty_ones_go() -> None:
    message = Message.of("user", "a", "", "b", CLIP, "", CLIP, "c")
    assert [part.type for part in message.content] == ["text", "clip", "clip", "text"]
    assert (message.text, message.clips) == ("abc", (CLIP, CLIP))
    assert Message.of("assistant", "").content == ()


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_can_be_made_valid_and_valid_text_stays(text: str) -> None:
    valid = valid_text(text)
    assert valid.encode().decode() == valid and len(valid) == len(text)
    assert valid_text(valid) == valid
    assert all(a == b for a, b in zip(text, valid, strict=True) if not "\ud800" <= a <= "\udfff")


# --- tasks ---------------------------------------------------------------------------------------------------------


def test_a_task_file_is_read_with_paths_beside_it(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "video": "a.mp4", "question": "Which?", "options": ["x", "y"], "answer": "y", "evidence": [[1, 2]]},
        {"videos": ["b.mp4", "c.mp4"], "question": "How many?", "answer": "3", "kind": "count"},
    ]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    first, second = load_tasks(tmp_path / "tasks.jsonl")
    assert (first.videos, first.gold_choice, first.letters) == ((tmp_path / "a.mp4",), "B", "AB")
    assert (first.evidence, first.answer_kind) == (((1, 2),), "choice")
    assert second.id == "tasks-2" and second.videos[1] == tmp_path / "c.mp4"
    assert (second.answer_kind, second.gold_choice, second.kind) == ("text", None, "count")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"question": "?"', "line 1"),
        ("[]", "line 1: a row is a JSON object, got list"),
        ('{"video": "a.mp4"}', "question"),
        ('{"video": "a", "videos": ["b"], "question": "?"}', "not both"),
        ('{"video": 3, "question": "?"}', "path"),
        ('{"question": "?", "colour": "red"}', "colour"),
        ('{"question": "?", "options": ["a", "a"]}', "same text"),
        ('{"question": "?", "options": ["a", "b"], "answer": "c"}', "none of the options"),
        ('{"question": "?", "evidence": [[3, 1]]}', "not an interval"),
        ('{"question": "?", "evidence": [[3, Infinity]]}', "finite"),
        (json.dumps({"question": "?", "options": [str(i) for i in range(27)]}), "at most 26"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: str, says: str) -> None:
    (tmp_path / "tasks.jsonl").write_text(row + "\n", encoding="utf-8")
    with pytest.raises(TaskError, match=says):
        load_tasks(tmp_path / "tasks.jsonl")


def test_line_separators_in_a_text_do_not_end_a_row(tmp_path: Path) -> None:
    row = json.dumps({"question": "one\u2028two\x85three"}, ensure_ascii=False)
    (tmp_path / "tasks.jsonl").write_text(row + "\r\n", encoding="utf-8")
    assert load_tasks(tmp_path / "tasks.jsonl")[0].question == "one\u2028two\x85three"


def test_ids_are_unique_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text(
        '{"id": "a", "question": "?"}\n{"id": "a", "question": "?"}', encoding="utf-8"
    )
    with pytest.raises(TaskError, match="line 2.*'a'"):
        load_tasks(tmp_path / "tasks.jsonl")
    with pytest.raises(TaskError, match="closeup data needles"):
        load_tasks(tmp_path / "gone.jsonl")


# --- presets and geometry ------------------------------------------------------------------------------------------


def test_presets_are_found_by_name_or_file(tmp_path: Path) -> None:
    tiny = get_preset("tiny")
    path = tmp_path / "mine.json"
    path.write_text(tiny.model_copy(update={"name": "mine"}).model_dump_json(), encoding="utf-8")
    assert get_preset(str(path)) == tiny.model_copy(update={"name": "mine"})
    with pytest.raises(PresetError, match="default"):
        get_preset("huge")
    with pytest.raises(PresetError, match="cannot read"):
        get_preset(str(tmp_path / "gone.json"))
    path.write_text('{"name": "x", "budget": {"max_steps": 0}}', encoding="utf-8")
    with pytest.raises(PresetError, match="max_steps"):
        get_preset(str(path))


@given(st.integers(1, 4000), st.integers(1, 200))
def test_whole_second_overviews_put_pairs_on_whole_seconds(duration: int, max_frames: int) -> None:
    clip = OverviewRule(max_frames=2 * max_frames, whole_seconds=True, pixels=784).clip("v", float(duration))
    times = clip.times()
    assert len(times) <= 2 * max_frames
    assert all(abs(t - round(t)) < 1e-6 for t in times[::2])


def test_several_videos_share_the_overviews_frames() -> None:
    rule = OverviewRule(fps=2, max_frames=64)
    assert len(rule.clip("v", 100.0).times()) == 64
    assert len(rule.clip("v", 100.0, share=3).times()) == 21
    assert len(rule.clip("v", 100.0, share=100).times()) == 1


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 2_000_000))
def test_frames_are_sized_in_whole_tokens_within_the_area(width: int, height: int, pixels: int) -> None:
    geometry = VisionGeometry()
    h, w = geometry.size(width, height, pixels)
    assert h % geometry.factor == w % geometry.factor == 0 and min(h, w) > 0
    assert h * w <= max(pixels, geometry.factor**2)
    assert geometry.tokens(1, (h, w)) == geometry.tokens(2, (h, w)) == h * w // geometry.factor**2
    assert geometry.tokens(3, (h, w)) == 2 * geometry.tokens(2, (h, w))


def test_a_frame_without_size_is_refused() -> None:
    with pytest.raises(ValueError, match="0x5"):
        VisionGeometry().size(0, 5, 784)
