"""`ToolRules`: the limits a preset puts on windows, frames and pixels. LOVE-R1's are `ToolRules.love_r1()`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ToolRules(BaseModel):
    """Limits the tools enforce; a refusal names the rule and what would be allowed.

    Attributes:
        min_seconds, max_seconds: shortest and longest window of a close look, in seconds.
        max_fraction: longest window as a fraction of the video's duration (never shorter than `min_seconds`).
        max_overlap: a close look whose temporal IoU with an earlier one exceeds this is refused; 1 allows all.
        past_end_seconds: how far past the video's end a window may reach; it is cut at the end. More is refused.
        zoom_frames: frames of a close look; `zoom_pixels` the area of each (pixels).
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
    resample_max_frames: int = Field(default=256, ge=1)
    skim_pixels: int = Field(default=32 * 28 * 28, gt=0)
    tool_seconds: float = Field(default=60.0, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> ToolRules:
        if self.max_seconds < self.min_seconds:
            raise ValueError(
                f"max_seconds ({self.max_seconds:g}) is below min_seconds ({self.min_seconds:g}): no window is allowed"
            )
        return self

    def window_seconds(self, duration: float) -> tuple[float, float]:
        """Shortest and longest close look (seconds) at a video of `duration` seconds.

        A video shorter than `min_seconds` may be looked at whole, so a window is always possible.
        """
        shortest = min(self.min_seconds, duration)
        return shortest, max(shortest, min(self.max_seconds, self.max_fraction * duration))

    @classmethod
    def love_r1(cls) -> ToolRules:
        """LOVE-R1's rules in reinforcement: 1 s to min(T/2, 60 s), end <= T + 1 s, IoU with earlier clips <= 0.7."""
        return cls(min_seconds=1.0, max_seconds=60.0, max_fraction=0.5, max_overlap=0.7, past_end_seconds=1.0)
