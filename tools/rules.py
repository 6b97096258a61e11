"""`ToolRules`: the limits a preset puts on windows, frames and pixels. LOVE-R1's are `ToolRules.love_r1()`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ToolRules(BaseModel):
    """Limits the tools enforce; a refusal names the rule and what would be allowed.

    Attributes:
        min_seconds, max_seconds: shortest and longest window of a close look, in seconds.
        max_fraction: longest window as a fraction of the video's duration.
        max_overlap: a close look whose temporal IoU with an earlier one exceeds this is refused; 1 allows all.
        zoom_frames: frames of a close look; `zoom_pixels` the area of each (pixels).
        resample_max_frames: most frames one resample may ask for; `skim_pixels` the area of each (pixels).
        tool_seconds: wall time one tool call may take, in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_seconds: float = Field(default=0.2, ge=0)
    max_seconds: float = Field(default=60.0, gt=0)
    max_fraction: float = Field(default=0.5, gt=0, le=1)
    max_overlap: float = Field(default=0.9, ge=0, le=1)
    zoom_frames: int = Field(default=16, ge=1)
    zoom_pixels: int = Field(default=256 * 28 * 28, gt=0)
    resample_max_frames: int = Field(default=256, ge=1)
    skim_pixels: int = Field(default=32 * 28 * 28, gt=0)
    tool_seconds: float = Field(default=60.0, gt=0)

    @classmethod
    def love_r1(cls) -> ToolRules:
        """The window rules of LOVE-R1's reinforcement stage: 1 s to min(T/2, 60 s), IoU with earlier clips at most 0.7."""
        return cls(min_seconds=1.0, max_seconds=60.0, max_fraction=0.5, max_overlap=0.7)
