"""Fixtures every room may use: `make_video` writes a small real video file, `task` asks about one of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from closeup.agent.task import Task
from closeup.tools.video import Video

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # before torch loads: spinning threads starve each other on a busy machine

MakeVideo = Callable[..., Path]


def write_video(
    path: Path, *, seconds: float = 4.0, fps: int = 10, size: tuple[int, int] = (56, 56), shade: int = 0
) -> Path:
    """Write an H.264 file: a grey that brightens with time, and a white square that moves one pixel per frame.

    Args:
        seconds: duration; fps: frames per second, constant.
        size: (height, width) in pixels, even numbers.
        shade: added to the first grey (0 to 100), so that two files differ in content.
    """
    height, width = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "20", "preset": "ultrafast", "g": "25"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        total = max(1, round(seconds * fps))
        for index in range(total):
            picture = np.full((height, width, 3), shade + 100 * index // total, np.uint8)
            left = index % max(1, width - 8)
            picture[8:16, left : left + 8] = 255
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def make_video(tmp_path_factory: pytest.TempPathFactory) -> MakeVideo:
    """`make_video(seconds=…, fps=…, size=(height, width), shade=…)` gives the path of such a file (see `write_video`).

    Files are written once per session and shape: do not change them.
    """
    folder = tmp_path_factory.mktemp("videos")
    made: dict[tuple[object, ...], Path] = {}

    def make(*, seconds: float = 4.0, fps: int = 10, size: tuple[int, int] = (56, 56), shade: int = 0) -> Path:
        key = (seconds, fps, size, shade)
        if key not in made:
            name = f"{seconds:g}s-{fps}fps-{size[0]}x{size[1]}-{shade}.mp4"
            made[key] = write_video(folder / name, seconds=seconds, fps=fps, size=size, shade=shade)
        return made[key]

    return make


@pytest.fixture(scope="session")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two videos of 40 s that are red and blue from 7.5 s to 11.5 s and equal otherwise: they share an identity.

    Uncompressed, since what lies between the three sampled blocks of 1 MiB must differ and no other byte may.
    """
    folder = tmp_path_factory.mktemp("twins")
    made = []
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        made.append(folder / f"{name}.avi")
        with av.open(str(made[-1]), "w") as container:
            stream = container.add_stream("rawvideo", rate=10)
            stream.width, stream.height, stream.pix_fmt = 128, 128, "yuv420p"
            for index in range(400):
                picture = np.full((128, 128, 3), colour if 75 <= index < 115 else 40, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    red, blue = made
    with Video(red) as one, Video(blue) as other:
        assert one.identity == other.identity and red.read_bytes() != blue.read_bytes()
    return red, blue


@pytest.fixture(scope="session")
def task(make_video: Callable[..., Path]) -> Task:
    """A question with options about a video of 20 s; the gold answer is B, its evidence 12 s to 13 s."""
    return Task(
        id="red",
        videos=(make_video(seconds=20, size=(112, 112)),),
        question="Which digit is in the red box?",
        options=("3", "7", "1", "9"),
        answer="7",
        evidence=((12, 13),),
    )
