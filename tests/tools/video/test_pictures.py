"""What frames look like: size, turning, aspect, the resizer, colours and the drawn time."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from closeup.tools.video import Clip, NotAVideo, Video
from closeup.tools.video.orientation import UPRIGHT, Orientation, from_matrix
from closeup.tools.video.overlay import draw
from closeup.tools.video.pixels import to_rgb
from closeup.tools.video.reader import fit

ONE = 1 << 16


def matrix(a: int, b: int, c: int, d: int) -> bytes:
    return struct.pack("=9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)


PICTURE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


@pytest.mark.parametrize(
    ("numbers", "degrees", "expected"),
    [
        ((ONE, 0, 0, ONE), 0, PICTURE),
        ((0, -ONE, ONE, 0), 90, np.rot90(PICTURE, 1)),
        ((-ONE, 0, 0, -ONE), 180, np.rot90(PICTURE, 2)),
        ((0, ONE, -ONE, 0), 270, np.rot90(PICTURE, 3)),
        ((-ONE, 0, 0, ONE), 0, PICTURE[:, ::-1]),
        ((ONE, 0, 0, -ONE), 180, PICTURE[::-1]),
        ((0, ONE, ONE, 0), 270, PICTURE.swapaxes(0, 1)),
    ],
)
def test_display_matrix(numbers: tuple[int, int, int, int], degrees: int, expected: Any) -> None:
    orientation = from_matrix(matrix(*numbers))
    assert (orientation.apply(PICTURE) == expected).all()
    assert orientation.degrees == degrees
    assert orientation.stored(orientation.stored((2, 3))) == (2, 3)
    a, b, c, d = numbers
    assert orientation.mirrored == (a * d - b * c < 0)


def test_other_angles_are_refused() -> None:
    assert from_matrix(matrix(ONE, 300, -300, ONE)) == UPRIGHT
    with pytest.raises(NotAVideo, match="multiple of 90 degrees"):
        from_matrix(matrix(46341, 46341, -46341, 46341))


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 10**7))
def test_fit(height: int, width: int, pixels: int) -> None:
    rows, columns = fit((height, width), pixels)
    assert 1 <= rows <= height and 1 <= columns <= width
    assert rows * columns <= pixels
    if height * width <= pixels:
        assert (rows, columns) == (height, width)
    elif min(rows, columns) >= 8:
        assert columns / rows == pytest.approx(width / height, rel=0.3)


def test_sizes(barcode_mp4: Path) -> None:
    with Video(barcode_mp4) as video:
        assert (video.height, video.width) == (96, 192)
        assert video.frames([0.0]).pixels.shape == (1, 96, 192, 3)
        assert video.frames([0.0], (33, 51)).pixels.shape == (1, 33, 51, 3)
        clip = Clip(video=video.identity, start=0, end=1, num_frames=3, pixels=48 * 96)
        assert video.frames(clip).pixels.shape == (3, 48, 96, 3)
        assert video.frames(clip, (28, 56)).pixels.shape == (3, 28, 56, 3)
        assert video.frames(clip.model_copy(update={"pixels": 10**9})).pixels.shape == (3, 96, 192, 3)


def test_facts(barcode_mp4: Path) -> None:
    with Video(barcode_mp4) as video:
        assert video.duration == pytest.approx(6.0)
        assert (video.fps, video.nominal_fps, video.codec) == (30.0, 30.0, "h264")
        assert (video.start_time, video.rotation, video.backend) == (0.0, 0, "pyav")
        assert video.path == barcode_mp4 and len(video.identity) == 32
        assert "6.00 s, 192x96" in repr(video)


def test_time_rules(barcode_mp4: Path, read_barcode: Callable[[Any], int]) -> None:
    with Video(barcode_mp4) as video:
        got = video.frames([-5, 0, 1 / 30 - 1e-4, 1 / 30, 2.0, 2.02, 5.9999, 6.0, 1e9])
        assert [read_barcode(p) for p in got.pixels] == [0, 0, 0, 1, 60, 60, 179, 179, 179]
        assert got.times == pytest.approx([0, 0, 0, 1 / 30, 2, 2, 179 / 30, 179 / 30, 179 / 30])
        assert list(got.requested) == [-5, 0, 1 / 30 - 1e-4, 1 / 30, 2.0, 2.02, 5.9999, 6.0, 1e9]
        every = video.frames([n / 30 for n in range(180)])
        again = video.frames(list(every.times))
        assert (again.times == every.times).all(), "a frame's own time gives that frame"
        assert (got.times.dtype, got.requested.dtype, len(got)) == (np.float64, np.float64, 9)


def test_the_resizer_does_not_alias() -> None:
    """A zone plate from 1280x720 down to 160x90 stays near Pillow's antialiased filter."""
    rows, columns = np.mgrid[0:720, 0:1280]
    wave = 127.5 + 127.5 * np.cos(((columns - 640) ** 2 + (rows - 360) ** 2) * np.pi / 1300)
    stored = av.VideoFrame.from_ndarray(np.repeat(wave.astype(np.uint8)[..., None], 3, 2), format="rgb24")
    frame = stored.reformat(format="yuv420p")
    full = to_rgb(frame, (720, 1280), UPRIGHT, VideoReformatter())
    small = to_rgb(frame, (90, 160), UPRIGHT, VideoReformatter())
    pillow = np.asarray(Image.fromarray(full).resize((160, 90), Image.Resampling.BILINEAR))
    assert np.abs(small.astype(int) - pillow).mean() < 1.0
    assert abs(float(small.mean()) - float(full.mean())) < 1.0, "shrinking does not darken"


