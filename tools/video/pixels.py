"""From a decoder's picture to RGB of a stated size: the two resizers of the project and their colour conversions.

"swscale-bilinear" (default) is swscale's bilinear filter with accurate rounding, in one step with the conversion to
RGB. When it shrinks, swscale widens the triangle with the ratio, so it averages every source pixel (it does not alias,
unlike its FAST_BILINEAR): measured on a zone plate from 1280x720 down to 160x90 it stays within 0.5 levels of Pillow's
antialiased BILINEAR, where FAST_BILINEAR is 57 levels off. Accurate rounding removes a darkening of 1.6 levels and
costs 0.1 to 0.3 ms a frame.

"bicubic" is what a stock processor of the model families does with a video: the whole picture to RGB as PyAV's
`to_ndarray(format="rgb24")` makes it, turned for display, then Pillow's antialiased BICUBIC. That is the very call of
transformers' PIL image processors. The torchvision ones resize uint8 tensors with torch's `interpolate` (bicubic,
antialiased; natively in integers on a CPU), whose arithmetic is Pillow's with other rounding of the weights: at most 2
levels apart, on real frames below 0.02 on average (tests/tools/video/test_resizers.py). Pillow needs no torch, so it is
Pillow. The whole picture is the same from every decoder, so a bicubic frame is, too.

Training and evaluation must agree on the filter, so its name is part of every frame key.

Colours: the matrix and range that the frame is tagged with; untagged frames are taken as BT.601 limited range, as
FFmpeg's own converter takes them. High dynamic range is not tone-mapped (neither does FFmpeg unless told).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from closeup.tools.video.orientation import Orientation

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.reformatter import VideoReformatter

RESIZER = "swscale-bilinear-accurate"
BICUBIC = "pillow-bicubic"


def to_rgb(
    frame: VideoFrame, size: tuple[int, int] | None, orientation: Orientation, reformatter: VideoReformatter
) -> NDArray[np.uint8]:
    """The frame as displayed: uint8, H x W x 3, RGB, where `size` = (H, W) in pixels after turning.

    `size` None gives every stored pixel, for `bicubic`: not resized, not stretched to the sample aspect ratio.
    `reformatter` keeps swscale's tables from frame to frame; it belongs to one caller at a time.
    """
    from av.video.reformatter import Interpolation

    if size is None:  # no flags: swscale's own conversion, which everybody's decoder makes
        whole: NDArray[np.uint8] = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()  # type: ignore[assignment]
        return orientation.apply(whole)
    height, width = orientation.stored(size)
    picture = reformatter.reformat(
        frame,
        width=width,
        height=height,
        format="rgb24",
        interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT,
        threads=1,
    )
    pixels: NDArray[np.uint8] = picture.to_ndarray()  # type: ignore[assignment]  # rgb24 is 8 bits
    return orientation.apply(pixels)


def bicubic(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """An H x W x 3 RGB picture at `size` = (height, width) pixels by Pillow's antialiased bicubic filter: uint8.

    A picture of that size already is returned as it is, as Pillow and the stock processors do.
    """
    height, width = size
    if picture.shape[:2] == size:
        return picture
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
