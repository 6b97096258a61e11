"""The seek loop: one open container that answers "which frame is shown at tick t?" with as little decoding as possible.

Moving forward inside a group of pictures decodes on; a key frame between here and there, or a target behind, seeks. A
seek is never believed: the key packet it lands on must be presented at or before the target, and so must the first
frame that comes out; otherwise it goes further back (1, 4, 16 … seconds) and at last starts the file again. Pictures
shown before the key frame they follow (the leading pictures of an open group) are dropped after a seek, because their
references may be missing. A packet that cannot be decoded is remembered and everything after it is skipped up to the
next key packet: decoders go on after an error, but with patched pictures and (H.264) with other pictures' times.

Invariants
1. `at(t)` returns the last frame with PTS <= t, the first frame for an earlier t, the last frame for a later one.
2. The same `t` gives the same frame whatever was asked before.
3. A cursor belongs to one thread at a time and to the process that opened it.

On the way to a target a picture that nothing refers to is not decoded when a later one up to the target has been met
(H.264 with B-frames only). With several threads FFmpeg reports a bad packet late and PyAV drops the good frames of that
call, so the first bad packet makes the cursor start again with one thread, decode everything and stay so: damaged files
cost more, and lose nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import chain, islice, pairwise

import av
import av.error
from av import Packet, VideoFrame
from av.container import InputContainer
from av.stream import Discard
from av.video.stream import VideoStream

# Self-contained formats only: no playlists, no lists of files, no picture sequences. The second line are sound formats,
# opened only to say clearly that they hold no video.
FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,live_flv,ogg,asf,asf_o,mxf,nut,gif,apng,ivf,wtv,dv,rm,"
    "mp3,wav,flac,aac,aiff,au,amr,w64,caf,wv,ape,tta,ac3,eac3,dts"
)
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
# MPEG program streams give times to some pictures only; after a seek FFmpeg guesses the others half a frame wrong. An
# animated PNG's pictures build on the ones before, and FFmpeg's index calls all of them key frames.
UNSEEKABLE = ("mpeg", "apng")
MAX_ERRORS = 4096  # unreadable stretches after which a file counts as ended
JUMP_SECONDS = 4.0  # without a key-frame index: a target further ahead than this is sought, not decoded up to


def open_container(path: str) -> InputContainer:
    """Open a checked local path; nothing but this one file can be read through it. Raises PyAV's errors."""
    return av.open(path, options=OPTIONS, metadata_errors="replace")


class _Damaged(Exception):
    """A packet could not be decoded while several threads were at work."""


