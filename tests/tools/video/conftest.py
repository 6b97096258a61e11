"""Test videos whose every frame carries its own number as a barcode, so that a wrong frame shows itself.

`zoo(name)` makes one difficult file with the ffmpeg program and reads every frame of it back with that same program:
the oracle. `barcode_mp4` is a plain file written through PyAV for tests that need no oracle.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from closeup.tools.video import clear_caches

BITS = 12
HAVE_FFMPEG = shutil.which("ffmpeg") is not None and shutil.which("ffprobe") is not None


@pytest.fixture(autouse=True)
def fresh_caches() -> Iterator[None]:
    """Every test starts with empty caches and leaves none behind."""
    clear_caches()
    yield
    clear_caches()


@pytest.fixture(scope="session")
def ffmpeg() -> None:
    """Skip where the ffmpeg program is missing, except on CI, which installs it."""
    if not HAVE_FFMPEG:
        if os.environ.get("CI") == "true":
            pytest.fail("CI must install the ffmpeg program")
        pytest.skip("the ffmpeg program is not installed (Debian: apt install ffmpeg)")


def barcode(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """H x W x 3: `number` as BITS black and white columns over their inverse, over a moving colour ramp."""
    bits = np.array([(number >> bit) & 1 for bit in range(BITS)], dtype=np.uint8)
    columns = np.minimum(np.arange(width) * BITS // width, BITS - 1)
    picture = np.empty((height, width, 3), dtype=np.uint8)
    third = height // 3
    picture[:third] = (bits[columns] * 215 + 20)[None, :, None]
    picture[third : 2 * third] = ((1 - bits[columns]) * 215 + 20)[None, :, None]
    ramp = (np.arange(width) * 2 + number * 3) % 200 + 28
    picture[2 * third :] = np.stack([ramp, 255 - ramp, np.full(width, 40 + number % 160)], axis=-1)[None]
    return picture


def read_barcode(picture: NDArray[np.uint8]) -> int:
    """The number in a picture made by `barcode`, at any size; -1 when the two rows contradict each other."""
    height, width = picture.shape[:2]
    grey = picture.astype(np.float64).mean(axis=-1)
    middles = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    upper = grey[height // 6, middles] > 128
    lower = grey[height // 2, middles] > 128
    return -1 if (upper == lower).any() else int(sum(1 << bit for bit in range(BITS) if upper[bit]))


def write_mp4(
    path: Path, pts: list[int], *, size: tuple[int, int] = (96, 192), rate: int = 30, gop: int = 24, first: int = 0
) -> Path:
    """An H.264 file with B-frames whose frames are shown at `pts` (in 1/rate s); size = (height, width)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"g": str(gop), "bf": "3", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        for number, at in enumerate(pts, first):
            frame = av.VideoFrame.from_ndarray(barcode(number, size[1], size[0]), format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def barcode_mp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 s at 30 frames per second, 192x96, key frame every 24 frames; frame n carries n."""
    return write_mp4(tmp_path_factory.mktemp("plain") / "plain.mp4", list(range(180)))


@dataclass(frozen=True, eq=False)
class Sample:
    """A file and every frame of it as the ffmpeg program shows it.

    `times` are seconds from the stream's start; `frames` are T x H x W x 3 as displayed (sample aspect not applied).
    """

    path: Path
    times: NDArray[np.float64]
    frames: NDArray[np.uint8]

    def index_at(self, time: float) -> int:
        """The frame shown at `time`: the last with presentation time <= time, else the first."""
        return max(0, int(np.searchsorted(self.times, time + 1e-7, side="right")) - 1)


def run(*arguments: str | Path, stdin: bytes | None = None) -> bytes:
    """Run a program and return its standard output."""
    done = subprocess.run([str(a) for a in arguments], input=stdin, capture_output=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, arguments))}\n{done.stderr.decode(errors='replace')[-2000:]}")
    return done.stdout


def oracle(path: Path) -> Sample:
    """Decode a file from its first to its last frame with the ffmpeg program."""
    probe = ("ffprobe", "-v", "quiet", "-select_streams", "v:0", "-of", "default=nw=1:nk=1")
    lines = run(*probe, "-show_entries", "frame=best_effort_timestamp", path).decode().split()
    ticks = [0 if line == "N/A" else int(line) for line in lines]
    for place, line in enumerate(lines):
        if line == "N/A":  # AVI: the last picture comes out after the last packet, one step later
            ticks[place] = 2 * ticks[place - 1] - ticks[place - 2]
    base, start = run(*probe, "-show_entries", "stream=time_base,start_pts", path).decode().split()[:2]
    first = ticks[0] if start == "N/A" else int(start)
    stamps = np.array([float((tick - first) * Fraction(base)) for tick in ticks])
    command = ("ffmpeg", "-v", "quiet", "-i", path, "-map", "0:v:0", "-fps_mode", "passthrough", "-f", "rawvideo")
    raw = run(*command, "-pix_fmt", "rgb24", "-")
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        height, width = frame.height, frame.width
        if frame.rotation % 180:
            height, width = width, height
    frames = np.frombuffer(raw, dtype=np.uint8).reshape(-1, height, width, 3)
    assert len(frames) == len(stamps), f"the oracle disagrees with itself: {len(frames)} pictures, {len(stamps)} times"
    return Sample(path, stamps, frames)


X264 = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-bf", "3", "-g", "24")
X265 = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:keyint=24")
BURSTS = "setpts='(N+15*floor(N/10))/30/TB'"
SLOWING = "setpts='(N+0.02*N*N)/30/TB'"
VFR = ("-fps_mode", "passthrough", "-enc_time_base", "1/1200")

# name: (suffix, encoder options, then stream-copy steps (suffix, input options, output options), frame size)
RECIPES: dict[str, tuple[str, tuple[str, ...], tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]]] = {
    "bframes": (".mp4", X264, ()),
    "opengop": (".mp4", (*X264, "-x264-params", "open-gop=1:b-pyramid=normal"), ()),
    "intra-refresh": (".mp4", (*X264, "-bf", "0", "-x264-params", "intra-refresh=1:keyint=30"), ()),
    "interlaced": (".mp4", (*X264, "-flags", "+ilme+ildct"), ()),
    "vfr-mp4": (".mp4", ("-vf", BURSTS, *VFR, *X264), ()),
    "vfr-mkv": (".mkv", ("-vf", BURSTS, *VFR, *X264), ()),
    "vfr-slowing": (".mp4", ("-vf", SLOWING, *VFR, *X264), ()),
    "start10-mp4": (".mp4", (*X264, "-output_ts_offset", "10"), ()),
    "start10-mkv": (".mkv", (*X264, "-output_ts_offset", "10"), ()),
    "mkv": (".mkv", X264, ()),
    "ts": (".ts", (*X264, "-x264-params", "open-gop=1"), ()),
    "ts-hevc": (".ts", X265, ()),
    "m2ts-mpeg2": (".ts", ("-c:v", "mpeg2video", "-bf", "2", "-g", "12", "-q:v", "3"), ()),
    "mpeg-ps": (".mpg", ("-c:v", "mpeg2video", "-bf", "2", "-g", "12", "-q:v", "3"), ()),
    "edit-list": (".mp4", X264, ((".mp4", ("-ss", "1.3"), ()),)),
    "rotate-90": (".mp4", X264, ((".mp4", (), ("-metadata:s:v:0", "rotate=90")),)),
    "rotate-180": (".mp4", X264, ((".mp4", (), ("-metadata:s:v:0", "rotate=180")),)),
    "rotate-270": (".mp4", X264, ((".mp4", (), ("-metadata:s:v:0", "rotate=270")),)),
    "sar-2-1": (".mp4", ("-vf", "setsar=2", *X264), ()),
    "sar-8-9": (".mkv", ("-vf", "setsar=8/9", *X264), ()),
    "hevc": (".mp4", X265, ()),
    "hevc-10bit": (".mkv", (*X265, "-pix_fmt", "yuv420p10le"), ()),
    "vp8": (".webm", ("-c:v", "libvpx", "-deadline", "realtime", "-g", "24", "-b:v", "1M"), ()),
    "vp9": (".webm", ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-g", "24", "-b:v", "1M"), ()),
    "av1-mp4": (".mp4", ("-c:v", "libsvtav1", "-preset", "12", "-g", "24"), ()),
    "av1-mkv": (".mkv", ("-c:v", "libsvtav1", "-preset", "12", "-g", "24"), ()),
    "odd-444": (".mp4", ("-vf", "scale=151:97", *X264, "-pix_fmt", "yuv444p"), ()),
    "odd-vp9": (".webm", ("-vf", "scale=151:97", "-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8"), ()),
    "one-frame": (".mp4", (*X264, "-frames:v", "1"), ()),
    "no-count-webm": (".webm", ("-c:v", "libvpx", "-deadline", "realtime", "-g", "24", "-live", "1"), ()),
    "fragmented": (".mp4", (*X264, "-movflags", "frag_keyframe+empty_moov+default_base_moof"), ()),
    "flv": (".flv", X264, ()),
    "mjpeg-mov": (".mov", ("-c:v", "mjpeg", "-q:v", "3"), ()),
    "asp-avi": (".avi", ("-c:v", "mpeg4", "-bf", "2", "-g", "24", "-q:v", "3"), ()),
    "mjpeg-avi": (".avi", ("-c:v", "mjpeg", "-q:v", "3"), ()),
    "gif": (".gif", ("-vf", "fps=25"), ()),
    "bt709": (".mp4", ("-vf", "scale=out_color_matrix=bt709", *X264, "-colorspace", "bt709"), ()),
    "full-range": (".mp4", ("-vf", "scale=out_range=full", *X264, "-color_range", "pc"), ()),
    "fields": (".mkv", (*X264, "-x264-params", "tff=1"), ()),
}
RECIPES["ts-cut"] = RECIPES["ts"]
CUT_AT = {"ts-cut": 0.4}  # the first part of the file is missing: it starts in the middle of a group of pictures
FRAMES, WIDTH, HEIGHT, RATE = 90, 192, 96, 30


@pytest.fixture(scope="session")
def source() -> bytes:
    """The numbered frames as raw RGB, FRAMES x HEIGHT x WIDTH x 3."""
    return np.stack([barcode(number, WIDTH, HEIGHT) for number in range(FRAMES)]).tobytes()


@pytest.fixture(scope="session")
def make(ffmpeg: None, tmp_path_factory: pytest.TempPathFactory, source: bytes) -> Callable[[str], Path]:
    """Write the file of a recipe, once."""
    folder = tmp_path_factory.mktemp("zoo")
    made: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in made:
            suffix, options, steps = RECIPES[name]
            path = folder / f"{name}{suffix}"
            raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", str(RATE), "-i", "-")
            run("ffmpeg", "-v", "error", "-y", *raw, *options, path, stdin=source)
            for number, (step, before, after) in enumerate(steps):
                copy = folder / f"{name}-{number}{step}"
                run("ffmpeg", "-v", "error", "-y", *before, "-i", path, "-c", "copy", *after, copy)
                path = copy
            if name in CUT_AT:
                data = path.read_bytes()
                path.write_bytes(data[int(len(data) * CUT_AT[name]) // 188 * 188 :])
            made[name] = path
        return made[name]

    return write


@pytest.fixture(scope="session")
def zoo(make: Callable[[str], Path]) -> Callable[[str], Sample]:
    """The file of a recipe with the oracle's frames, once."""
    known: dict[str, Sample] = {}

    def get(name: str) -> Sample:
        if name not in known:
            known[name] = oracle(make(name))
        return known[name]

    return get


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `zoo_name` runs once for each recipe."""
    if "zoo_name" in metafunc.fixturenames:
        metafunc.parametrize("zoo_name", list(RECIPES))


@pytest.fixture(name="read_barcode", scope="session")
def _read_barcode() -> Callable[[NDArray[np.uint8]], int]:
    """`read_barcode` for test modules, which cannot import this file."""
    return read_barcode
