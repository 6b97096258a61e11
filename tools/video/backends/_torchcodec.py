"""The torchcodec decoder in exact mode through its batch calls (its approximate mode and single-frame calls go wrong).

The frame is chosen by our own table of presentation times and asked for by its number (torchcodec's call by time cannot
reach a last frame without a duration); torchcodec must then report that frame's time. Files on which it was measured
wrong or failing are refused by name (docs/video.md). This is the one module under `tools` that may load torch, and only
when it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from closeup.tools.video import cache
from closeup.tools.video.backends.base import Order, Shot
from closeup.tools.video.backends.table import Refusals, frame_table, refuse
from closeup.tools.video.facts import Probe
from closeup.tools.video.index import StreamIndex
from closeup.tools.video.orientation import UPRIGHT
from closeup.tools.video.pixels import RESIZER, to_rgb

BATCH = 16  # full-size frames held at once
REFUSALS = Refusals(
    containers={
        "mpegts": "it shows the frames of a transport stream at wrong times",
        "mpeg": "it shows the frames of a program stream at wrong times",
    },
    codecs={},
)
_READER = 40 << 20  # bytes of an open decoder, measured


class _Decoder:
    """An open torchcodec decoder that the reader pool can hold."""

    def __init__(self, probe: Probe, threads: int) -> None:
        from torchcodec.decoders import VideoDecoder

        self.decoder: Any = VideoDecoder(
            probe.stamp.path,
            stream_index=probe.stream,
            dimension_order="NHWC",
            num_ffmpeg_threads=threads,
            seek_mode="exact",
        )

    def close(self) -> None:
        """Let the decoder go."""
        self.decoder = None


class TorchCodec:
    """See `closeup.tools.video.backends.base.Backend`."""

    name = "torchcodec"
    resizer = f"{RESIZER}-from-rgb"

    def __init__(self) -> None:
        import torchcodec.decoders  # noqa: F401  # fails here, not at the first frame

        self.version = version("torchcodec")

    def check(self, probe: Probe) -> None:
        """Refuse what was measured wrong."""
        REFUSALS.check(probe, self.name)

    def shots(self, probe: Probe, index: StreamIndex, order: Order, threads: int) -> Iterator[Shot]:
        """See the protocol."""
        table = frame_table(probe, self.name, REFUSALS)
        found = [(tick, *table.find(tick, order.mode)) for tick in order.ticks]
        key = (self.name, probe.stamp, probe.stream, threads)
        reader = cache.readers.take(key)
        if not isinstance(reader, _Decoder):
            try:
                reader = _Decoder(probe, threads)
            except (RuntimeError, ValueError) as error:
                raise refuse(probe, self.name, f"it does not open there ({_first_line(error)})") from None
            cache.readers.watch(reader)
        reformatter = VideoReformatter()
        numbers = sorted({number for _, number, _ in found})
        for first in range(0, len(numbers), BATCH):
            batch = numbers[first : first + BATCH]
            pixels = dict(zip(batch, self._decode(reader, probe, table.pts, batch), strict=True))
            for tick, number, until in found:
                if number in pixels:
                    picture = pixels[number]
                    if order.size is not None:
                        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                        picture = to_rgb(frame, order.size, UPRIGHT, reformatter)
                    if order.mode == "exact":
                        index.learn(table.pts[number], until)
                    yield Shot(tick, table.pts[number], picture)
        cache.readers.give(key, reader, _READER)

    def _decode(self, reader: _Decoder, probe: Probe, pts: tuple[int, ...], numbers: list[int]) -> Any:
        """uint8, N x H x W x 3: the frames of these numbers, each checked by its time."""
        base = float(probe.time_base)
        try:
            batch = reader.decoder.get_frames_at(indices=numbers)
        except (RuntimeError, IndexError, ValueError) as error:
            raise refuse(probe, self.name, f"it fails ({_first_line(error)})") from None
        expected = np.array([pts[n] * base for n in numbers])
        wrong = np.abs(batch.pts_seconds.numpy() - expected) > base / 2 + 1e-6
        if wrong.any():
            at = int(np.argmax(wrong))
            raise refuse(
                probe, self.name, f"it shows the frame of {float(batch.pts_seconds[at]):.3f} s at {expected[at]:.3f} s"
            )
        return batch.data.numpy()


def backend() -> TorchCodec:
    """The backend; called by `closeup.tools.video.backends.load`."""
    return TorchCodec()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