class Cursor:
    """A position in one video stream; see the module's invariants."""

    _current: VideoFrame | None  # the frame last answered with
    _ahead: VideoFrame | None  # the one after it, when it has been decoded
    _not_before: int | None  # PTS of the key packet landed on: what is shown earlier may lack its references
    _target: int  # what is being looked for, ticks
    _candidate: int | None  # the latest PTS up to the target among the packets since the last seek
    _dropping: bool  # the decoder is leaving out pictures that no other refers to
    _fresh: bool  # nothing has been decoded or sought since the file was opened
    _frames: Iterator[VideoFrame]

    def __init__(self, path: str, stream: int, *, start: int, threads: int, droppable: bool = False) -> None:
        """Open `path`; `droppable` says that pictures which no other refers to may be left undecoded on the way."""
        self.path = path
        self._droppable = droppable
        self.bad: set[int | None] = set()
        self._stream_index = stream
        self._start = start
        self._threads = threads
        self._container, self._stream = self._open()
        # An AVI's palette comes with its first pictures only: after a seek they would be shown without it.
        palette = self._container.format.name == "avi" and self._stream.codec_context.pix_fmt == "pal8"
        self.seekable = self._container.format.name not in UNSEEKABLE and not palette
        self._tick = float(self._stream.time_base or 0)
        rate = self._stream.average_rate or self._stream.base_rate
        self._two_frames = int(2 / float(rate) / self._tick) if rate else 0
        self._keys, self._shift = self._index()
        self._reset()

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
                self._threads, self._droppable = 1, False
                self._rewind()

    def key_packet(self, stamp: int, *, by_dts: bool) -> Packet[VideoStream] | None:
        """The packet of the key frame listed under `stamp`, or None when it cannot be found."""
        for back in (0.0, 1.0, 4.0, 16.0, 64.0):
            if not self._go(stamp + self._shift - int(back / self._tick)):
                continue
            for packet in self._packets():
                here = packet.dts if by_dts and packet.dts is not None else packet.pts
                if packet.is_keyframe and packet.size and here is not None and here >= stamp:
                    if here == stamp:
                        return packet
                    break
        if stamp - int(64 / self._tick) <= self._start:  # some formats cannot seek to their very first packets
            self._rewind()
            self._fresh = False
            for packet in self._packets():
                if packet.is_keyframe and stamp == (packet.dts if by_dts else packet.pts):
                    return packet
        return None

    def in_order(self, count: int = 8) -> bool:
        """Whether the first `count` frames of the file come out in the order of their times."""
        self._rewind()
        times = [frame.pts for frame in islice(self._frames, count) if frame.pts is not None]
        self._rewind()
        return all(a < b for a, b in pairwise(times))

    def decode_alone(self, packet: Packet[VideoStream]) -> VideoFrame | None:
        """The picture of one key packet, without waiting for those after it; None when it does not decode by itself."""
        decoder = self._stream.codec_context
        frames: list[VideoFrame] = []
        try:
            frames += decoder.decode(packet)
            frames += decoder.decode(None)
        except av.error.FFmpegError:
            self.bad.add(packet.pos)
        whole = [frame for frame in frames if frame.pts is not None and not frame.is_corrupt]
        return whole[0] if whole else None

    def close(self) -> None:
        """Close the container; the cursor cannot be used afterwards."""
        self._container.close()

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _at(self, target: int) -> tuple[VideoFrame, int | None]:
        self._target = target
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
        if not self.seekable:
            return False
        if self._keys is None:
            return (target - here) * self._tick > JUMP_SECONDS
        last = bisect_right(self._keys, target) - 1
        return last >= 0 and self._keys[last] > here + self._two_frames

    def _land(self, target: int) -> None:
        """Make `_current` a frame at or before `target`, or the stream's first frame."""
        if self._fresh and target <= self._start + self._two_frames:
            self._current = self._pull()
            return
        place, back = target, 1.0
        while self.seekable and (place > self._start or back == 1.0):
            if self._seek(place, target):
                self._current = self._pull()
                if self._current is not None and _pts(self._current) <= target:
                    return
            place -= int(back / self._tick)
            back *= 4
        self._rewind()
        self._current = self._pull()

    # -- moving -----------------------------------------------------------------------------------------------------

    def _open(self) -> tuple[InputContainer, VideoStream]:
        container = open_container(self.path)
        stream = container.streams[self._stream_index]
        assert isinstance(stream, VideoStream)
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all
        stream.thread_type = "AUTO" if self._threads > 1 else "NONE"
        stream.codec_context.thread_count = self._threads
        return container, stream

    def _rewind(self) -> None:
        """Open the file again at its first byte: the one place from which everything decodes as in a plain player."""
        self._container.close()
        self._container, self._stream = self._open()
        self._reset()

    def _reset(self) -> None:
        self._current = self._ahead = None
        self._not_before = self._candidate = None
        self._target = -(1 << 62)
        self._dropping = False
        self._fresh = True
        self._frames = self._decode(self._packets())

    def _go(self, place: int) -> bool:
        """Seek to the key packet at or before `place`, or near it; nothing decoded so far is kept."""
        self._fresh = False
        self._current = self._ahead = self._candidate = None
        self._drop(False)
        try:
            self._container.seek(max(place, self._start), stream=self._stream, backward=True)
        except (av.error.FFmpegError, OverflowError):
            return False
        return True

    def _seek(self, place: int, target: int) -> bool:
        """Go to the key packet at or before `place`; False when what is found there is presented after `target`."""
        if not self._go(place):
            return False
        packets = self._packets()
        for packet in packets:
            if packet.is_keyframe and packet.size:
                at = packet.pts if packet.pts is not None else packet.dts
                self._not_before = at
                self._frames = self._decode(chain((packet,), packets))
                return at is not None and at <= target
        return False

    def _index(self) -> tuple[list[int] | None, int]:
        """PTS of the key frames as the container lists them, and what was added to its stamps; None without a list.

        An estimate, which `_seek` checks: mp4 lists decoding times; its first key frame is shown at the start.
        """
        stamps = [entry.timestamp for entry in self._stream.index_entries if entry.is_keyframe]
        if len(stamps) < 2:
            return None, 0
        shift = max(0, self._start - stamps[0])
        return [stamp + shift for stamp in stamps], shift

    # -- decoding ---------------------------------------------------------------------------------------------------

    def _pull(self) -> VideoFrame | None:
        """The next frame in presentation order that may be shown; None at the end."""
        self._fresh = False
        for frame in self._frames:
            if frame.pts is None or frame.is_corrupt:
                continue
            if self._not_before is None or frame.pts >= self._not_before:
                return frame
        return None

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        """Packets of the stream from here on, an empty one last; unreadable stretches are skipped."""
        for _ in range(MAX_ERRORS):
            try:
                yield from self._container.demux(self._stream)
                return
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                self.bad.add(None)

    def _decode(self, packets: Iterator[Packet[VideoStream]]) -> Iterator[VideoFrame]:
        """Frames of the packets; after a bad packet what was finished before it, then nothing until a key packet."""
        decoder = self._stream.codec_context
        broken = False
        for packet in packets:
            if broken and packet.size:
                if not packet.is_keyframe:
                    continue
                self._not_before = packet.pts
            if self._droppable and packet.pts is not None:
                self._drop(self._candidate is not None and packet.pts < self._candidate)
                if packet.pts <= self._target:
                    self._candidate = max(packet.pts, packet.pts if self._candidate is None else self._candidate)
            broken = packet.is_corrupt and not packet.is_keyframe  # flagged where a transport stream lost something
            if not broken:
                try:
                    yield from decoder.decode(packet if packet.size else None)
                except av.error.EOFError:
                    return
                except av.error.FFmpegError:
                    broken = True
            if broken:
                if self._threads > 1 or self._droppable:
                    raise _Damaged
                self.bad.add(packet.pos)
                yield from self._finished()

    def _drop(self, dropping: bool) -> None:
        """Tell the decoder whether to leave out pictures that no other refers to, from the next packet on."""
        if dropping != self._dropping:
            self._stream.codec_context.skip_frame = "NONREF" if dropping else "DEFAULT"
            self._dropping = dropping

    def _finished(self) -> list[VideoFrame]:
        """The frames the decoder holds back for their turn; it is then ready to start at a key packet."""
        decoder = self._stream.codec_context
        try:
            return decoder.decode(None)
        except av.error.FFmpegError:
            return []
        finally:
            decoder.flush_buffers()


def _pts(frame: VideoFrame) -> int:
    assert frame.pts is not None  # by _pull
    return frame.pts
