"""Digits in several hands: small anti-aliased coverage masks drawn from scratch, plus Pillow's embedded typeface.

Invariant: `digit_mask` is a pure function of its arguments; nothing is read from the machine's fonts.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

STYLES = ("segments", "bitmap", "stroke", "rounded", "typeface", "slanted")
_SCALE = 8  # drawn this much larger, then averaged down

# Seven segments: a top, b upper right, c lower right, d bottom, e lower left, f upper left, g middle.
_SEGMENTS = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcfgd")
_LINES = {
    "a": (0, 0, 1, 0),
    "b": (1, 0, 1, 1),
    "c": (1, 1, 1, 2),
    "d": (0, 2, 1, 2),
    "e": (0, 1, 0, 2),
    "f": (0, 0, 0, 1),
    "g": (0, 1, 1, 1),
}
_BITMAPS = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00110 01000 10000 11111",
    "01110 10001 00001 00110 00001 10001 01110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)
# Polylines on a 4 wide, 6 high grid; a hand that draws 1, 4 and 7 differently from the segments.
_STROKES: tuple[tuple[tuple[tuple[float, float], ...], ...], ...] = (
    (((1, 0), (3, 0), (4, 1.5), (4, 4.5), (3, 6), (1, 6), (0, 4.5), (0, 1.5), (1, 0)),),
    (((0.7, 1.4), (2.3, 0), (2.3, 6)), ((0.8, 6), (3.8, 6))),
    (((0, 1.4), (1, 0), (3, 0), (4, 1.2), (4, 2.2), (0, 6), (4, 6)),),
    (((0, 0), (4, 0), (1.8, 2.4), (3.2, 2.6), (4, 3.8), (4, 4.8), (3, 6), (1, 6), (0, 5)),),
    (((3, 6), (3, 0), (0, 4.2), (4, 4.2)),),
    (((4, 0), (0.4, 0), (0.2, 2.6), (2.8, 2.4), (4, 3.4), (4, 4.8), (3, 6), (0, 6)),),
    (((3.4, 0), (1.2, 1.6), (0, 3.8), (0, 4.8), (1, 6), (3, 6), (4, 4.8), (4, 3.9), (3, 3), (1, 3), (0, 4)),),
    (((0, 0), (4, 0), (1.4, 6)), ((0.9, 3), (3.4, 3))),
    (
        ((1, 0), (3, 0), (3.8, 1.2), (3, 2.7), (1, 2.7), (0.2, 1.2), (1, 0)),
        ((1, 2.7), (0, 4.3), (1, 6), (3, 6), (4, 4.3), (3, 2.7)),
    ),
    (((4, 2), (3, 3), (1, 3), (0, 2.1), (0, 1.2), (1, 0), (3, 0), (4, 1.2), (4, 2.2), (2.8, 4.4), (0.6, 6)),),
)


@lru_cache(maxsize=4096)
def digit_mask(digit: int, style: str, height: int, weight: int, dx: int, dy: int) -> NDArray[np.float32]:
    """Coverage 0..1 (float32, height + 4 rows, about 0.9 height columns) of one digit.

    Args:
        digit: 0..9. style: one of `STYLES`. height: of the digit, in pixels.
        weight: stroke width in eighths of a pixel (styles drawn with lines). dx, dy: shift in eighths of a pixel.
    """
    s = _SCALE
    width = round(height * 0.62)
    canvas = Image.new("L", ((width + 4) * s, (height + 4) * s))
    draw = ImageDraw.Draw(canvas)
    left, top = 2 * s + dx, 2 * s + dy
    w, h = width * s, height * s
    if style == "bitmap":
        rows = _BITMAPS[digit].split()
        for i, row in enumerate(rows):
            for j, bit in enumerate(row):
                if bit == "1":
                    x0, x1 = left + w * j / 5, left + w * (j + 1) / 5
                    draw.rectangle((x0, top + h * i / 7, x1 - 1, top + h * (i + 1) / 7 - 1), fill=255)
    elif style == "typeface":
        font = ImageFont.load_default(size=h * 1.36)
        box = draw.textbbox((0, 0), str(digit), font=font)
        draw.text((left + (w - box[2] - box[0]) / 2, top + (h - box[3] - box[1]) / 2), str(digit), font=font, fill=255)
    else:
        half = weight / 2
        x_of, y_of = left + half, top + half
        w, h = int(w - weight), int(h - weight)
        if style in ("segments", "slanted"):
            lean = 0.18 * h if style == "slanted" else 0.0
            paths = [
                tuple((x * w + lean * (1 - y), y / 2 * h) for x, y in ((a, b), (c, d)))
                for a, b, c, d in (_LINES[name] for name in _SEGMENTS[digit])
            ]
        else:
            paths = [tuple((x / 4 * w, y / 6 * h) for x, y in path) for path in _STROKES[digit]]
        for path in paths:
            points = [(x_of + x, y_of + y) for x, y in path]
            draw.line(points, fill=255, width=weight, joint="curve")
            if style == "rounded":
                for x, y in points:
                    draw.ellipse((x - half, y - half, x + half, y + half), fill=255)
    pixels = np.asarray(canvas, dtype=np.float32) / 255
    averaged: NDArray[np.float32] = pixels.reshape(height + 4, s, width + 4, s).mean(axis=(1, 3))
    return averaged
