"""`Pictures`: the frames of a look as JPEG `data:` URLs: as the agent saw them, and as the film shows them.

Invariants
1. A picture is of the film the look was at: a path that holds another content by now gives no picture.
2. Nothing here raises for a film that went away or cannot be decoded: the strip is empty and says why.
3. Bounded: at most `max_frames` pictures per look (evenly chosen, first and last among them), at most `max_bytes` kept.
4. Frames are decoded at the size the agent saw, so that a live episode finds them in the frame cache.
"""

from __future__ import annotations

import base64
import io
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from closeup.app.scene import Film, Look
from closeup.tools.video import Video, VideoError

SIDE = {"overview": 160, "close": 320}
"""Longest side of a picture in a strip, in pixels; a smaller frame stays as it is."""
CHUNK = 16
"""Frames decoded at a time, which bounds the memory they take."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame.

    Attributes:
        time: of the frame, in seconds.
        url: `data:` URL of what the agent saw, at most `SIDE` pixels long. width, height: its size in pixels.
        film: `data:` URL of the same frame as the film shows it; "" where none is made.
    """

    time: float
    url: str
    width: int
    height: int
    film: str = ""

    @property
    def bytes(self) -> int:
        """Characters it takes on a page."""
        return len(self.url) + len(self.film)


@dataclass(frozen=True, slots=True)
class Strip:
    """The pictures of a look, oldest first; `total` frames the look has; `why` there is no picture, or ""."""

    pictures: tuple[Picture, ...]
    total: int
    why: str = ""

    @property
    def left_out(self) -> int:
        """Frames of the look that no picture shows."""
        return self.total - len(self.pictures)


class Pictures:
    """Decodes and keeps pictures; may be shared by threads.

    Args:
        moved: where films are now, by content identity; default: where the scene says.
        film_side: longest side of `Picture.film` in pixels; 0 makes none (less to decode, smaller pages).
        max_frames: pictures per look. max_bytes: of pictures kept; the oldest used go first.
        threads: decoding threads.
    """

    def __init__(
        self,
        moved: Mapping[str, Path] | None = None,
        *,
        film_side: int = 0,
        max_frames: int = 64,
        max_bytes: int = 32 << 20,
        threads: int = 1,
    ) -> None:
        if film_side < 0 or max_frames < 1 or max_bytes < 0:
            raise ValueError(
                "film_side and max_bytes are at least 0 and max_frames at least 1, got"
                f" {film_side}, {max_bytes} and {max_frames}"
            )
        self._moved = dict(moved or {})
        self._film_side = film_side
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._threads = threads
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[object, ...], Strip] = OrderedDict()
        self._bytes = 0

    def strip(self, film: Film | None, look: Look) -> Strip:
        """The pictures of a look; `film` is the one it is of, None when the scene does not know it."""
        times = thinned(look.times, self._max_frames)
        if film is None:
            return Strip((), len(look.times), "the record does not name the film")
        path = self._moved.get(film.id, Path(film.path))
        key = (film.id, str(path), look.size, look.mode, look.overlay, look.resizer, look.kind, tuple(times))
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        made = self._decode(path, film, look, times)
        if made.pictures:  # a film that went away may come back
            self._keep(key, made)
        return made

    def _decode(self, path: Path, film: Film, look: Look, times: Sequence[float]) -> Strip:
        total = len(look.times)
        pictures: list[Picture] = []
        try:
            with Video(path, threads=self._threads) as video:
                if video.identity != film.id:
                    return Strip((), total, f"another file stands where {film.name} was")
                scale = min(1.0, self._film_side / max(video.height, video.width))
                whole_size = (max(1, round(video.height * scale)), max(1, round(video.width * scale)))
                for at in range(0, len(times), CHUNK):
                    some = times[at : at + CHUNK]
                    if look.overlay == "blank":
                        seen = np.zeros((len(some), *look.size, 3), np.uint8)
                    else:
                        seen = video.frames(some, look.size, mode=look.mode, resizer=look.resizer).pixels
                    whole = video.frames(some, whole_size, mode=look.mode).pixels if self._film_side else None
                    for i, time in enumerate(some):
                        small = Image.fromarray(seen[i])
                        small.thumbnail((SIDE[look.kind], SIDE[look.kind]), Image.Resampling.BOX)
                        url = "" if whole is None else data_url(whole[i], quality=80)
                        pictures.append(Picture(float(time), data_url(small), small.width, small.height, url))
        except (VideoError, ValueError, OSError) as error:
            reason = str(error) if not isinstance(error, VideoError) else type(error).__name__
            return Strip((), total, _why(film, reason))
        return Strip(tuple(pictures), total)

    def _keep(self, key: tuple[object, ...], strip: Strip) -> None:
        size = sum(picture.bytes for picture in strip.pictures)
        with self._lock:
            if key in self._kept or size > self._max_bytes:
                return
            self._kept[key] = strip
            self._bytes += size
            while self._bytes > self._max_bytes:
                _, gone = self._kept.popitem(last=False)
                self._bytes -= sum(picture.bytes for picture in gone.pictures)


def thinned(times: Sequence[float], count: int) -> list[float]:
    """At most `count` of the times, evenly chosen, first and last among them."""
    if len(times) <= count:
        return list(times)
    if count == 1:
        return [times[0]]
    return [times[round(i * (len(times) - 1) / (count - 1))] for i in range(count)]


def data_url(picture: Image.Image | NDArray[np.uint8], *, quality: int = 88) -> str:
    """A picture (RGB) as a `data:` URL; small ones keep their colours in full (no chroma subsampling)."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    fine = image.width * image.height <= 128 * 128
    image.save(buffer, "JPEG", quality=95 if fine else quality, subsampling=0 if fine else 2)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _why(film: Film, reason: str) -> str:
    known = {
        "VideoNotFound": f"{film.name} is not there any more",
        "FileChanged": f"{film.name} was changed while it was read",
    }
    return known.get(reason, f"{film.name} cannot be decoded any more")
