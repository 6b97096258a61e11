"""Every backend returns ffmpeg's frame or refuses the file by name, and docs/video.md tells which."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from closeup.tools.video import UnsupportedByBackend, Video, cache_stats
from closeup.tools.video.backends import NAMES, _decord, _torchcodec
from closeup.tools.video.backends.table import OPEN_GROUPS, SEEN_IN_PACKETS

DOCS = Path(__file__).parents[3] / "docs" / "video.md"
REFUSED = {  # file of the zoo -> words of the refusal; every other file must come out right
    "decord": {
        "opengop": "no clean start",
        "intra-refresh": "no clean start",
        "asp-avi": "no clean start",
        "ts": "transport stream",
        "ts-cut": "transport stream",
        "ts-hevc": "transport stream",
        "m2ts-mpeg2": "transport stream",
        "mpeg-ps": "program stream",
        "edit-list": "edit list",
        "hevc": "HEVC",
        "hevc-10bit": "HEVC",
        "av1-mp4": "AV1",
        "av1-mkv": "AV1",
        "gif": "GIF",
        "no-count-webm": "it fails",
    },
    "torchcodec": {
        "intra-refresh": "it shows the frame of",
        "asp-avi": "it shows the frame of|it fails",
        "ts": "transport stream",
        "ts-cut": "transport stream",
        "ts-hevc": "transport stream",
        "m2ts-mpeg2": "transport stream",
        "mpeg-ps": "program stream",
        "edit-list": "edit list",
    },
}


@pytest.fixture(scope="session", params=["decord", "torchcodec"])
def backend(request: pytest.FixtureRequest) -> str:
    """A backend that is installed and loads here."""
    name: str = request.param
    if importlib.util.find_spec(name) is None:
        pytest.skip(f'{name} is not installed: pip install "closeup[{name}]"')
    if name == "torchcodec":
        loads = subprocess.run([sys.executable, "-c", "import torchcodec.decoders"], capture_output=True, check=False)
        if loads.returncode and os.environ.get("CI") != "true":
            pytest.skip(
                "torchcodec does not load here: it needs FFmpeg's shared libraries (Debian: apt install ffmpeg)"
            )
    return name


QUICK = {"bframes", "vfr-mp4", "vfr-slowing", "start10-mkv", "rotate-90", "sar-2-1", "vp9", "odd-444", "one-frame"}


@pytest.mark.parametrize("name", sorted(QUICK | set(REFUSED["decord"])))
def test_ffmpegs_frame_or_a_refusal(backend: str, name: str, zoo: Callable[[str], Any]) -> None:
    check_file(backend, name, zoo(name))


@pytest.mark.slow  # a process for each file
def test_ffmpegs_frame_or_a_refusal_on_every_file(backend: str, zoo_name: str, zoo: Callable[[str], Any]) -> None:
    check_file(backend, zoo_name, zoo(zoo_name))


def check_file(backend: str, zoo_name: str, sample: Any) -> None:
    """Ask for times in random order, the last frame and the middle one."""
    order = random.Random(zoo_name)
    times = [order.uniform(-0.1, sample.times[-1] + 0.1) for _ in range(9)]
    times += [float(sample.times[-1]), float(sample.times[len(sample.times) // 2])]
    words = REFUSED[backend].get(zoo_name)
    if words is not None:
        with pytest.raises(UnsupportedByBackend, match=words) as caught, Video(sample.path, backend=backend) as video:
            video.frames(times, sample.frames.shape[1:3])
        assert "use backend='pyav'" in str(caught.value)
        return
    with Video(sample.path, backend=backend) as video:
        got = video.frames(times, sample.frames.shape[1:3])
    assert got.backend == backend
    for place, time in enumerate(times):
        number = sample.index_at(time)
        assert got.times[place] == pytest.approx(sample.times[number], abs=1e-6)
        assert np.abs(got.pixels[place].astype(int) - sample.frames[number]).mean() < 4


def test_backends_agree_on_small_pictures_and_key_frames(backend: str, barcode_mp4: Path) -> None:
    times = [0.0, 0.99, 3.21, 5.9, 100.0]
    with Video(barcode_mp4) as ours, Video(barcode_mp4, backend=backend) as theirs:
        for mode in ("exact", "keyframe"):
            expected = ours.frames(times, (40, 80), mode=mode)  # type: ignore[arg-type]
            got = theirs.frames(times, (40, 80), mode=mode)  # type: ignore[arg-type]
            assert (got.times == expected.times).all()
            assert np.abs(got.pixels.astype(int) - expected.pixels).mean() < 3
        before = cache_stats()["frames"].hits
        theirs.frames(times, (40, 80))
        assert cache_stats()["frames"].hits > before, "each backend has its own frames in the store"


def test_damaged_files_are_refused(backend: str, barcode_mp4: Path, tmp_path: Path) -> None:
    path = tmp_path / "hole.mp4"
    data = bytearray(barcode_mp4.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    path.write_bytes(data)
    with Video(path, backend=backend) as video:
        try:
            got = video.frames([n / 30 for n in range(180)])
        except UnsupportedByBackend:
            return
        with Video(path) as ours:  # or else it must be as right as the default decoder
            expected = ours.frames([n / 30 for n in range(180)])
        assert (got.times == expected.times).all()


def test_decord_leaves_no_process_and_no_module_behind(barcode_mp4: Path) -> None:
    if importlib.util.find_spec("decord") is None:
        pytest.skip('decord is not installed: pip install "closeup[decord]"')
    with Video(barcode_mp4, backend="decord") as video:
        video.frames([1.0])
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    assert "decord" not in sys.modules
    if children.exists():
        names = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children.read_text().split()]
        assert not [name for name in names if b"decord_worker" in name]


def test_a_decord_that_hangs_is_ended(barcode_mp4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("decord") is None:
        pytest.skip('decord is not installed: pip install "closeup[decord]"')
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import time; time.sleep(600)")
    monkeypatch.setattr(_decord, "_WORKER", sleeper)
    monkeypatch.setattr(_decord, "START_SECONDS", 0.2)
    monkeypatch.setattr(_decord, "FRAME_SECONDS", 0.0)
    with (
        Video(barcode_mp4, backend="decord") as video,
        pytest.raises(UnsupportedByBackend, match="its process was killed"),
    ):
        video.frames([1.0])


def test_the_documentation_tells_what_is_refused() -> None:
    text = DOCS.read_text()
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \|(.*)\|$", text, flags=re.MULTILINE))
    for name in sorted({name for refused in REFUSED.values() for name in refused}):
        cells = [cell.strip() for cell in rows[name].split("|")]
        for backend, cell in zip(NAMES, cells[-3:], strict=True):
            assert cell == ("refused" if name in REFUSED.get(backend, {}) else "exact"), f"{name}, {backend}"
    for module in (_decord, _torchcodec):
        for reason in (*module.REFUSALS.containers.values(), *module.REFUSALS.codecs.values()):
            assert reason in text, f"docs/video.md lacks: {reason}"
    for reason in (*SEEN_IN_PACKETS, OPEN_GROUPS):
        assert reason in text, f"docs/video.md lacks: {reason}"
