"""`Video`: an opened file that answers "what is shown at these seconds?".

Invariants
1. Time is seconds from the start of the video stream; the frame for t is the last one with presentation time <= t.
2. The answer depends on the file, the times, the size, the mode and the backend only; never on what was asked before, on
   which thread asks, or on what the caches hold.
3. A file that changes after it was opened is an error (`FileChanged`), never a mixture.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from closeup.tools.video.clip import Clip
from closeup.tools.video.frames import Frames
from closeup.tools.video.localfile import stamp, verify

MAX_RESULT_BYTES = 16 << 30  # a request for more pixels than this is a mistake


class Video:
    """A local video file, addressed by time in seconds.

    Attributes are read-only: `path`, `identity`, `duration` (s), `width`, `height` (displayed pixels), `fps` (average),
    `nominal_fps`, `codec`, `start_time` (s, where the stream starts on the container's own clock), `rotation` (degrees
    counter-clockwise), `backend`.
    """

    def __init__(self, path: str | os.PathLike[str], *, backend: str = "pyav", threads: int = 2) -> None:
        """Open and probe `path`.

        Args:
            path: a plain local file; addresses, pipes, devices and folders are refused.
            backend: "pyav" (default), "decord" or "torchcodec".
            threads: decoding threads per reader; 2 for interactive use, 1 with many workers.

        Raises:
            VideoError: one of its sub-classes says what is wrong with the file or the backend.
        """
        from closeup.tools.video.backends import _pyav

        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self.path = Path(os.fsdecode(path))
        self.backend = backend
        self._threads = threads
        self._closed = False
        self._probe = _pyav.probe(stamp(path))

    @property
    def identity(self) -> str:
        """32 hexadecimal digits naming the content (see `localfile.content_identity`)."""
        return self._probe.identity

    @property
    def duration(self) -> float:
        """Seconds from time zero to the end of the last frame that can be presented."""
        return self._probe.duration

    @property
    def width(self) -> int:
        """Displayed width in pixels."""
        return self._probe.size[1]

    @property
    def height(self) -> int:
        """Displayed height in pixels."""
        return self._probe.size[0]

    @property
    def fps(self) -> float:
        """Average frames per second."""
        return self._probe.fps

    @property
    def nominal_fps(self) -> float:
        """The frame rate the container names: the average one unless the frame rate varies."""
        return self._probe.nominal_fps

    @property
    def codec(self) -> str:
        """FFmpeg's name of the codec, e.g. "h264"."""
        return self._probe.codec

    @property
    def start_time(self) -> float:
        """Where time zero lies on the container's own clock, in seconds."""
        return float(self._probe.start * self._probe.time_base)

    @property
    def rotation(self) -> int:
        """Degrees counter-clockwise by which the stored pictures are turned for display: 0, 90, 180 or 270."""
        return self._probe.orientation.degrees

    def frames(
        self,
        clip_or_times: Clip | Sequence[float],
        size: tuple[int, int] | None = None,
        *,
        mode: Literal["exact", "keyframe"] = "exact",
    ) -> Frames:
        """Decode the frames shown at some times.

        Args:
            clip_or_times: a `Clip` of this video (its times, mode and overlay count), or times in seconds in any order.
            size: (height, width) in pixels; None is the displayed size, for a clip the largest size of that shape which
                has at most `clip.pixels` pixels.
            mode: with times: "exact", or "keyframe" for the nearest key frame at or before each time.

        Raises:
            ValueError: no times, a time that is no finite number, a bad size, a clip of another video, a closed video.
            VideoError: the file changed, or cannot be decoded by this backend.
        """
        if self._closed:
            raise ValueError(f"{self.path} is closed; open it again with Video(path)")
        overlay: str | None = None
        if isinstance(clip_or_times, Clip):
            clip = clip_or_times
            if clip.video != self.identity:
                raise ValueError(f"the clip is of video {clip.video!r}, but {self.path} is {self.identity!r}")
            times: Sequence[float] = clip.times()
            overlay, mode = clip.overlay, clip.mode
            size = size or fit((self.height, self.width), clip.pixels)
        else:
            times = clip_or_times
        height, width = size or (self.height, self.width)
        _check(times, height, width, mode)
        verify(self._probe.stamp)
        return self._decode(times, (height, width), mode, overlay)

    def _decode(self, times: Sequence[float], size: tuple[int, int], mode: str, overlay: str | None) -> Frames:
        from closeup.tools.video.backends.cursor import Cursor
        from closeup.tools.video.pixels import to_rgb

        probe = self._probe
        cursor = Cursor(probe.stamp.path, probe.stream, start=probe.start, threads=self._threads)
        pixels = np.empty((len(times), *size, 3), dtype=np.uint8)
        shown = np.empty(len(times), dtype=np.float64)
        order = sorted(range(len(times)), key=times.__getitem__)
        for i in order:
            frame, _ = cursor.at(min(max(probe.ticks(times[i]), probe.first), probe.end))
            assert frame.pts is not None
            pixels[i] = to_rgb(frame, size, probe.orientation)
            shown[i] = probe.seconds(frame.pts)
        bad = len(cursor.bad)
        cursor.close()
        return Frames(pixels, shown, np.array(times, dtype=np.float64), bad, self.backend, mode)

    def close(self) -> None:
        """Refuse further use; calling it twice is fine."""
        self._closed = True

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"Video({str(self.path)!r}, {self.duration:.2f} s, {self.width}x{self.height}, {self.fps:.3g} fps, "
            f"{self.codec}, backend={self.backend!r})"
        )


def fit(size: tuple[int, int], pixels: int) -> tuple[int, int]:
    """The largest (height, width) of the same shape with at most `pixels` pixels; never larger than `size`."""
    height, width = size
    if height * width <= pixels:
        return size
    scale = math.sqrt(pixels / (height * width))
    rows = max(1, math.floor(height * scale))
    return rows, max(1, min(math.floor(width * scale), pixels // rows))


def _check(times: Sequence[float], height: int, width: int, mode: str) -> None:
    if len(times) == 0:
        raise ValueError("no times were asked for; give at least one time in seconds")
    for time in times:
        if not math.isfinite(time):
            raise ValueError(f"a time must be a finite number of seconds, got {time}")
    if height < 1 or width < 1:
        raise ValueError(f"size is (height, width) in pixels, both at least 1, got {(height, width)}")
    if mode not in ("exact", "keyframe"):
        raise ValueError(f"mode must be 'exact' or 'keyframe', got {mode!r}")
    needed = len(times) * height * width * 3
    if needed > MAX_RESULT_BYTES:
        raise ValueError(
            f"{len(times)} frames of {height}x{width} need {needed / 2**30:.1f} GiB, more than the limit of "
            f"{MAX_RESULT_BYTES / 2**30:.0f} GiB; ask for fewer or smaller frames"
        )
