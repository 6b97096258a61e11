"""`VisionGeometry`: how a model family turns frames into visual tokens; torch-free, so that budgets need no model.

Source of the resize rule: Qwen2-VL's `smart_resize` (both sides multiples of patch x merge, area inside the bounds,
aspect ratio kept as far as possible). Sizes equal the stock function's (tests/agent/models/test_sizes.py) except where,
on purpose, (a) it would exceed the largest area it was given, because one side is a single token already: here the
other gives way; (b) a side is shorter than half a token: it counts as one, not as none; (c) it refuses sides more than
200 apart in ratio. Qwen3-VL's rule for videos bounds the area of all frames together; here an area is one frame's, so
that a clip's frames are as large whatever their number. For an even number of frames the two are one rule.
"""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field


class VisionGeometry(BaseModel):
    """Patch sizes of a vision tower and what follows from them.

    Attributes:
        patch: side of a patch in pixels; merge: patches merged per side into one token; temporal: frames per token.
        min_pixels: smallest area of a frame in pixels the family is fed.
        tile: 0 where frames keep their shape; else the side in pixels of the square tiles that every frame is cut into.
        tile_tokens: visual tokens of a tile. max_tiles: most tiles of a frame; with two and more, one more tile shows
            the whole frame (InternVL's thumbnail).
        clip_tokens: visual tokens that a clip has besides those of its frames.
        times: how a frame's time is told ("position", "text", …); "" when it is not known here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    patch: int = Field(default=14, gt=0)
    merge: int = Field(default=2, gt=0)
    temporal: int = Field(default=2, gt=0)
    min_pixels: int = Field(default=28 * 28, gt=0)
    tile: int = Field(default=0, ge=0)
    tile_tokens: int = Field(default=0, ge=0)
    max_tiles: int = Field(default=1, ge=1)
    clip_tokens: int = Field(default=0, ge=0)
    times: str = ""

    @property
    def factor(self) -> int:
        """Both sides of a frame are multiples of this many pixels."""
        return self.patch * self.merge

    def size(self, width: int, height: int, pixels: int) -> tuple[int, int]:
        """`(height, width)` in pixels for a frame of the given size: area at most `pixels`, one token at the least."""
        if width <= 0 or height <= 0:
            raise ValueError(f"a frame has a positive size, got {width}x{height}")
        if self.tile:
            rows, columns = self._tiling(width, height, pixels // self.tile**2)
            return rows * self.tile, columns * self.tile
        f = self.factor
        asked, pixels = pixels, max(pixels, f * f)
        h, w = max(f, round(height / f) * f), max(f, round(width / f) * f)
        if h * w > pixels:
            shrink = math.sqrt(height * width / pixels)
            h = max(f, math.floor(height / shrink / f) * f)
            w = max(f, math.floor(width / shrink / f) * f)
            if h * w > pixels:  # a side was already at the factor: only the other one can give way
                h, w = (f, max(f, pixels // f // f * f)) if h == f else (max(f, pixels // f // f * f), f)
        elif h * w < self.min_pixels and h * w <= asked:  # what is at its limit already is not enlarged
            grow = math.sqrt(self.min_pixels / (height * width))
            h, w = math.ceil(height * grow / f) * f, math.ceil(width * grow / f) * f
        return h, w

    def tokens(self, num_frames: int, size: tuple[int, int]) -> int:
        """Visual tokens of `num_frames` frames of `size` = (height, width) pixels; a last odd frame makes a pair."""
        if self.tile:
            return num_frames * self.tiles(size) * self.tile_tokens + self.clip_tokens
        rows = math.ceil(num_frames / self.temporal)
        return rows * (size[0] // self.factor) * (size[1] // self.factor) + self.clip_tokens

    def tiles(self, size: tuple[int, int]) -> int:
        """Tiles of one frame of `size` = (height, width) pixels, the one that shows the whole frame included."""
        count = (size[0] // self.tile) * (size[1] // self.tile)
        return count + (count > 1)

    def _tiling(self, width: int, height: int, most: int) -> tuple[int, int]:
        """(rows, columns) of tiles, `most` at the most: the shape nearest to the frame's, of two equally near ones the
        larger if the frame has more than half its pixels (InternVL 1.5, arXiv 2404.16821, section 3.3)."""
        most = max(1, min(most, self.max_tiles))
        shapes = [(r, c) for r in range(1, most + 1) for c in range(1, most + 1) if r * c <= most]
        best, nearest = (1, 1), math.inf
        for rows, columns in sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape[1])):
            apart = abs(width / height - columns / rows)
            larger = width * height > 0.5 * self.tile**2 * rows * columns
            if apart < nearest or (apart == nearest and larger):
                best, nearest = (rows, columns), apart
        return best
