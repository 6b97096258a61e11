"""The baselines are trained on what their presets show, and cost what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from closeup.agent.environment import VideoQAEnv
from closeup.agent.models.load import load_adapter
from closeup.agent.models.qwen2_5_vl import Qwen25VLAdapter
from closeup.agent.task import Task
from closeup.rl.data.needle_draw import draw_frames
from closeup.rl.data.needle_tasks import KINDS, ask
from closeup.rl.data.needle_world import COLOURS, FPS
from closeup.rl.data.needles import EVALUATION_SEEDS, encode, plan
from closeup.rl.tiny.baselines import Seen, arms, direct_sample, study_batch
from closeup.rl.tiny.checkpoint import new_model, save_checkpoint
from closeup.rl.tiny.drills import LIGHT, draw_drill, draw_skim
from closeup.rl.tiny.vocabulary import build_tokenizer
from closeup.tools.video import Video


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Qwen25VLAdapter:
    folder = tmp_path_factory.mktemp("untrained")
    save_checkpoint(new_model(), folder)
    loaded = load_adapter(str(folder))
    assert isinstance(loaded, Qwen25VLAdapter)
    return loaded


def test_each_arm_shows_what_it_was_trained_on_at_the_stated_cost(adapter: Qwen25VLAdapter, tmp_path: Path) -> None:
    scene, _, rng = plan(EVALUATION_SEEDS + 80, 1, (40, 50))
    path = tmp_path / "scene.mp4"
    encode(draw_frames(scene, rng), path)
    for arm in arms(58):
        with VideoQAEnv(arm.preset, geometry=adapter.geometry) as env, Video(path) as video:
            needle = ask(scene, "colour", rng)
            shown = video.frames(arm.preset.overview.clip(video.identity, video.duration).times(), (arm.size, arm.size))
            item = Seen(scene, tuple(shown.times.tolist()), shown.pixels, shown.pixels[:0], shown.times[:0])
            blank = np.zeros(((len(shown) + 1) // 2, (arm.size // 28) ** 2, 4), np.float32)
            sample = direct_sample(build_tokenizer(), item, blank, arm.size, needle)
            task = Task(videos=(path,), question=needle.question, options=needle.options, answer=needle.answer)
            observation = env.reset(task)
            prompt = adapter.encode(observation.messages, observation.videos)
            assert sample.ids[: len(prompt.ids)].tolist() == list(prompt.ids)
            assert not observation.forced
            if arm.key != "overview":
                assert abs(len(sample.features) - 58) <= 6


def test_labels_of_study_pairs_name_the_token_that_holds_the_thing(tmp_path: Path) -> None:
    scene, _, rng = plan(EVALUATION_SEEDS + 80, 1, (40, 50))
    path = tmp_path / "scene.mp4"
    encode(draw_frames(scene, rng), path)
    times = np.array([[box.start, box.start + 0.1] for box in scene.boxes])
    with Video(path) as video:
        pairs = video.frames(times.ravel().tolist(), (56, 56)).pixels.reshape(-1, 2, 56, 56, 3)
    item = Seen(scene, (0.0, 0.1), pairs[0], pairs, times)
    batch = study_batch([item], 56, 40, rng)
    for pair, colours in zip(batch.pairs, batch.colours, strict=True):
        for token in np.flatnonzero(colours):
            row, column = divmod(int(token), 2)
            region = pair[1, 28 * row : 28 * row + 28, 28 * column : 28 * column + 28].reshape(-1, 3).astype(int)
            wanted = list(COLOURS.values())[colours[token] - 1]
            assert (np.abs(region - wanted).max(axis=1) < 60).sum() > 15


def test_drill_labels_agree_with_the_pixels() -> None:
    frames, labels = draw_skim(np.random.default_rng(1), 60)
    greens = []
    for picture, label in zip(frames, labels, strict=True):
        r, g, b = (picture[..., c].astype(int) for c in range(3))
        greens.append((int(((g - r > 90) & (g - b > 70)).sum()) > 80, label == LIGHT))
    assert all(seen == told for seen, told in greens)
    assert {told for _, told in greens} == {True, False}
    drawn, colours, digits, sprites = draw_drill(np.random.default_rng(2), 20)
    assert len(list(drawn)) == 20 == len(colours)
    assert ((digits >= 0) == ((colours > 0) & (colours < LIGHT))).all()
    assert ((sprites > 0) == (colours > 0)).all()


def test_every_kind_can_be_answered_directly() -> None:
    rng, tokenizer = np.random.default_rng(3), build_tokenizer()
    scene = next(s for s, n, _ in (plan(EVALUATION_SEEDS + 80, i) for i in range(1, 200, 4)) if s.flashes)
    item = Seen(scene, tuple(k / FPS for k in range(8)), np.zeros((8, 28, 28, 3), np.uint8), np.zeros(0), np.zeros(0))
    for kind in KINDS:
        needle = ask(scene, kind, rng)
        sample = direct_sample(tokenizer, item, np.zeros((4, 1, 4), np.float32), 28, needle)
        said = tokenizer.decode(sample.ids.tolist()).split("assistant\n")[-1]
        assert f'"choice": "{"ABCD"[needle.options.index(needle.answer)]}"' in said
