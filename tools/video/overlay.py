"""Drawings on frames, by name. "seconds": the time as a red whole number of seconds in the lower right corner; "blank":
black all over.

LOVE-R1 burns such a count into the pixels so that the model can read time; the font is as high as an eighth of the
shorter side. With the bicubic resizer it is drawn on the decoder's picture and shrinks with it, as in LOVE-R1's code;
with swscale, which resizes while it decodes, on the frame of the size asked for. The font is Pillow's own, so the
drawing depends on Pillow's version and on no font file.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

RED = (255, 0, 0)


def draw(overlay: str | None, picture: NDArray[np.uint8], seconds: float) -> NDArray[np.uint8]:
    """The H x W x 3 picture shown at `seconds` with the named drawing on it; the picture itself when that is None.

    Raises:
        ValueError: an unknown overlay.
    """
    if overlay is None:
        return picture
    if overlay == "blank":
        return np.zeros_like(picture)
    if overlay != "seconds":
        raise ValueError(f"unknown overlay {overlay!r}; known: 'seconds', 'blank'")
    image = Image.fromarray(np.ascontiguousarray(picture))
    height, width = picture.shape[:2]
    margin = max(1, min(width, height) // 40)
    ImageDraw.Draw(image).text(
        (width - margin, height - margin),
        str(math.floor(max(0.0, seconds) + 1e-9)),
        fill=RED,
        font=_font(max(8, min(width, height) // 8)),
        anchor="rb",
    )
    return np.asarray(image)


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
