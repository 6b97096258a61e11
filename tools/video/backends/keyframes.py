"""Skimming: the last key frame at or before a time, decoded alone.

A key frame needs no other picture, so a skim costs one picture per distinct key frame instead of the whole way from it
to the time asked for. The frame carries its own time, so the label stays exact while the instant is approximate.

Which key frames there are comes from the container's index where that is complete (mp4, mkv, avi); otherwise the
packets are read once from end to end, without decoding. mp4 lists decoding times, which are never later than
presentation times: there a listed stamp only proposes a key frame, and its own packet decides.

Invariant: the result is the key frame with the largest PTS <= t that decodes by itself; where there is none, the first
frame of the stream.
"""

from __future__ import annotations

from bisect import bisect_right
from fractions import Fraction

import av.error
from av import VideoFrame
from av.container import InputContainer
from av.video.stream import VideoStream

from closeup.tools.video.backends.cursor import Cursor, open_container
from closeup.tools.video.facts import Probe
from closeup.tools.video.index import StreamIndex


def key_frame_at(cursor: Cursor, probe: Probe, index: StreamIndex, tick: int) -> VideoFrame:
    """The decoded key frame for `tick` (ticks, not before the stream's first frame).

    Raises:
        LookupError: the stream holds no decodable frame.
    """
    keys = index.keys
    if keys is None:
        keys = list_keys(probe)
        index.list_keys(keys)
    by_dts = lists_decoding_times(probe)
    for stamp in reversed(keys[: bisect_right(keys, tick)]):
        if not cursor.seekable:
            return cursor.at(stamp)[0]
        packet = cursor.key_packet(stamp, by_dts=by_dts)
        if packet is not None and packet.pts is not None:
            index.learn_key(stamp, packet.pts)
            if packet.pts > tick:
                continue  # listed before the target by its decoding time, but shown after it
        frame = None if packet is None else cursor.decode_alone(packet)
        index.learn_key(stamp, None if frame is None else frame.pts)
        if frame is not None and frame.pts is not None and frame.pts <= tick:
            return frame
    return cursor.at(probe.first)[0]


def lists_decoding_times(probe: Probe) -> bool:
    """Whether the container's index holds decoding times rather than presentation times."""
    return probe.container.startswith(("mov", "avi"))


def list_keys(probe: Probe) -> list[int]:
    """Stamps of all key frames in ticks, ascending, from a freshly opened file (so that they are always the same)."""
    for source in (_from_index, _from_packets):
        with open_container(probe.stamp.path) as container:
            stream = container.streams[probe.stream]
            assert isinstance(stream, VideoStream)
            keys = source(container, stream, probe)
        if keys:
            return keys
    return []


def _from_index(container: InputContainer, stream: VideoStream, probe: Probe) -> list[int]:
    """The container's own list, or nothing where it may be incomplete."""
    if probe.container.startswith("matroska"):
        try:  # the list at the end of the file is read at the first seek
            container.seek(probe.end, stream=stream, backward=True)
        except av.error.FFmpegError:
            return []
    entries = stream.index_entries
    if not len(entries):
        return []
    if probe.container.startswith("mov"):  # lists every sample; a fragmented file only those already met
        reach = entries[len(entries) - 1].timestamp
        if (probe.end - reach) * probe.time_base > Fraction(1):
            return []
    elif not probe.container.startswith(("matroska", "avi")):
        return []
    return sorted({entry.timestamp for entry in entries if entry.is_keyframe and not entry.is_discard})


def _from_packets(container: InputContainer, stream: VideoStream, probe: Probe) -> list[int]:
    """Read every packet once."""
    stamps: set[int] = set()
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            return sorted(stamps)
        at = packet.dts if lists_decoding_times(probe) else packet.pts
        if packet.is_keyframe and packet.size and at is not None and not packet.is_discard:
            stamps.add(at)
