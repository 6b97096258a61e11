"""A small video made on the spot, for `check_tool` and for trying tools without a file at hand.

Frame i shows one flat colour per scene and a bar that moves one step per frame, so neighbouring frames differ a little
and scenes differ a lot. Only FFmpeg's own MPEG-4 encoder is used, which every build of PyAV has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

COLOURS = ((200, 60, 50), (40, 90, 200), (230, 200, 60), (60, 170, 80), (150, 70, 180), (235, 235, 235))


def write_sample_video(
    path: Path,
    *,
    seconds: float = 8.0,
    fps: int = 10,
    size: tuple[int, int] = (96, 128),
    cuts: Sequence[float] = (3.0, 5.5),
) -> Path:
    """Write an mp4 file and return its path.

    Args:
        path: where to write; the folder must exist.
        seconds: length; fps: frames per second; size: (height, width) in pixels, both even.
        cuts: times in seconds at which a new scene begins.
    """
    import av
    import numpy as np

    height, width = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(max(1, round(seconds * fps))):
            scene = sum(i / fps >= cut - 1e-9 for cut in cuts)
            picture = np.empty((height, width, 3), dtype=np.uint8)
            picture[:] = COLOURS[scene % len(COLOURS)]
            left = 2 * i % width
            picture[height // 2 :, left : left + 8] = 20
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
