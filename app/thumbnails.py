"""Frames as coloured half blocks, for terminals: two pixels per character, the upper as ink, the lower as ground."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.segment import Segment
from rich.style import Style

Pixels = npt.NDArray[np.uint8]


def thumbnail(frame: Pixels, columns: int, rows: int) -> list[list[Segment]]:
    """One frame (H x W x 3, uint8) as `rows` lines of `columns` characters, centred on black with its aspect kept."""
    height, width = 2 * rows, columns
    image = Image.fromarray(frame)
    image.thumbnail((width, height), Image.Resampling.BOX)
    if image.width < width and image.height < height:  # a small frame grows until one side fits
        scale = min(width / image.width, height / image.height)
        image = image.resize(
            (max(1, int(image.width * scale)), max(1, int(image.height * scale))), Image.Resampling.NEAREST
        )
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    pixels = np.asarray(canvas)
    return [
        [Segment("▀", _style(pixels[2 * row, column], pixels[2 * row + 1, column])) for column in range(columns)]
        for row in range(rows)
    ]


def strip(frames: Sequence[Pixels], captions: Sequence[str], *, columns: int, rows: int) -> list[list[Segment]]:
    """Frames side by side with a caption under each: a film strip of `rows + 1` lines."""
    pictures = [thumbnail(frame, columns, rows) for frame in frames]
    lines: list[list[Segment]] = []
    for row in range(rows):
        line: list[Segment] = []
        for picture in pictures:
            line += [*picture[row], Segment(" ")]
        lines.append(line)
    lines.append([Segment(caption[:columns].center(columns) + " ", Style(dim=True)) for caption in captions])
    return lines


def _style(upper: Pixels, lower: Pixels) -> Style:
    ink, ground = ("#{:02x}{:02x}{:02x}".format(*(int(v) for v in pixel)) for pixel in (upper, lower))
    return Style(color=ink, bgcolor=ground)
