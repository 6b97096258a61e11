"""Generated needle tasks as real files: one H.264 video per task and a `tasks.jsonl`.

    from closeup.rl.data.needles import write
    tasks = write(count=100, seed=600_000, out=Path("needles"))

Design note. Videos are ordinary MP4 files (112 x 112, 10 frames per second, H.264), so whatever is trained or tested on
them goes through the same decoder as a user's film.

Invariants
1. Task i of seed K depends on (K, i) and on the range of lengths only: asking for more tasks never changes earlier
   ones.
2. Kinds take turns: task i is of kind `KINDS[i % 4]`.
3. Training uses seeds below `EVALUATION_SEEDS`, evaluation the seeds from there on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import numpy as np

from closeup.rl.data.needle_draw import Pixels, draw_frames
from closeup.rl.data.needle_tasks import KINDS, Needle, ask, boxes_needed
from closeup.rl.data.needle_world import FPS, LONGEST, SECONDS, SIDE, Scene, plan_scene

EVALUATION_SEEDS = 500_000
SHORTEST = 16
MARK = "closeup needles"
"""Written into every generated file, so that a program can tell this world from any other (`is_needle`)."""


def plan(seed: int, index: int, seconds: tuple[float, float] = SECONDS) -> tuple[Scene, Needle, np.random.Generator]:
    """Task `index` of `seed`: its scene, its question, and the generator that draws its pixels.

    Args:
        seconds: shortest and longest video; whole seconds between them are drawn evenly.

    Raises:
        ValueError: the range is empty or outside 16..128 seconds, where the overview has 16 to 32 pairs.
    """
    low, high = int(np.ceil(seconds[0])), int(np.floor(seconds[1]))
    if not SHORTEST <= low <= high <= LONGEST:
        raise ValueError(
            f"videos are {SHORTEST} to {LONGEST} whole seconds long, got the range {seconds[0]:g}:{seconds[1]:g}; "
            f"give a range such as {SECONDS[0]}:{SECONDS[1]}"
        )
    rng = np.random.default_rng([seed, index])
    kind = KINDS[index % len(KINDS)]
    length = int(rng.integers(low, high + 1))
    windows = 1 if kind == "count" or rng.random() < 0.3 else 0
    scene = plan_scene(rng, length, boxes=boxes_needed(kind), flash_windows=windows)
    return scene, ask(scene, kind, rng), rng


def encode(frames: Iterable[Pixels], path: Path) -> None:
    """Write `frames` (uint8, H x W x 3, RGB) as H.264 at `FPS` frames per second; the file appears when complete."""
    partial = path.with_name(path.name + ".part")
    # With x264's macroblock tree, equal frames gave unequal files from call to call; without it they never did.
    options = {"crf": "20", "preset": "veryfast", "g": "50", "threads": "1", "x264-params": "mbtree=0"}
    with av.open(str(partial), "w", format="mp4") as container:
        container.metadata["comment"] = MARK
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    partial.replace(path)


def is_needle(path: Path) -> bool:
    """Whether a video file was generated here, by the mark in its container; False for files that do not open."""
    try:
        with av.open(str(path)) as container:
            return container.metadata.get("comment") == MARK
    except (OSError, av.error.FFmpegError):
        return False


def row(seed: int, index: int, scene: Scene, needle: Needle, video: str) -> dict[str, Any]:
    """The line of `tasks.jsonl` for one task."""
    fields = asdict(needle)
    kind = fields.pop("kind")
    return {"id": f"needle-{seed}-{index:06d}", "video": video, **fields, "kind": kind, "duration": scene.seconds}


def write(
    count: int,
    seed: int,
    out: Path,
    seconds: tuple[float, float] = SECONDS,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `count` videos and their questions below `out`; returns the path of `tasks.jsonl`.

    Args:
        count: tasks, one video each. seed: K of invariant 1. out: folder, created when missing.
        seconds: shortest and longest video in seconds, within 16..128.
        progress: called as `progress(done, count)` after every video.

    Raises:
        ValueError: `count` is not positive, `seed` is negative, or the range of lengths is not possible.
    """
    if count < 1 or seed < 0:
        raise ValueError(f"count must be at least 1 and seed at least 0, got count {count} and seed {seed}")
    plan(seed, 0, seconds)  # a wrong range fails before anything is written
    videos = out / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(count):
        scene, needle, rng = plan(seed, index, seconds)
        name = f"needle-{seed}-{index:06d}.mp4"
        encode(draw_frames(scene, rng), videos / name)
        lines.append(json.dumps(row(seed, index, scene, needle, f"videos/{name}")))
        if progress is not None:
            progress(index + 1, count)
    tasks = out / "tasks.jsonl"
    tasks.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tasks
