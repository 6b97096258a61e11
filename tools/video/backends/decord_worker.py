"""Runs decord in a process of its own: `python decord_worker.py PATH FD THREADS NUMBER...`.

decord decodes ahead without bound while it is idle, so it lives for one call only, and apart, so that a crash or a hang
of its native code harms nobody. Frames go to file descriptor FD, one after the other: a header (HEADER) and H x W x 3
bytes. This file is started as a script and imports nothing of closeup.
"""

from __future__ import annotations

import os
import struct
import sys

HEADER = struct.Struct("=qdii")  # frame number, its time in decord's seconds, height, width
BATCH = 16  # full-size frames held at once


def main(path: str, descriptor: int, threads: int, numbers: list[int]) -> None:
    """Decode the frames of these numbers and write them in this order."""
    import decord  # type: ignore[import-not-found, unused-ignore]

    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=threads)
    times = reader.get_frame_timestamp(list(range(len(reader))))
    with os.fdopen(descriptor, "wb") as pipe:
        pipe.write(struct.pack("=q", len(reader)))
        for first in range(0, len(numbers), BATCH):
            batch = numbers[first : first + BATCH]
            for number, picture in zip(batch, reader.get_batch(batch).asnumpy(), strict=True):
                pipe.write(HEADER.pack(number, float(times[number][0]), *picture.shape[:2]))
                pipe.write(picture.tobytes())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), [int(number) for number in sys.argv[4:]])
