"""Formats whose pictures lean on what came before in ways no seek can know: each frame is right, asked cold."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from closeup.tools.video import Video

SOURCE = ["-f", "lavfi", "-i", "testsrc2=s=160x96:r=10:d=4"]


@pytest.mark.parametrize(
    ("name", "options"),
    [("palette.avi", ["-pix_fmt", "pal8", "-c:v", "rawvideo"]), ("animated.png", ["-plays", "0", "-f", "apng"])],
)
@pytest.mark.parametrize("time", [0.5, 1.0, 3.9])
def test_a_cold_look_equals_ffmpeg(tmp_path: Path, name: str, options: list[str], time: float) -> None:
    if shutil.which("ffmpeg") is None and not os.environ.get("CI"):
        pytest.skip("the ffmpeg program makes these files: apt install ffmpeg")
    file = tmp_path / name
    subprocess.run(["ffmpeg", "-v", "error", *SOURCE, *options, str(file)], check=True)
    decode = ["ffmpeg", "-v", "error", "-i", str(file), "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    raw = subprocess.run(decode, check=True, capture_output=True).stdout
    pictures = np.frombuffer(raw, np.uint8).reshape(-1, 96, 160, 3)
    for mode in ("exact", "keyframe"):
        with Video(file) as video:
            frames = video.frames([time], mode=mode)  # type: ignore[arg-type]
        assert np.array_equal(frames.pixels[0], pictures[round(frames.times[0] * 10)])


@pytest.mark.parametrize("time", [1e308, 1e300, 1e15])
def test_times_beyond_any_film_give_its_last_frame(make_video, time: float) -> None:  # type: ignore[no-untyped-def]
    with Video(make_video(seconds=2)) as video:
        assert video.frames([time]).times[0] == pytest.approx(1.9)
        assert video.frames([-time]).times[0] == 0
