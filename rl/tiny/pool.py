"""The training pool: generated videos, written as H.264, read back through `closeup.tools.video`, kept as arrays.

Three sorts of files. A *scene* is an ordinary needle video: all its frames at 28 x 28, and zoom clips (4 frames at
112 x 112) around every box, at empty pairs, and on a flash window. A *drill* is a dense video at 112 x 112, a *skim*
a quick one at 28 x 28 (see `drills`). The videos themselves are deleted after decoding: pool item i is a pure
function of its seed.

Invariants
1. Every pixel here went through the encoder and through `Video`; nothing is trained on drawn arrays.
2. Pool seeds are below `EVALUATION_SEEDS`.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from closeup.rl.data.needle_draw import draw_frames
from closeup.rl.data.needle_world import FPS, SECONDS, SIDE, Box, Scene, plan_scene
from closeup.rl.data.needles import encode
from closeup.rl.tiny.drills import draw_drill, draw_skim
from closeup.tools.video import Video

SKIM = 28
DRILL_FRAMES = 160
SCENE_SEED, DRILL_SEED, SKIM_SEED = 1_000, 2_000, 3_000
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SceneItem:
    """One scene: `skim` uint8 (10 x seconds, 28, 28, 3) and `zooms`, by start pair: uint8 (4, 112, 112, 3)."""

    scene: Scene
    skim: NDArray[np.uint8]
    zooms: dict[int, NDArray[np.uint8]]


@dataclass(frozen=True)
class DrillItem:
    """One drill: `frames` uint8 (160, 112, 112, 3) and int16 labels (160, 16), see `draw_drill`."""

    frames: NDArray[np.uint8]
    colours: NDArray[np.int16]
    digits: NDArray[np.int16]
    sprites: NDArray[np.int16]


@dataclass(frozen=True)
class SkimItem:
    """One quick video: `frames` uint8 (160, 28, 28, 3) and a colour label per frame, see `draw_skim`."""

    frames: NDArray[np.uint8]
    labels: NDArray[np.int16]


def first_pair(box: Box, spacing: int) -> int:
    """The first overview pair that shows `box`; the following pair shows it too."""
    return int((box.before + spacing / 2) / spacing + 1e-6)


def zoom_times(start: float, spacing: float) -> list[float]:
    """The four instants of the zoom into `[start, start + spacing]`: left edges of equal bins."""
    return [start + i * spacing / 4 for i in range(4)]


def make_scene(index: int) -> SceneItem:
    """Pool scene `index`: 2 to 6 boxes and two flash windows, encoded and decoded again."""
    rng = np.random.default_rng([SCENE_SEED, index])
    scene = plan_scene(rng, int(rng.integers(SECONDS[0], SECONDS[1] + 1)), boxes=(2, 6), flash_windows=2)
    spacing = scene.spacing
    boxes = [first_pair(box, spacing) for box in scene.boxes]
    busy = {pair + k for pair in boxes for k in (0, 1)}
    empty = [pair for pair in range(scene.seconds // spacing) if pair not in busy]
    wanted = [pair + k for pair in boxes for k in (0, 1)] + [int(v) for v in rng.permutation(empty)[:3]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.mp4"
        encode(draw_frames(scene, rng), path)
        with Video(path, threads=1) as video:
            skim = video.frames([i / FPS for i in range(scene.seconds * FPS)], (SKIM, SKIM)).pixels
            zooms = {p: video.frames(zoom_times(p * spacing, spacing), (SIDE, SIDE)).pixels for p in wanted}
    return SceneItem(scene, skim, zooms)


def make_drill(index: int) -> DrillItem:
    """Pool drill `index`, encoded and decoded again."""
    frames, *labels = draw_drill(np.random.default_rng([DRILL_SEED, index]), DRILL_FRAMES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drill.mp4"
        encode(frames, path)
        with Video(path, threads=1) as video:
            pixels = video.frames([i / FPS for i in range(DRILL_FRAMES)], (SIDE, SIDE)).pixels
    return DrillItem(pixels, *labels)


def make_skim(index: int) -> SkimItem:
    """Pool skim `index`, encoded and decoded again."""
    frames, labels = draw_skim(np.random.default_rng([SKIM_SEED, index]), DRILL_FRAMES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "skim.mp4"
        encode(frames, path)
        with Video(path, threads=1) as video:
            pixels = video.frames([i / FPS for i in range(DRILL_FRAMES)], (SKIM, SKIM)).pixels
    return SkimItem(pixels, labels)


def build(folder: Path, *, scenes: int, drills: int, skims: int, processes: int = 2) -> None:
    """Make what is missing of the pool in `folder`: so many scene, drill and skim files."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [("scene", i) for i in range(scenes)] + [("drill", i) for i in range(drills)]
    jobs += [("skim", i) for i in range(skims)]
    todo = [(sort, i, folder) for sort, i in jobs if not (folder / f"{sort}-{i:05d}.pkl").exists()]
    with multiprocessing.get_context("spawn").Pool(processes) as workers:
        for done, _ in enumerate(workers.imap_unordered(_make, todo, chunksize=4), start=1):
            if done % 100 == 0 or done == len(todo):
                log.info("pool: %d of %d files", done, len(todo))


def load(folder: Path, sort: str, indices: Sequence[int] | range) -> list[Any]:
    """Pool items of one sort ("scene", "drill" or "skim"), in order."""
    return [pickle.loads((folder / f"{sort}-{i:05d}.pkl").read_bytes()) for i in indices]


def _make(job: tuple[str, int, Path]) -> None:
    sort, index, folder = job
    item = {"scene": make_scene, "drill": make_drill, "skim": make_skim}[sort](index)
    path = folder / f"{sort}-{index:05d}.pkl"
    partial = path.with_suffix(".part")
    partial.write_bytes(pickle.dumps(item, protocol=5))
    partial.replace(path)
