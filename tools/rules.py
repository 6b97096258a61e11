"""`ToolRules`: the limits a preset puts on windows, frames and pixels. LOVE-R1's are `ToolRules.love_r1()`."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from closeup.tools.video.clip import SWSCALE, Clip, Resizer
from closeup.tools.video.sampling import Placement, frame_count

ANY_LENGTH = 1e9
"""Seconds no video lasts: as `max_seconds`, no limit."""


class ToolRules(BaseModel):
    """Limits the tools enforce; a refusal names the rule and what would be allowed.

    Attributes:
        min_seconds, max_seconds: shortest and longest window of a close look, in seconds.
        max_fraction: longest window as a fraction of the video's duration (never shorter than `min_seconds`).
        max_overlap: a close look whose temporal IoU with an earlier one exceeds this is refused; 1 allows all.
        past_end_seconds: how far past the video's end a window may reach; it is cut at the end. More is refused.
        zoom_frames: frames of a close look; `zoom_pixels` the area of each (pixels).
        zoom_fps: frames per second of a close look, at most `zoom_frames` of them; 0: always `zoom_frames`.
        zoom_placement: where in its window the frames of a close look lie (`Clip.placement`). With "left" a begun frame
            counts, with "ends" and "centre" only whole ones.
        seen_frames: most frames of each window that a task was watched in before, when there is one such window, when
            there are two, …; the last number holds for more. (): `zoom_frames`.
        short_seconds: a close look at a video shorter than this has frames of `short_factor` times the area; 0: none
            has.
        widen_seconds: a window is widened by this on either side, inside the video.
        widen_to_seconds, widen_to_fraction: and then, around its middle, to the smaller of these many seconds and this
            share of the video; at an edge of the video it stays shorter.
        resample_max_frames: most frames one resample may ask for; `skim_pixels` the area of each (pixels).
        tool_seconds: wall time one tool call may take, in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min_seconds: float = Field(default=0.2, ge=0)
    max_seconds: float = Field(default=60.0, gt=0)
    max_fraction: float = Field(default=0.5, gt=0, le=1)
    max_overlap: float = Field(default=0.9, ge=0, le=1)
    past_end_seconds: float = Field(default=0.5, ge=0)
    zoom_frames: int = Field(default=16, ge=1)
    zoom_pixels: int = Field(default=256 * 28 * 28, gt=0)
    zoom_fps: float = Field(default=0.0, ge=0)
    zoom_placement: Placement = "left"
    seen_frames: tuple[int, ...] = ()
    short_seconds: float = Field(default=0.0, ge=0)
    short_factor: float = Field(default=2.0, ge=1)
    widen_seconds: float = Field(default=0.0, ge=0)
    widen_to_seconds: float = Field(default=0.0, ge=0)
    widen_to_fraction: float = Field(default=0.0, ge=0, le=1)
    resample_max_frames: int = Field(default=256, ge=1)
    skim_pixels: int = Field(default=32 * 28 * 28, gt=0)
    tool_seconds: float = Field(default=60.0, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> ToolRules:
        if self.max_seconds < self.min_seconds:
            raise ValueError(
                f"max_seconds ({self.max_seconds:g}) is below min_seconds ({self.min_seconds:g}): no window is allowed"
            )
        if any(frames < 1 for frames in self.seen_frames):
            raise ValueError(f"seen_frames are numbers of frames from 1 on, got {list(self.seen_frames)}")
        return self

    def window_seconds(self, duration: float) -> tuple[float, float]:
        """Shortest and longest close look (seconds) at a video of `duration` seconds.

        A video shorter than `min_seconds` may be looked at whole, so a window is always possible.
        """
        shortest = min(self.min_seconds, duration)
        return shortest, max(shortest, min(self.max_seconds, self.max_fraction * duration))

    def widened(self, start: float, end: float, duration: float) -> tuple[float, float]:
        """A window (seconds) as it is shown: widened on both sides, then to the least length; inside the video.

        Both steps are LOVE-R1's at evaluation, to the second: a video ends at its last whole second, what is widened to
        the least length begins and ends on whole seconds, and at an edge of the video it is cut, not moved.
        """
        if self.widen_seconds:
            start = max(0.0, start - self.widen_seconds)
            end = max(end, min(float(math.floor(duration)), end + self.widen_seconds))
        length = min(self.widen_to_seconds, self.widen_to_fraction * duration)
        if end - start < length:
            middle = (start + end) / 2
            start = float(math.floor(max(0.0, middle - length / 2)))
            end = max(end, float(math.floor(min(duration, middle + length / 2))))
        return start, end

    def frames_of(self, seconds: float, *, seen: int = 0) -> int:
        """How many frames a close look of this length has; `seen`: it is one of so many that a task opens with."""
        most = self.seen_frames[min(seen, len(self.seen_frames)) - 1] if seen and self.seen_frames else self.zoom_frames
        if not self.zoom_fps:
            return most
        return frame_count(seconds, self.zoom_fps, max_frames=most, whole=self.zoom_placement != "left")

    def pixels_of(self, duration: float) -> int:
        """The area of a close look's frames (pixels) in a video of `duration` seconds."""
        return round(self.zoom_pixels * self.short_factor) if duration < self.short_seconds else self.zoom_pixels

    def close_look(
        self,
        video: str,
        duration: float,
        window: tuple[float, float],
        overlay: Literal["seconds", "blank"] | None,
        resizer: Resizer = SWSCALE,
        *,
        seen: int = 0,
    ) -> Clip:
        """A window (seconds) of a video of `duration` seconds, with as many and as large frames as these rules say.

        `seen`: it is one of so many windows that a task opens with.
        """
        start, end = window
        return Clip(
            video=video,
            start=start,
            end=end,
            num_frames=self.frames_of(end - start, seen=seen),
            placement=self.zoom_placement,
            pixels=self.pixels_of(duration),
            overlay=overlay,
            resizer=resizer,
        )

    @classmethod
    def love_r1_evaluation(cls, *, zoom_frames: int = 32, widen_to_seconds: float = 30.0) -> ToolRules:
        """LOVE-R1's rules at evaluation: a window is widened, then shown unless it overlaps an earlier one by IoU >
        0.3.

        It grows by 5 s on either side and then to min(30 s, T/8); no longest window is named, and an end past the
        video's is its end. A close look has 2 frames a second, 32 at most, spread from its first to its last instant;
        in a video shorter than 60 s their area is doubled. On LongVideoBench a close look has 16 frames and the second
        widening is left out.
        """
        return cls(
            min_seconds=3.0,
            max_seconds=ANY_LENGTH,
            max_fraction=1.0,
            max_overlap=0.3,
            past_end_seconds=ANY_LENGTH,
            zoom_frames=zoom_frames,
            zoom_fps=2.0,
            zoom_placement="ends",
            short_seconds=60.0,
            widen_seconds=5.0,
            widen_to_seconds=widen_to_seconds,
            widen_to_fraction=1 / 8,
        )

    @classmethod
    def love_r1(cls) -> ToolRules:
        """LOVE-R1's rules in reinforcement: 1 s to min(T/2, 60 s), end <= T + 1 s, IoU with earlier clips <= 0.7.

        A close look has 2 frames a second, 16 at most.
        """
        return cls(
            min_seconds=1.0,
            max_seconds=60.0,
            max_fraction=0.5,
            max_overlap=0.7,
            past_end_seconds=1.0,
            zoom_fps=2.0,
            zoom_placement="ends",
        )
