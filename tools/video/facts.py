"""`Probe`: what a file says about itself, read once, and what can really be decoded from it.

Time zero is the start time of the chosen video stream; without one, the presentation time of its first frame.
The duration reaches from time zero to the end of the last frame that can be presented: the largest presentation time
plus that packet's own duration, read from the last packets of the file (not from the header, which lies for truncated
files and counts the audio). When those packets are damaged, the last frames are decoded to see which one is the last.

Invariants
1. Everything in ticks is in units of `time_base`, counted from the container's own zero, as PTS are.
2. `width` and `height` are as displayed: the sample aspect ratio stretches the width, then the picture is turned.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from closeup.tools.video.localfile import WHOLE, FileStamp
from closeup.tools.video.orientation import Orientation

FOREVER = 1e12  # seconds; times beyond it count as this far, so that ticks stay whole numbers


@dataclass(frozen=True)
class Probe:
    """One file's chosen video stream.

    Attributes:
        stamp: which version of which file. identity: its content identity.
        container, codec: FFmpeg's names ("mov,mp4,m4a,3gp,3g2,mj2", "h264"). stream: index of the video stream.
        time_base: seconds per tick. start: time zero, ticks. first: PTS of the first frame, ticks.
        end: end of the last frame, ticks.
        coded_width, coded_height: pixels as stored. aspect: sample aspect ratio. orientation: turn and mirror.
        fps, nominal_fps: average and nominal frame rate. interlaced: pictures may be coded as two fields.
        bad: packets at a damaged end of the file that cannot be decoded, by position in bytes.
    """

    stamp: FileStamp
    identity: str
    container: str
    codec: str
    stream: int
    time_base: Fraction
    start: int
    first: int
    end: int
    coded_width: int
    coded_height: int
    aspect: Fraction
    orientation: Orientation
    fps: float
    nominal_fps: float
    interlaced: bool
    bad: frozenset[int | None]

    @property
    def duration(self) -> float:
        """Seconds from time zero to the end of the last frame."""
        return float((self.end - self.start) * self.time_base)

    @property
    def content(self) -> tuple[str, FileStamp | None]:
        """Names the file's bytes within this process.

        The identity where it covers every byte; for a larger file, whose identity samples, also which file it is.
        """
        return self.identity, None if self.stamp.size <= WHOLE else self.stamp

    @property
    def droppable(self) -> bool:
        """Whether the decoder knows for certain which pictures no other refers to: H.264 coded in whole frames."""
        return self.codec == "h264" and not self.interlaced

    @property
    def size(self) -> tuple[int, int]:
        """Displayed (height, width) in pixels."""
        return self.orientation.stored((self.coded_height, max(1, round(self.coded_width * self.aspect))))

    def seconds(self, ticks: int) -> float:
        """A PTS as seconds from time zero."""
        return float((ticks - self.start) * self.time_base)

    def ticks(self, seconds: float) -> int:
        """The last tick at or before `seconds` from time zero, with room for a float's rounding."""
        position = min(max(seconds, -FOREVER), FOREVER) / float(self.time_base)
        slack = 1e-6 + abs(position) * 4e-16
        return self.start + int((position + slack) // 1)
