"""decord, the decoder that the field's older recipes name, in a process of its own that ends with every call.

The frame is chosen by our own table of presentation times and asked for by number; decord must then report that frame's
time. Files on which it was measured wrong or failing are refused by name (docs/video.md).
"""

from __future__ import annotations

import importlib.util
import os
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from closeup.tools.video.backends.base import Order, Shot
from closeup.tools.video.backends.decord_worker import HEADER
from closeup.tools.video.backends.table import FrameTable, Refusals, frame_table, refuse
from closeup.tools.video.facts import Probe
from closeup.tools.video.index import StreamIndex
from closeup.tools.video.orientation import UPRIGHT
from closeup.tools.video.pixels import RESIZER, to_rgb

_WORKER = Path(__file__).with_name("decord_worker.py")
START_SECONDS, FRAME_SECONDS = 120.0, 10.0  # decord can hang: time allowed to start, and more for each frame
REFUSALS = Refusals(
    containers={
        "mpegts": "decord shows other frames of a transport stream",
        "mpeg": "decord reads no times from a program stream",
        "gif": "decord does not open GIF",
    },
    codecs={
        "hevc": "decord shows other frames of HEVC, which usually has open groups of pictures",
        "av1": "decord's FFmpeg has no AV1 decoder",
    },
    open_groups=True,
)
_MOST_NUMBERS = 2000  # frames named on one command line


class Decord:
    """See `closeup.tools.video.backends.base.Backend`."""

    name = "decord"
    resizer = f"{RESIZER}-from-rgb"

    def __init__(self) -> None:
        if importlib.util.find_spec("decord") is None:
            raise ImportError("No module named 'decord'")
        self.version = version("decord")

    def check(self, probe: Probe) -> None:
        """Refuse what was measured wrong."""
        REFUSALS.check(probe, self.name)

    def shots(self, probe: Probe, index: StreamIndex, order: Order, threads: int) -> Iterator[Shot]:
        """See the protocol."""
        table = frame_table(probe, self.name, REFUSALS)
        ticks: dict[int, list[int]] = {}
        for tick in order.ticks:
            number, until = table.find(tick, order.mode)
            ticks.setdefault(number, []).append(tick)
            if order.mode == "exact":
                index.learn(table.pts[number], until)
        reformatter = VideoReformatter()
        numbers = sorted(ticks)
        for first in range(0, len(numbers), _MOST_NUMBERS):
            for number, picture in self._decode(probe, table, numbers[first : first + _MOST_NUMBERS], threads):
                pixels = picture
                if order.size is not None:
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    pixels = to_rgb(frame, order.size, UPRIGHT, reformatter)
                for tick in ticks[number]:
                    yield Shot(tick, table.pts[number], pixels)

    def _decode(
        self, probe: Probe, table: FrameTable, numbers: list[int], threads: int
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """The full-size pictures of these frames, as the worker sends them."""
        reading, writing = os.pipe()
        arguments = [probe.stamp.path, str(writing), str(threads), *map(str, numbers)]
        with tempfile.TemporaryFile() as messages, os.fdopen(reading, "rb") as pipe:
            worker = subprocess.Popen(
                [sys.executable, "-P", str(_WORKER), *arguments],
                pass_fds=(writing,),
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
            )
            os.close(writing)
            limit = threading.Timer(START_SECONDS + FRAME_SECONDS * len(numbers), worker.kill)
            limit.start()
            try:
                count = _read(pipe, 8)
                if count and struct.unpack("=q", count)[0] != len(table.pts):
                    raise refuse(
                        probe, self.name, f"it sees {struct.unpack('=q', count)[0]} frames of {len(table.pts)}"
                    )
                origin = None
                for number in numbers:
                    header = _read(pipe, HEADER.size)
                    if not header:
                        worker.wait()
                        messages.seek(0)
                        raise refuse(probe, self.name, f"it fails ({_last_line(messages.read())})")
                    sent, time, height, width = HEADER.unpack(header)
                    expected = probe.seconds(table.pts[number])
                    origin = time - expected if origin is None else origin
                    picture = np.frombuffer(_read(pipe, height * width * 3), dtype=np.uint8).reshape(height, width, 3)
                    if sent != number or abs(time - origin - expected) > 0.002:
                        raise refuse(probe, self.name, f"it shows the frame of {time:.3f} s at {expected:.3f} s")
                    yield number, picture
            finally:
                limit.cancel()
                worker.kill()
                worker.wait()


def backend() -> Decord:
    """The backend; called by `closeup.tools.video.backends.load`."""
    return Decord()


def _read(pipe: BinaryIO, count: int) -> bytes:
    """Exactly `count` bytes, or none when the worker has ended."""
    data = pipe.read(count)
    return data if len(data) == count else b""


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:200] if lines else "its process was killed"
