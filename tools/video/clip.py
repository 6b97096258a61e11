"""`Clip`: an immutable request for frames, addressed by time in seconds.

A clip names the video by content identity, a window, how the window is sampled and how large a frame may be. It holds
no pixels: `Video.frames(clip, size)` resolves it. Being frozen, hashable and JSON-serialisable, it is what tools
return, what trajectories store and what caches are keyed by.

Invariants
1. Exactly one of `num_frames` and `fps` is set.
2. `times()` is a pure function of the clip: the same clip asks for the same instants everywhere and always.
3. Two clips are equal exactly when every field is; `key` is a short digest of the fields, stable across processes.
4. A clip with the default resizer is written without that field, as before there was a choice: its key and the records
   that name it stay what they were.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from closeup.tools.video.sampling import by_fps, uniform

MAX_FRAMES = 8192
Resizer = Literal["swscale-bilinear", "bicubic"]
SWSCALE: Resizer = "swscale-bilinear"
"""The default resizer."""


class Clip(BaseModel):
    """A request for frames of one video.

    Attributes:
        video: content identity of the video (`Video.identity`).
        start, end: window in seconds from the stream's start, `0 <= start <= end`.
        num_frames: frames spread over the window as `placement` says; or
        fps: frames per second from `start` on, `end` excluded, at most `max_frames`.
        placement: with `num_frames`: "ends" includes both ends of the window (NumPy's linspace), "left" takes the left
            edge of equal bins, "centre" the middle of equal bins (LongVPO's segment centres).
        mode: "exact", or "keyframe" (nearest key frame at or before each time: cheap skims, honest labels).
        pixels: largest area of one frame in pixels; the model's adapter turns it into a size it accepts.
        overlay: name of a drawing put on every frame ("seconds": the time in red, lower right; "blank": black all over,
            a clip that says when and how large and shows nothing), or None.
        resizer: how the decoder's picture becomes a frame of the size asked for: "swscale-bilinear", while decoding, or
            "bicubic", from the full RGB picture as the stock image and video processors do (`pixels.py`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    video: str
    start: float = Field(ge=0, allow_inf_nan=False)
    end: float = Field(ge=0, allow_inf_nan=False)
    num_frames: int | None = Field(default=None, ge=1, le=MAX_FRAMES)
    fps: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_frames: int = Field(default=MAX_FRAMES, ge=1, le=MAX_FRAMES)
    placement: Literal["ends", "left", "centre"] = "ends"
    mode: Literal["exact", "keyframe"] = "exact"
    pixels: int = Field(gt=0)
    overlay: Literal["seconds", "blank"] | None = None
    resizer: Resizer = SWSCALE

    @model_serializer(mode="wrap")
    def _without_the_default_resizer(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        if self.resizer == SWSCALE:
            written.pop("resizer", None)
        return written

    @model_validator(mode="after")
    def _consistent(self) -> Clip:
        if self.end < self.start:
            raise ValueError(f"a clip's end ({self.end:g} s) is before its start ({self.start:g} s)")
        if (self.num_frames is None) == (self.fps is None):
            raise ValueError("give exactly one of num_frames and fps")
        return self

    def times(self) -> tuple[float, ...]:
        """The instants asked for, in seconds, ascending; at least one."""
        if self.num_frames is not None:
            return uniform(self.start, self.end, self.num_frames, placement=self.placement)
        assert self.fps is not None  # by _consistent
        return by_fps(self.start, self.end, self.fps, max_frames=self.max_frames)

    @property
    def seconds(self) -> float:
        """Length of the window in seconds."""
        return self.end - self.start

    @property  # not cached: `model_copy` would carry the old digest into the changed copy
    def key(self) -> str:
        """16 hexadecimal digits naming this request; equal clips have equal keys in every process."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def iou(self, start: float, end: float) -> float:
        """Intersection over union of this window with `[start, end]`, 0 to 1; 0 for two empty windows."""
        return window_iou((self.start, self.end), (start, end))


def window_iou(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Temporal intersection over union of two windows in seconds, 0 to 1 (LOVE-R1's overlap measure)."""
    intersection = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = max(a[1], b[1]) - min(a[0], b[0])
    return intersection / union if union > 0 and math.isfinite(union) else 0.0
