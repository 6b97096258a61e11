"""Reading a file's facts once, when it is opened: which stream, its start, its real end, how it is turned.

Costs one decoded frame and a look at the last packets of the file; nothing is scanned from end to end unless the
container has neither an index nor a way to seek.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.error
from av import VideoFrame
from av.buffer import Buffer
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from closeup.tools.video.backends.cursor import Cursor, open_container
from closeup.tools.video.errors import NoFrames, NotAVideo, NoVideoStream, UnsupportedByBackend, VideoError
from closeup.tools.video.facts import Probe
from closeup.tools.video.localfile import FileStamp, content_identity
from closeup.tools.video.orientation import UPRIGHT, Orientation, from_matrix

TAIL_SECONDS = 4  # how far from the end the last packets are looked for in a file without an index


def read_facts(stamp: FileStamp) -> Probe:
    """Read what a checked file says about itself and what can be decoded from it.

    Raises:
        NotAVideo, NoVideoStream, NoFrames: as their names say.
    """
    name = Path(stamp.path).name
    try:
        container = open_container(stamp.path)
    except (av.error.InvalidDataError, av.error.ArgumentError, av.error.EOFError):
        raise NotAVideo(f"{name!r} is not a video that can be read: {_what_it_is(stamp.path)}") from None
    except (av.error.FFmpegError, OSError, UnicodeError) as error:
        raise VideoError(f"{name!r} cannot be opened: {error}") from None
    with container:
        stream = _choose(container, name)
        if stream.time_base is None or stream.codec_context is None:
            raise NotAVideo(f"{name!r} does not say how its time is counted; re-encode it with `ffmpeg -i in out.mp4`")
        index = stream.index
        time_base = Fraction(stream.time_base)
        codec = stream.codec_context.codec.canonical_name
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        average, nominal = stream.average_rate, stream.base_rate or stream.guessed_rate
        declared = stream.start_time
        end, damaged = _last_tick(container, stream)
        container_name = container.format.name
    first = _first_frame(stamp.path, index, declared, name, container_name)
    assert first.pts is not None
    start = first.pts if declared is None else declared
    # No file has more frames a second on average than its clock can tell apart; raw DV claims 60000, its time base.
    fps = float(min(average, nominal) if average and nominal else average or nominal or 0)
    step = round(1 / fps / time_base) if fps else 0
    bad: frozenset[int | None] = frozenset()
    if end is None or damaged:
        cursor = Cursor(stamp.path, index, start=start, threads=1)
        last, _ = cursor.at((1 << 62) if end is None else end)
        cursor.close()
        bad = frozenset(cursor.bad)
        assert last.pts is not None
        end = last.pts + (last.duration or step or 1)
    end = max(end, first.pts + (first.duration or step or 1))
    return Probe(
        stamp=stamp,
        identity=content_identity(stamp.path, stamp.size),
        container=container_name,
        codec=codec,
        stream=index,
        time_base=time_base,
        start=start,
        first=first.pts,
        end=end,
        coded_width=first.width,
        coded_height=first.height,
        aspect=aspect if aspect > 0 else Fraction(1),
        orientation=orientation(first),
        fps=fps or float(nominal or 0) or 1 / float((end - start) * time_base),
        nominal_fps=float(nominal or average or 0) or 1 / float((end - start) * time_base),
        interlaced=first.interlaced_frame,
        bad=bad,
    )


def orientation(frame: VideoFrame) -> Orientation:
    """How the frame is turned for display, from its display matrix."""
    data = cast(Mapping[str, Buffer], frame.side_data)
    try:
        matrix = data["DISPLAYMATRIX"]
    except KeyError:
        return UPRIGHT
    return from_matrix(bytes(matrix))


def _choose(container: InputContainer, name: str) -> VideoStream:
    """The stream FFmpeg itself would pick, cover art excluded."""
    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not moving:
        if container.streams.video:
            raise NoVideoStream(f"{name!r} holds no video, only sound and a cover picture")
        what = "only sound" if container.streams.audio else "no video stream"
        raise NoVideoStream(f"{name!r} holds {what}; give a file with moving pictures")
    best = container.streams.best("video")
    return best if isinstance(best, VideoStream) and best in moving else moving[0]


def _last_tick(container: InputContainer, stream: VideoStream) -> tuple[int | None, bool]:
    """(largest end of a packet near the end of the file in ticks or None, whether something there is unreadable)."""
    entries = stream.index_entries
    count = len(entries)
    size = container.size
    damaged = False
    while count and entries[count - 1].pos + entries[count - 1].size > size:
        count, damaged = count - 1, True  # the container promises what the file does not hold
    if count:
        goal = entries[count - 1].timestamp
    elif stream.duration is not None:
        goal = stream.duration + (stream.start_time or 0)
    elif container.duration is not None and stream.time_base is not None:
        goal = int(container.duration / 1e6 / stream.time_base)
    else:
        goal = 0
    if not count and stream.time_base is not None:
        goal -= int(TAIL_SECONDS / stream.time_base)  # without an index a seek may land between the last packets
    for place in (goal, None):
        try:
            if place is not None:
                container.seek(place, stream=stream, backward=True)
            end, bad = _scan(container, stream)
        except av.error.FFmpegError:
            continue
        if end is not None:
            return end, damaged or bad
    return None, True


def _scan(container: InputContainer, stream: VideoStream) -> tuple[int | None, bool]:
    end, bad = None, False
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return end, bad
        except av.error.FFmpegError:
            return end, True
        bad = bad or packet.is_corrupt
        at = packet.pts if packet.pts is not None else packet.dts
        if at is not None and not packet.is_discard:
            end = max(end or at, at + (packet.duration or 0))


def _first_frame(path: str, index: int, declared: int | None, name: str, container: str) -> VideoFrame:
    cursor = Cursor(path, index, start=declared or 0, threads=1)
    try:
        first, _ = cursor.at(-(1 << 62))
        if container == "avi" and not cursor.in_order():
            raise UnsupportedByBackend(
                f"{name!r} stores reordered pictures in an AVI file, which has no place for their presentation times, "
                "so no decoder can tell when each is shown; re-encode it with `ffmpeg -i in.avi out.mp4`"
            )
        return first
    except LookupError:
        raise NoFrames(f"not one frame of {name!r} can be decoded; the file is damaged or encrypted") from None
    finally:
        cursor.close()


def _what_it_is(path: str) -> str:
    """A guess from the first bytes, in words."""
    with Path(path).open("rb") as file:
        head = file.read(4096)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")) or b"<html" in text:
        return "it is an HTML page, so the download probably returned an error page"
    if text.startswith(b"#extm3u"):
        return "it is a playlist (HLS) that points to other files; give the video itself"
    if text.startswith(b"<?xml") or b"<mpd" in text:
        return "it is an XML text (a DASH manifest?) that may point to other files; give the video itself"
    if text.startswith(b"ffconcat"):
        return "it is a list of other files (ffconcat); give the video itself"
    if head[4:8] == b"ftyp":
        return "its index (the moov box) is missing, so the recording or download was cut off before its end"
    return "no known container (mp4, mkv, webm, avi, mpeg-ts, …) was recognised; convert it with `ffmpeg -i in out.mp4`"
