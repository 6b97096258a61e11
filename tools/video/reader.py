"""`Video`: an opened file that answers "what is shown at these seconds?".

Invariants
1. Time is seconds from the start of the video stream; the frame for t is the last one with presentation time <= t.
2. The answer depends on the file, the times, the size, the mode, the resizer and the backend only; never on what was
   asked before, on which thread asks, or on what the caches hold.
3. A file that changes after it was opened is an error (`FileChanged`), never a mixture.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from closeup.tools.video import cache
from closeup.tools.video.backends import load
from closeup.tools.video.backends.base import Order
from closeup.tools.video.clip import SWSCALE, Clip, Resizer
from closeup.tools.video.facts import Probe
from closeup.tools.video.frames import Frames
from closeup.tools.video.index import StreamIndex
from closeup.tools.video.localfile import content_digest, stamp, verify
from closeup.tools.video.overlay import draw
from closeup.tools.video.pixels import BICUBIC, bicubic

MAX_THREADS = 64
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
        if not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
            raise ValueError(f"threads is a whole number from 1 to {MAX_THREADS}, got {threads!r}")
        self.path = Path(os.fsdecode(path))
        self.backend = backend
        self._threads = threads
        self._closed = False
        self._decoder = load(backend)
        self._probe = probe(path)
        self._decoder.check(self._probe)

    @property
    def identity(self) -> str:
        """32 hexadecimal digits naming the content (see `localfile.content_identity`)."""
        return self._probe.identity

    def content_digest(self) -> str:
        """64 hexadecimal digits of SHA-256 over every byte of the file: what names the content beyond all doubt.

        Read from end to end once per process and version of the file (about a second per gigabyte), then remembered.
        Raises `FileChanged` when the file is no longer the one that was opened.
        """
        expected = self._probe.stamp
        verify(expected)
        # The time of the last change tells also a file whose bytes were replaced and whose date was put back.
        key = ("digest", expected, Path(expected.path).stat().st_ctime_ns)
        with cache.turns.take(key):
            found = cache.knowledge.setdefault(key, lambda: content_digest(expected), lambda _: 1024)
        assert isinstance(found, str)
        return found

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
        resizer: Resizer = SWSCALE,
    ) -> Frames:
        """Decode the frames shown at some times.

        Args:
            clip_or_times: a `Clip` of this video (its times, mode, overlay and resizer count), or times in seconds in
                any order.
            size: (height, width) in pixels; None is the displayed size, for a clip the largest size of that shape which
                has at most `clip.pixels` pixels.
            mode: with times: "exact", or "keyframe" for the nearest key frame at or before each time.
            resizer: with times: "swscale-bilinear", or "bicubic" as the stock processors resize.

        Raises:
            ValueError: no times, a time that is no finite number, a bad size, an unknown mode or resizer, a clip of
                another video, a closed video.
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
            overlay, mode, resizer = clip.overlay, clip.mode, clip.resizer
            size = size or fit((self.height, self.width), clip.pixels)
        else:
            times = clip_or_times
        height, width = size or (self.height, self.width)
        _check(times, height, width, mode, resizer)
        verify(self._probe.stamp)
        return self._decode(times, (height, width), mode, overlay, resizer)

    def _decode(
        self,
        times: Sequence[float],
        size: tuple[int, int],
        mode: Literal["exact", "keyframe"],
        overlay: str | None,
        resizer: Resizer,
    ) -> Frames:
        probe, backend = self._probe, self._decoder
        later = resizer == "bicubic" and overlay != "blank"  # the whole picture first; black is black at any size
        places: dict[int, list[int]] = {}
        for place, time in enumerate(times):
            places.setdefault(min(max(probe.ticks(time), probe.first), probe.end), []).append(place)
        pixels = np.empty((len(times), *size, 3), dtype=np.uint8)
        shown = np.empty(len(times), dtype=np.float64)

        def put(tick: int, pts: int, picture: NDArray[np.uint8]) -> None:
            for place in places[tick]:
                pixels[place] = picture
                shown[place] = probe.seconds(pts)

        def key(pts: int) -> cache.FrameKey:
            made_by = f"{backend.name}-{backend.version}"
            by = BICUBIC if later else backend.resizer
            return cache.FrameKey(probe.content, probe.stream, pts, made_by, by, size, overlay)

        def recall(ticks: Sequence[int]) -> tuple[int, ...]:
            """Put what the stores hold; return the ticks that are left."""
            left = []
            for tick in ticks:
                pts = index.shown(tick) if mode == "exact" else index.key_shown(tick)
                picture = None if pts is None else blank if overlay == "blank" else cache.frames.get(key(pts))
                if pts is None or picture is None:
                    left.append(tick)
                else:
                    put(tick, pts, picture)
            return tuple(left)

        index = _index(probe)
        blank = np.zeros((*size, 3), dtype=np.uint8)  # needs no decoding where the frames' times are known already
        missing = recall(sorted(places))
        if missing:
            # The turn is named by the whole request: a caller who comes while it is half done waits for the rest of it.
            with cache.turns.take((key(0), mode, tuple(sorted(places)))):
                missing = recall(missing)
                order = Order(missing, None if later else size, mode)
                last, picture = None, blank
                for shot in backend.shots(probe, index, order, self._threads) if missing else ():
                    if shot.pts != last:
                        drawn = draw(overlay, shot.pixels, probe.seconds(shot.pts))
                        picture = np.ascontiguousarray(bicubic(drawn, size) if later else drawn)
                        picture.flags.writeable = False
                        last = shot.pts
                    put(shot.tick, shot.pts, picture)
                    cache.frames.put(key(shot.pts), picture, picture.nbytes)
            cache.knowledge.put(("index", probe.content, probe.stream), index, index.nbytes)
        bad = index.add_bad(set())
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


