"""The default decoder: FFmpeg through PyAV, with our own seek loop, right on every container that FFmpeg seeks in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import av
import numpy as np
from av import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from closeup.tools.video import cache
from closeup.tools.video.backends.base import Order, Shot
from closeup.tools.video.backends.cursor import Cursor
from closeup.tools.video.backends.keyframes import key_frame_at
from closeup.tools.video.errors import NoFrames
from closeup.tools.video.facts import Probe
from closeup.tools.video.index import StreamIndex
from closeup.tools.video.pixels import RESIZER, to_rgb

_READER_BASE = 10 << 20  # bytes of an open container and decoder, measured on an hour of 360p, pictures not counted


class PyAV:
    """See `closeup.tools.video.backends.base.Backend`."""

    name = "pyav"
    version = av.__version__
    resizer = RESIZER

    def check(self, probe: Probe) -> None:
        """Nothing that can be probed is refused."""

    def shots(self, probe: Probe, index: StreamIndex, order: Order, threads: int) -> Iterator[Shot]:
        """See the protocol."""
        with _borrowed(probe, 1 if order.mode == "keyframe" else threads) as cursor:
            reformatter = VideoReformatter()
            frame: VideoFrame | None = None
            pixels: NDArray[np.uint8] | None = None
            try:
                for tick in order.ticks:
                    found = self._find(cursor, probe, index, tick, order.mode)
                    assert found.pts is not None
                    if frame is None or pixels is None or found.pts != frame.pts:
                        frame, pixels = found, to_rgb(found, order.size, probe.orientation, reformatter)
                    yield Shot(tick, found.pts, pixels)
            finally:
                index.add_bad(cursor.bad)

    def _find(self, cursor: Cursor, probe: Probe, index: StreamIndex, tick: int, mode: str) -> VideoFrame:
        try:
            if mode == "keyframe":
                return key_frame_at(cursor, probe, index, tick)
            found, until = cursor.at(tick)
        except LookupError as error:
            raise NoFrames(f"{error}; the file is damaged") from None
        assert found.pts is not None
        index.learn(found.pts, until)
        return found


def backend() -> PyAV:
    """The backend; called by `closeup.tools.video.backends.load`."""
    return PyAV()


@contextmanager
def _borrowed(probe: Probe, threads: int) -> Iterator[Cursor]:
    """A reader for exclusive use: an idle one if there is one, given back unless something went wrong."""
    key = (probe.stamp, probe.stream, threads)
    reader = cache.readers.take(key)
    if not isinstance(reader, Cursor):
        reader = Cursor(probe.stamp.path, probe.stream, start=probe.start, threads=threads, droppable=probe.droppable)
        cache.readers.watch(reader)
    try:
        yield reader
    except BaseException:
        reader.close()
        raise
    picture = probe.coded_width * probe.coded_height * 3 // 2
    cache.readers.give(key, reader, _READER_BASE + picture * (threads + 6))
