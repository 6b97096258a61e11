"""`VisionGeometry`: how a model family turns frames into visual tokens; torch-free, so that budgets need no model.

Source of the resize rule: Qwen2-VL's `smart_resize` (both sides multiples of patch x merge, area inside the bounds,
aspect ratio kept as far as possible).
"""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field


class VisionGeometry(BaseModel):
    """Patch sizes of a vision tower and what follows from them.

    Attributes:
        patch: side of a patch in pixels; merge: patches merged per side into one token; temporal: frames per token.
        min_pixels: smallest area of a frame in pixels the family is fed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    patch: int = Field(default=14, gt=0)
    merge: int = Field(default=2, gt=0)
    temporal: int = Field(default=2, gt=0)
    min_pixels: int = Field(default=28 * 28, gt=0)

    @property
    def factor(self) -> int:
        """Both sides of a frame are multiples of this many pixels."""
        return self.patch * self.merge

    def size(self, width: int, height: int, pixels: int) -> tuple[int, int]:
        """`(height, width)` in pixels for a frame of the given size: area at most `pixels`, one token at the least."""
        if width <= 0 or height <= 0:
            raise ValueError(f"a frame has a positive size, got {width}x{height}")
        f = self.factor
        pixels = max(pixels, f * f)
        h, w = max(f, round(height / f) * f), max(f, round(width / f) * f)
        if h * w > pixels:
            shrink = math.sqrt(height * width / pixels)
            h = max(f, math.floor(height / shrink / f) * f)
            w = max(f, math.floor(width / shrink / f) * f)
            if h * w > pixels:  # a side was already at the factor: only the other one can give way
                h, w = (f, max(f, pixels // f // f * f)) if h == f else (max(f, pixels // f // f * f), f)
        elif h * w < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            h, w = math.ceil(height * grow / f) * f, math.ceil(width * grow / f) * f
        return h, w

    def tokens(self, num_frames: int, size: tuple[int, int]) -> int:
        """Visual tokens of `num_frames` frames of `size` = (height, width) pixels; a last odd frame makes a pair."""
        rows = math.ceil(num_frames / self.temporal)
        return rows * (size[0] // self.factor) * (size[1] // self.factor)