def probe(path: str | os.PathLike[str]) -> Probe:
    """What a local file says about itself (duration, size, codec, …), without keeping it open.

    Raises:
        VideoError: one of its sub-classes says what is wrong with the file.
    """
    from closeup.tools.video.probing import read_facts

    found = stamp(path)
    facts = cache.knowledge.setdefault(("probe", found), lambda: read_facts(found), lambda _: 1024)
    assert isinstance(facts, Probe)
    return facts


def _index(facts: Probe) -> StreamIndex:
    key = ("index", facts.content, facts.stream)
    index = cache.knowledge.setdefault(key, lambda: StreamIndex(facts.bad), lambda _: 1024)
    assert isinstance(index, StreamIndex)
    return index


def fit(size: tuple[int, int], pixels: int) -> tuple[int, int]:
    """The largest (height, width) of the same shape with at most `pixels` pixels; never larger than `size`."""
    height, width = size
    if height * width <= pixels:
        return size
    scale = math.sqrt(pixels / (height * width))
    rows = max(1, min(math.floor(height * scale), pixels))
    return rows, max(1, min(math.floor(width * scale), pixels // rows))


def _check(times: Sequence[float], height: int, width: int, mode: str, resizer: str) -> None:
    if len(times) == 0:
        raise ValueError("no times were asked for; give at least one time in seconds")
    for time in times:
        if not math.isfinite(time):
            raise ValueError(f"a time must be a finite number of seconds, got {time}")
    if height < 1 or width < 1:
        raise ValueError(f"size is (height, width) in pixels, both at least 1, got {(height, width)}")
    if mode not in ("exact", "keyframe"):
        raise ValueError(f"mode must be 'exact' or 'keyframe', got {mode!r}")
    if resizer not in get_args(Resizer):
        raise ValueError(f"resizer must be {' or '.join(map(repr, get_args(Resizer)))}, got {resizer!r}")
    needed = len(times) * height * width * 3
    if needed > MAX_RESULT_BYTES:
        raise ValueError(
            f"{len(times)} frames of {height}x{width} need {needed / 2**30:.1f} GiB, more than the limit of "
            f"{MAX_RESULT_BYTES / 2**30:.0f} GiB; ask for fewer or smaller frames"
        )
