"""The generated world keeps its promises: reproducible, visible when looked at, silent in the overview."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from closeup.agent.preset import get_preset
from closeup.agent.task import load_tasks
from closeup.rl.data.needle_draw import draw_frames
from closeup.rl.data.needle_tasks import KINDS
from closeup.rl.data.needle_world import COLOURS, FPS, GREEN, Scene, overview_spacing
from closeup.rl.data.needles import EVALUATION_SEEDS, plan, write
from closeup.tools.video import Video

SEED = EVALUATION_SEEDS + 77


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(8, SEED, tmp_path_factory.mktemp("needles"), seconds=(16, 40))


def test_the_same_seed_gives_the_same_files_whatever_the_count(written: Path, tmp_path: Path) -> None:
    again = write(3, SEED, tmp_path, seconds=(16, 40))
    assert again.read_text().splitlines() == written.read_text().splitlines()[:3]
    for video in sorted((tmp_path / "videos").iterdir()):
        assert video.read_bytes() == (written.parent / "videos" / video.name).read_bytes()


def test_another_seed_gives_other_tasks(written: Path, tmp_path: Path) -> None:
    other = write(1, SEED + 1, tmp_path, seconds=(16, 40))
    fields = [json.loads(file.read_text().splitlines()[0]) for file in (other, written)]
    assert fields[0]["evidence"] != fields[1]["evidence"]


def test_tasks_load_and_have_four_options_with_the_answer_among_them(written: Path) -> None:
    tasks = load_tasks(written)
    assert [task.kind for task in tasks] == [*KINDS, *KINDS]
    for task in tasks:
        assert len(task.options) == 4 and task.answer in task.options
        with Video(task.videos[0]) as video:
            assert all(0 <= start < end <= video.duration for start, end in task.evidence)
            assert (video.width, video.height, video.codec) == (112, 112, "h264")


def test_letters_are_balanced_within_every_kind() -> None:
    letters = Counter()
    for index in range(1600):
        _, needle, _ = plan(SEED, index)
        letters[needle.kind, needle.options.index(needle.answer)] += 1
    assert len(letters) == 16
    assert min(letters.values()) > 65 and max(letters.values()) < 140  # 100 each, four standard deviations either way


@pytest.mark.parametrize("index", range(4))
def test_boxes_and_flashes_are_visible_in_the_decoded_file_exactly_when_they_should_be(
    written: Path, index: int
) -> None:
    scene, _, _ = plan(SEED, index, (16, 40))
    with Video(load_tasks(written)[index].videos[0]) as video:
        for box in scene.boxes:
            times = [box.start, (box.start + box.end) / 2, box.end - 1 / FPS, box.start - 1 / FPS, box.end]
            corner = video.frames(times).pixels[:, box.y - 9, box.x - 2].astype(int)
            distance = np.abs(corner - COLOURS[box.colour]).max(axis=1)
            assert (distance[:3] < 60).all(), (box, corner)
            assert (distance[3:] > distance[:3].max()).all(), (box, corner)
        for window in scene.flashes:
            slot = (window.end - window.start) / 10
            seen = video.frames([window.start + k * slot for k in range(11)]).pixels[:, window.y, window.x].astype(int)
            lit = np.abs(seen - GREEN).max(axis=1) < 70
            assert tuple(np.flatnonzero(lit)) == window.slots


def _overview(scene: Scene) -> np.ndarray:
    frames = list(draw_frames(scene, np.random.default_rng(5)))
    half = overview_spacing(scene.seconds) * FPS // 2
    return np.stack(frames[::half])


def test_the_overview_shows_the_same_pixels_whatever_the_answer_to_when_is() -> None:
    scene, needle, _ = next(p for p in (plan(SEED, i, (16, 40)) for i in range(2, 80, 4)))
    assert needle.kind == "when"
    views = []
    for step in (1, 2, 3, 4):
        boxes = tuple(replace(b, step=step, start=round(b.before + step * scene.spacing / 10, 1)) for b in scene.boxes)
        views.append(_overview(replace(scene, boxes=boxes)))
    assert all((view == views[0]).all() for view in views)
    assert not (views[0] == _overview(replace(scene, boxes=()))).all()  # the boxes themselves are there


def test_the_overview_shows_the_same_pixels_whatever_the_answer_to_count_is() -> None:
    scene, needle, _ = plan(SEED, 3, (16, 40))
    assert needle.kind == "count"
    views = [
        _overview(replace(scene, flashes=tuple(replace(w, slots=slots) for w in scene.flashes)))
        for slots in ((), (1,), (2, 8), (1, 3, 7), (2, 4, 6, 9))
    ]
    assert all((view == views[0]).all() for view in views)


def test_the_overview_of_the_preset_has_the_spacing_the_world_is_built_around() -> None:
    rule = get_preset("tiny").overview
    for seconds in range(16, 129):
        times = rule.clip("v", float(seconds)).times()
        assert np.allclose(np.diff(times), overview_spacing(seconds) / 2)
        assert len(times) <= 64


@pytest.mark.parametrize("seconds", [(8, 40), (16, 400), (50, 30), (20.2, 20.8)])
def test_impossible_lengths_are_refused_before_anything_is_written(
    seconds: tuple[float, float], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="whole seconds"):
        write(1, SEED, tmp_path / "out", seconds=seconds)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("count", "seed"), [(0, 1), (3, -1)])
def test_bad_counts_and_seeds_are_refused(count: int, seed: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least"):
        write(count, seed, tmp_path)