def test_turning_follows_the_size_asked_for() -> None:
    frame = av.VideoFrame.from_ndarray(np.full((10, 20, 3), 200, dtype=np.uint8), format="rgb24")
    assert to_rgb(frame, (40, 30), Orientation(True, True, False), VideoReformatter()).shape == (40, 30, 3)


def test_overlay_is_red_and_in_its_corner(barcode_mp4: Path) -> None:
    with Video(barcode_mp4) as video:
        clip = Clip(video=video.identity, start=0, end=5, num_frames=6, pixels=96 * 192)
        plain = video.frames(clip).pixels.astype(int)
        drawn = video.frames(clip.model_copy(update={"overlay": "seconds"})).pixels.astype(int)
    changed = (plain != drawn).any(axis=-1)
    assert changed.any(axis=(1, 2)).all(), "every frame carries its time"
    assert not changed[:, : 96 // 2].any() and not changed[:, :, : 192 // 2].any(), "lower right only"
    strongest = (drawn[..., 0] - drawn[..., 1:].max(axis=-1))[changed].max()
    assert strongest == 255
    grey = np.full((80, 160, 3), 128, dtype=np.uint8)
    pictures = [draw("seconds", grey, t) for t in (7.0, 7.99, 8.0, 71.0)]
    assert (pictures[0] == pictures[1]).all() and (pictures[0] != pictures[2]).any(), "whole seconds, rounded down"
    heights = np.flatnonzero((pictures[3] != 128).any(axis=(1, 2)))
    assert 80 // 16 <= heights.max() - heights.min() + 1 <= 80 // 8, "as high as an eighth of the shorter side"
    assert (grey == 128).all(), "the picture given is left alone"
    with pytest.raises(ValueError, match="unknown overlay"):
        draw("clock", grey, 0)


def test_identity_depends_on_bytes_only(barcode_mp4: Path, tmp_path: Path) -> None:
    copy = tmp_path / "renamed.bin"
    copy.write_bytes(barcode_mp4.read_bytes())
    with Video(barcode_mp4) as a, Video(copy) as b:
        assert a.identity == b.identity


def test_raw_dv_has_the_rate_of_its_pictures_not_of_its_clock(ffmpeg: None, tmp_path: Path) -> None:
    path = tmp_path / "tape.dv"
    source = ("-f", "lavfi", "-i", "testsrc=s=720x480:r=30000/1001:d=1")
    subprocess.run(["ffmpeg", "-v", "error", *source, "-target", "ntsc-dv", path], check=True)
    with Video(path) as video:
        assert video.fps == video.nominal_fps == pytest.approx(30000 / 1001)
