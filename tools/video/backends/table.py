"""Every frame's presentation time, read from the packets without decoding: what decoders by index need to be exact.

decord and torchcodec are asked for a frame that this table has already chosen, and must report its time: so a wrong
frame with an honest label raises instead of passing.

Invariant: `pts` is ascending and holds every frame that FFmpeg presents, no more and no less; a file for which the
packets cannot tell that (hidden by an edit list, without times, damaged) is refused.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import av.error
from av.video.stream import VideoStream

from closeup.tools.video import cache
from closeup.tools.video.backends.cursor import open_container
from closeup.tools.video.errors import UnsupportedByBackend
from closeup.tools.video.facts import Probe


@dataclass(frozen=True)
class Refusals:
    """What one backend was measured to get wrong: FFmpeg's name of the container or codec -> the reason.

    With `open_groups` it also gets files wrong in which pictures refer to others across a key frame.
    """

    containers: dict[str, str]
    codecs: dict[str, str]
    open_groups: bool = False

    def check(self, probe: Probe, backend: str) -> None:
        """Raise `UnsupportedByBackend` for what the facts of a file already tell."""
        for container, reason in self.containers.items():
            if container in probe.container.split(","):
                raise refuse(probe, backend, reason)
        if probe.codec in self.codecs:
            raise refuse(probe, backend, self.codecs[probe.codec])
        if probe.bad:
            raise refuse(probe, backend, DAMAGED)


DAMAGED = "it is damaged"
NO_TIMES = "its packets carry no presentation times"
EDIT_LIST = "an edit list hides some of its frames"
TWICE = "two of its packets claim the same time"
NO_KEYS = "it names no key frames"
OPEN_GROUPS = "some of its key frames are no clean start: pictures after them refer to pictures before them"
SEEN_IN_PACKETS = (DAMAGED, NO_TIMES, EDIT_LIST, TWICE, NO_KEYS)


@dataclass(frozen=True)
class FrameTable:
    """PTS of all frames and of the key frames, in ticks, ascending; whether groups are open."""

    pts: tuple[int, ...]
    keys: tuple[int, ...]
    open_groups: bool

    def find(self, tick: int, mode: str) -> tuple[int, int | None]:
        """(number, next PTS) of the frame shown at `tick`, or of the last key frame at or before it."""
        if mode == "keyframe":
            tick = self.keys[max(0, bisect_right(self.keys, tick) - 1)]
        number = max(0, bisect_right(self.pts, tick) - 1)
        return number, self.pts[number + 1] if number + 1 < len(self.pts) else None


def frame_table(probe: Probe, backend: str, refusals: Refusals) -> FrameTable:
    """The table of a file, from this process's memory or from its packets (about 0.3 CPU seconds for an hour).

    Raises:
        UnsupportedByBackend: the packets do not say which frames are shown and when.
    """
    key = ("table", probe.content, probe.stream)
    table = cache.knowledge.get(key)
    if not isinstance(table, FrameTable):
        table = _read(probe, backend)
        cache.knowledge.put(key, table, 40 * (len(table.pts) + len(table.keys)))
    if table.open_groups and refusals.open_groups:
        raise refuse(probe, backend, OPEN_GROUPS)
    return table


def refuse(probe: Probe, backend: str, reason: str) -> UnsupportedByBackend:
    """The error that says why a backend does not take this file, and which one does."""
    return UnsupportedByBackend(
        f"{probe.stamp.path!r} cannot be read exactly by the {backend} backend: {reason}; use backend='pyav'"
    )


def _read(probe: Probe, backend: str) -> FrameTable:
    pts: set[int] = set()
    keys: list[int] = []
    open_groups = False
    with open_container(probe.stamp.path) as container:
        stream = container.streams[probe.stream]
        assert isinstance(stream, VideoStream)
        header = stream.codec_context.extradata or b""
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if packet.is_corrupt:
                    raise refuse(probe, backend, DAMAGED)
                if packet.pts is None:
                    raise refuse(probe, backend, NO_TIMES)
                if packet.is_discard:
                    raise refuse(probe, backend, EDIT_LIST)
                if packet.pts in pts:
                    raise refuse(probe, backend, TWICE)
                pts.add(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
                    open_groups |= probe.codec == "h264" and not _is_clean_h264_start(bytes(packet), header)
                open_groups |= bool(keys) and packet.pts < keys[-1]
        except av.error.FFmpegError:
            raise refuse(probe, backend, DAMAGED) from None
    if not keys:
        raise refuse(probe, backend, NO_KEYS)
    return FrameTable(tuple(sorted(pts)), tuple(sorted(keys)), open_groups)


def _is_clean_h264_start(packet: bytes, header: bytes) -> bool:
    """Whether an access unit holds an IDR slice (NAL unit type 5); the codec's header tells how units are laid out."""
    if len(header) < 5 or header[0] != 1:  # start codes between the units (ISO/IEC 14496-10, annex B)
        return any(unit[:1] and unit[0] & 31 == 5 for unit in packet.split(b"\0\0\1")[1:])
    width, place = (header[4] & 3) + 1, 0  # bytes of length before each unit (ISO/IEC 14496-15)
    while place + width < len(packet):
        if packet[place + width] & 31 == 5:
            return True
        place += width + int.from_bytes(packet[place : place + width], "big")
    return False
