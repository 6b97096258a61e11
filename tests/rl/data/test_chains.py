"""Chains of thought of three projects as recorded episodes, and a model that learns them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from closeup.agent.models.load import load_adapter
from closeup.agent.preset import get_preset
from closeup.agent.trajectory import Trajectory, read_trajectories
from closeup.rl.config import SFTConfig
from closeup.rl.configfile import load_config
from closeup.rl.data.convert import Conversion, ConvertError, VideoFinder, convert
from closeup.rl.sft import SFTTrainer

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
N = 28 * 28
ZOOM = "I need to zoom in on the video.\n\nA red box comes up late.\n\\boxed{[12, 14]}"
ANSWER = "I get the answer.\n\nIn the box stands a seven.\n\\boxed{B}"


def love(text: str, **changes: Any) -> dict[str, Any]:
    question = "<video>\nWhich digit is in the red box?\nOptions:\nA. 3\nB. 7\n"
    row = {
        "id": "x",
        "video": "film.mp4",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": question}]},
            {"role": "assistant", "content": [{"type": "text", "text": text}]},
        ],
        "cot_data": True,
        "zoomin_intervals": [],
    }
    return row | changes


LONG = {
    "problem_id": 0,
    "problem": "Which digit is in the red box?\nA. 3\nB. 7",
    "problem_type": "temporal",
    "reasoning": "A red box comes up late, and in it stands a seven.",
    "videos": "film.mp4",
    "answer": "<answer>B</answer>",
}
VIDEO = {
    "problem_id": 1,
    "problem": "How many boxes are there?",
    "data_type": "video",
    "problem_type": "numerical",
    "options": [],
    "process": "<think>One, and one more.</think>",
    "solution": "<answer>2</answer>",
    "path": "film.mp4",
}


@pytest.fixture
def folder(tmp_path: Path, make_video: Any) -> Path:
    (tmp_path / "film.mp4").write_bytes(make_video(seconds=20, fps=4).read_bytes())
    return tmp_path


def run(folder: Path, layout: str, *rows: dict[str, Any]) -> tuple[Conversion, list[Trajectory]]:
    (folder / "in.json").write_text(json.dumps(list(rows)), encoding="utf-8")
    out = folder / f"{layout}_cot.jsonl"
    done = convert(folder / "in.json", out, layout=layout, videos=VideoFinder([folder]), trajectories=True)
    return done, list(read_trajectories(out)) if done.written else []


def test_a_zoom_of_love_r1_is_one_message_beside_what_was_watched(folder: Path) -> None:
    row = love(ZOOM, tgt=[[12, 13]], zoomin_intervals=[[2, 4], [6, 12.2]])
    done, (episode,) = run(folder, "love_r1", row)
    assert (done.written, done.faults) == (1, ())
    (step,) = episode.steps
    assert (step.text, step.outcome, step.assistant_prefix, step.ids) == (ZOOM, "ok", "", None)
    assert episode.task.question == "Which digit is in the red box?"
    assert (episode.task.options, episode.task.evidence) == (("3", "7"), ((12, 13),))
    overview, *clips = [clip for message in episode.context(0) for clip in message.clips]
    assert overview.pixels == 2 * 32 * N, "shorter than 120 s"
    assert [(c.start, c.end, c.num_frames, c.pixels) for c in clips] == [(0, 6, 12, 256 * N), (6, 12, 12, 256 * N)]
    assert episode.task.videos == (folder / "film.mp4",) and episode.task.videos[0].is_absolute()


@pytest.mark.parametrize(("count", "frames"), [(1, 32), (2, 24), (3, 16), (4, 16)])
def test_love_r1_has_fewer_frames_for_more_clips(folder: Path, make_video: Any, count: int, frames: int) -> None:
    (folder / "film.mp4").write_bytes(make_video(seconds=130, fps=2).read_bytes())
    windows = [[30 * i, 30 * i + 20] for i in range(count)]
    _, (episode,) = run(folder, "love_r1", love(ANSWER, zoomin_intervals=windows))
    overview, *clips = [clip for message in episode.context(0) for clip in message.clips]
    assert [clip.num_frames for clip in clips] == [frames] * count
    assert overview.pixels == 32 * N


def test_an_answer_of_love_r1_is_right_by_its_own_box(folder: Path) -> None:
    _, (episode,) = run(folder, "love_r1", love(ANSWER))
    assert (episode.steps[0].text, episode.outcome.choice, episode.outcome.correct) == (ANSWER, "B", True)


def test_thoughts_and_gold_answers_become_one_message(folder: Path) -> None:
    _, (long,) = run(folder, "longvideo_reason", LONG)
    assert long.steps[0].text == f"<think>{LONG['reasoning']}</think>\n<answer>B</answer>"
    assert long.outcome.correct and long.settings["preset"]["name"] == "longvila_r1"
    _, (video,) = run(folder, "video_r1", VIDEO)
    assert video.steps[0].text == "<think>One, and one more.</think>\n<answer>2</answer>"
    assert video.outcome.correct


@pytest.mark.parametrize(
    ("layout", "row", "kind", "says"),
    [
        ("love_r1", love("So it is \\boxed{B}"), "chain", "begins with 'I need to zoom in"),
        ("love_r1", love(ANSWER + ANSWER), "chain", "2 boxes"),
        ("love_r1", love(ZOOM.replace("[12, 14]", "[2, 19]")), "chain", "refused.*is too long"),
        ("love_r1", love(ZOOM, zoomin_intervals=[[12, 18]]) | {"video": "gone.mp4"}, "no video file", "gone.mp4"),
        ("love_r1", love(ZOOM, zoomin_intervals=[[40, 50]]), "no episode", "its video is 20 s long"),
        ("love_r1", love(ANSWER.replace("{B}", "{Q}")), "gold answer", "none of the letters A, B"),
        ("love_r1", {"problem": "?", "solution": "B", "path": "film.mp4"}, "no chain", "no 'messages'"),
        ("longvideo_reason", LONG | {"reasoning": ""}, "no chain", "no text in 'reasoning'"),
        ("longvideo_reason", LONG | {"reasoning": "a <answer> b"}, "chain", "can hold a tag"),
        ("video_r1", VIDEO | {"process": "<think> </think>"}, "no chain", "no text in 'process'"),
    ],
)
def test_a_chain_that_does_not_run_is_a_fault_of_its_row(
    folder: Path, layout: str, row: dict[str, Any], kind: str, says: str
) -> None:
    done, _ = run(folder, layout, row)
    (fault,) = done.faults
    assert fault.kind == kind
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(fault.reason)


def test_videos_that_are_not_there_cannot_be_recorded(folder: Path) -> None:
    (folder / "in.json").write_text("[]", encoding="utf-8")
    finder = VideoFinder([folder], keep_missing=True)
    with pytest.raises(ConvertError, match="leave --keep-missing or --trajectories out"):
        convert(folder / "in.json", folder / "out.jsonl", layout="love_r1", videos=finder, trajectories=True)


@pytest.mark.parametrize(
    ("recipe", "layout", "rows"),
    [
        ("love_r1/stage2", "love_r1", [love(ZOOM, zoomin_intervals=[[2, 8]]), love(ANSWER, id="y")]),
        ("longvila_r1_sft", "longvideo_reason", [LONG, LONG | {"problem_id": 2, "answer": "A"}]),
    ],
)
def test_the_recipes_learn_what_was_written(
    folder: Path, recipe: str, layout: str, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every message of the file is learnt, end token and all, from the very config but for the model and its size."""
    small = get_preset("longvila_r1").overview.model_copy(update={"num_frames": 8, "pixels": N})
    less = get_preset("longvila_r1").model_copy(update={"overview": small})
    monkeypatch.setattr("closeup.rl.data.chains.get_preset", lambda name: less if name == less.name else LOVE)
    _, episodes = run(folder, layout, *rows)
    words = {
        "model": "tiny-half",
        "output_dir": folder / "run",
        "trajectories": f"[{folder / f'{layout}_cot.jsonl'}]",
        "attention_core": "segment",
        "bf16": "false",
        "use_cpu": "true",
        "save_steps": 0,
        "gradient_accumulation_steps": 1,
    }
    config = load_config(SFTConfig, CONFIGS / f"{recipe}.yaml", [f"--{key}={value}" for key, value in words.items()])
    adapter = load_adapter("tiny-half", device="cpu", timestamps="position")
    trainer = SFTTrainer(adapter, config, get_preset(str(config.preset)), episodes)
    trees = [tree for batch in trainer.next_batches(0) + trainer.next_batches(1) for tree in batch]
    learnt = sum(len(tree.tree.targets) for tree in trees)
    assert learnt == sum(len(adapter.message_ids(episode.steps[0].text)) for episode in episodes)
    before = {name: p.detach().clone() for name, p in adapter.model.named_parameters()}
    trainer.train()
    assert any(not torch.equal(p, before[name]) for name, p in adapter.model.named_parameters())


LOVE = get_preset("love_r1-sft").model_copy(
    update={
        "overview": get_preset("love_r1-sft").overview.model_copy(update={"pixels": N, "fps": 0.5, "short_factor": 1}),
    }
)
