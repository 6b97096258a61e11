"""The seek loop: one open container that answers "which frame is shown at tick t?" with as little decoding as possible.

Moving forward inside a group of pictures decodes on; a key frame between here and there, or a target behind, seeks.
A seek is never believed: the key packet it lands on must be presented at or before the target and so must the first
frame that comes out; otherwise it goes further back (1, 4, 16 … seconds) and at last starts the file again. Pictures that
are shown before the key frame they follow (the leading pictures of an open group) are dropped after a seek, because
their references may be missing. Packets that cannot be decoded are skipped and remembered.

Invariants
1. `at(t)` returns the last frame with PTS <= t, the first frame for an earlier t, the last frame for a later one.
2. The same `t` gives the same frame whatever was asked before.
3. A cursor belongs to one thread at a time and to the process that opened it.

With several threads FFmpeg reports a bad packet late and PyAV drops the good frames of that call, so the first bad packet
makes the cursor start again with one thread and stay there: damaged files cost more, and lose nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import av
import av.error
from av import Packet, VideoFrame
from av.container import InputContainer
from av.video.stream import VideoStream

FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,live_flv,ogg,asf,asf_o,mxf,nut,gif,apng,ivf,wtv,dv,rm,3gp,3g2,m4a,mj2,"
    # audio formats, opened only to say clearly that they hold no video
    "mp3,wav,flac,aac,aiff,au,amr,w64,caf,wv,ape,tta,ac3,eac3,dts"
)
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
MAX_ERRORS_IN_A_ROW = 4096  # unreadable packets in a row after which the file counts as ended
JUMP_SECONDS = 4.0  # without a key-frame index: a target further ahead than this is sought, not decoded up to


def open_container(path: str) -> InputContainer:
    """Open a checked local path; nothing but this one file can be read through it. Raises PyAV's errors."""
    return av.open(path, options=OPTIONS, metadata_errors="replace")


class _Damaged(Exception):
    """A packet could not be decoded while several threads were at work."""


class Cursor:
    """A position in one video stream; see the module's invariants."""

    def __init__(self, path: str, stream: int, *, start: int, threads: int) -> None:
        self.path = path
        self.bad: set[int | None] = set()
        self._stream_index = stream
        self._start = start
        self._threads = threads
        self._rewind()

    # -- asking -----------------------------------------------------------------------------------------------------

    def at(self, target: int) -> tuple[VideoFrame, int | None]:
        """The frame shown at `target` (ticks) and the PTS of the next one (None: it is the last).

        Raises:
            LookupError: the stream holds no decodable frame.
        """
        while True:
            try:
                return self._at(target)
            except _Damaged:
                self._threads = 1
                self._rewind()

    def close(self) -> None:
        """Close the container; the cursor cannot be used afterwards."""
        self._container.close()

    @property
    def time_base(self) -> float:
        """Seconds per tick."""
        return float(self._stream.time_base or 0)

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _at(self, target: int) -> tuple[VideoFrame, int | None]:
        if self._current is None or target < _pts(self._current) or self._jump_pays(_pts(self._current), target):
            self._land(target)
        if self._current is None:
            raise LookupError(f"no frame of {self.path!r} can be decoded")
        while True:
            if self._ahead is None:
                self._ahead = self._pull()
            if self._ahead is None:
                return self._current, None
            if _pts(self._ahead) > target:
                return self._current, _pts(self._ahead)
            self._current, self._ahead = self._ahead, None

    def _jump_pays(self, here: int, target: int) -> bool:
        """Whether a key frame lies between `here` and `target`, so that seeking skips decoding."""
        if self._ahead is not None and _pts(self._ahead) >= target:
            return False
        if self._keys is None:
            return (target - here) * self.time_base > JUMP_SECONDS
        last = bisect_right(self._keys, target) - 1
        return last >= 0 and self._keys[last] > here + self._two_frames

    def _land(self, target: int) -> None:
        """Make `_current` a frame at or before `target`, or the stream's first frame."""
        self._ahead = None
        if self._fresh and target <= self._start + self._two_frames:
            self._fresh = False
            self._current = self._pull()
            return
        place, back = target, 1.0
        while place > self._start or back == 1.0:
            if self._seek(place, target):
                self._current = self._pull()
                if self._current is not None and _pts(self._current) <= target:
                    return
            place = min(place, target) - int(back / self.time_base)
            back *= 4
        self._rewind()
        self._current = self._pull()

    # -- moving -----------------------------------------------------------------------------------------------------

    def _rewind(self) -> None:
        """Open the file again at its first byte: the one place from which everything decodes as in a plain player."""
        if hasattr(self, "_container"):
            self._container.close()
        self._container: InputContainer = open_container(self.path)
        stream = self._container.streams[self._stream_index]
        assert isinstance(stream, VideoStream)
        self._stream: VideoStream = stream
        self._stream.thread_type = "AUTO" if self._threads > 1 else "NONE"
        self._stream.codec_context.thread_count = self._threads
        self._keys = self._index()
        rate = self._stream.average_rate or self._stream.base_rate
        self._two_frames = int(2 / float(rate) / self.time_base) if rate else 0
        self._current: VideoFrame | None = None
        self._ahead: VideoFrame | None = None
        self._not_before: int | None = None
        self._fresh = True
        self._frames = self._decode(self._packets())

    def _seek(self, place: int, target: int) -> bool:
        """Go to the key packet at or before `place`; False when what is found there is presented after `target`."""
        self._fresh = False
        self._current = self._ahead = None
        try:
            self._container.seek(max(place, self._start), stream=self._stream, backward=True)
        except (av.error.FFmpegError, OverflowError):
            return False
        packets = self._packets()
        for packet in packets:
            if packet.is_keyframe and packet.size:
                at = packet.pts if packet.pts is not None else packet.dts
                self._not_before = at
                self._frames = self._decode(_chain(packet, packets))
                return at is not None and at <= target
        return False

    def _index(self) -> list[int] | None:
        """PTS of the key frames as the container lists them (an estimate that `_seek` checks); None without a list."""
        entries = self._stream.index_entries
        stamps = [entry.timestamp for entry in entries if entry.is_keyframe]
        if len(stamps) < 2:
            return None
        shift = self._start - stamps[0]  # mp4 lists decoding times: the first key frame is shown at the start
        return [stamp + shift for stamp in stamps] if shift > 0 else stamps

    # -- decoding ---------------------------------------------------------------------------------------------------

    def _pull(self) -> VideoFrame | None:
        """The next frame in presentation order that may be shown; None at the end."""
        for frame in self._frames:
            if frame.pts is not None and (self._not_before is None or frame.pts >= self._not_before):
                return frame
        return None

    def _packets(self) -> Iterator[Packet]:
        """Packets of the stream from here on, an empty one last; unreadable stretches are skipped."""
        for _ in range(MAX_ERRORS_IN_A_ROW):
            try:
                yield from self._container.demux(self._stream)
                return
            except av.error.EOFError:
                return
            except (av.error.InvalidDataError, av.error.OSError):
                self.bad.add(None)

    def _decode(self, packets: Iterator[Packet]) -> Iterator[VideoFrame]:
        decoder = self._stream.codec_context
        for packet in packets:
            try:
                yield from decoder.decode(packet if packet.size else None)
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                if self._threads > 1:
                    raise _Damaged from None
                self.bad.add(packet.pos if packet.pos is not None else packet.dts)


def _pts(frame: VideoFrame) -> int:
    assert frame.pts is not None  # by _pull
    return frame.pts


def _chain(first: Packet, rest: Iterator[Packet]) -> Iterator[Packet]:
    yield first
    yield from rest
