"""Where things lie on the timeline: a film's windows as lanes, in per cent of its width. Pure functions of a scene.

Invariants
1. Everything lies between 0 and 100 per cent, whatever a record says, and no bar is too thin to see.
2. The number of marks is bounded (`MAX_TICKS`, `MAX_LANES`), whatever the number of looks; what is left out is counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from closeup.app.pictures import thinned
from closeup.app.scene import Film, Look, Scene, Window

MAX_TICKS, MAX_LANES = 96, 24
THINNEST = 0.5
"""Per cent of the width that a bar has at the least."""
MARKED = 1.5
"""Per cent of the width below which a bar is drawn with a marker."""
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 36000)


@dataclass(frozen=True, slots=True)
class Bar:
    """A window: left edge and width in per cent of the film, and its seconds."""

    left: float
    width: float
    start: float
    end: float

    @property
    def right(self) -> float:
        """Right edge in per cent."""
        return self.left + self.width

    @property
    def middle(self) -> float:
        """Middle in per cent."""
        return round(self.left + self.width / 2, 3)

    @property
    def thin(self) -> bool:
        """It is so short on its film that it needs a marker to be found and hit."""
        return self.width < MARKED


@dataclass(frozen=True, slots=True)
class Lane:
    """One look: the step that gave it (None: before the first), its bar, and the places of its frames in per cent.

    `sharpness`: 0 to 1, how the area of its frames compares with the film's own (logarithmic).
    """

    step: int | None
    look: Look
    bar: Bar
    frames: tuple[float, ...]
    sharpness: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """One film: every window that was watched, the cited ones, and a ruler of (per cent, seconds).

    `gold`: the gold windows once the episode is over, so that nobody is told the answer while the agent looks.
    """

    film: Film
    lanes: tuple[Lane, ...]
    left_out: int
    gold: tuple[Bar, ...]
    cited: tuple[Bar, ...]
    ruler: tuple[tuple[float, float], ...]


def timelines(scene: Scene) -> tuple[Timeline, ...]:
    """The timeline of every film of a scene."""
    return tuple(_timeline(scene, film, first=index == 0) for index, film in enumerate(scene.films))


def _timeline(scene: Scene, film: Film, *, first: bool) -> Timeline:
    found = [(step, look) for step, look in scene.watched if look.video == film.id]
    lanes = tuple(
        Lane(
            step,
            look,
            bar(film.duration, (look.start, look.end)),
            tuple(_place(film.duration, t) for t in thinned(look.times, MAX_TICKS)),
            sharpness(look, film),
        )
        for step, look in found[:MAX_LANES]
    )
    return Timeline(
        film=film,
        lanes=lanes,
        left_out=len(found) - len(lanes),
        gold=tuple(bar(film.duration, window) for window in scene.gold) if first and scene.over else (),
        cited=tuple(bar(film.duration, w) for w in scene.evidence if cited_film(scene, w) == film.id),
        ruler=ruler(film.duration),
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One rollout's close looks on the film that all rollouts share."""

    rollout: int
    bars: tuple[Bar, ...]


def compared(scenes: Sequence[Scene], order: Sequence[int]) -> tuple[Timeline, tuple[Row, ...]] | None:
    """The first film with the gold windows, and where each rollout looked closely; None without a film."""
    films = scenes[0].films if scenes else ()
    if not films:
        return None
    film = films[0]
    rows = tuple(
        Row(
            index,
            tuple(
                bar(film.duration, (look.start, look.end))
                for _, look in scenes[index].watched
                if look.kind == "close" and look.video == film.id
            )[:MAX_LANES],
        )
        for index in order
    )
    gold = tuple(bar(film.duration, window) for window in scenes[0].gold)
    return Timeline(film=film, lanes=(), left_out=0, gold=gold, cited=(), ruler=ruler(film.duration)), rows


def closely(scene: Scene, video: str, seconds: float) -> bool:
    """Whether this instant of a film lies in a window that was watched closely."""
    return any(
        look.kind == "close" and look.video == video and look.start - 1e-6 <= seconds <= look.end + 1e-6
        for _, look in scene.watched
    )


def cited_film(scene: Scene, window: Window) -> str | None:
    """Identity of the film a cited window lies in: evidence is cut to close looks, and the last such look decides."""
    for _, look in reversed(scene.watched):
        if look.kind == "close" and look.start <= window[0] + 1e-6 and window[1] <= look.end + 1e-6:
            return look.video
    return scene.films[0].id if scene.films else None


def bar(duration: float, window: Window) -> Bar:
    """Where a window (seconds) lies on a film of `duration` seconds."""
    left, right = _place(duration, window[0]), _place(duration, window[1])
    if right - left < THINNEST:
        left = min(100 - THINNEST, max(0.0, (left + right - THINNEST) / 2))
        right = left + THINNEST
    return Bar(round(left, 3), round(right - left, 3), window[0], window[1])


def sharpness(look: Look, film: Film) -> float:
    """0 (a frame of 16 pixels or fewer) to 1 (as large as the film or larger), logarithmic in the area."""
    whole, seen = max(17, film.width * film.height), max(16, look.size[0] * look.size[1])
    return round(min(1.0, math.log(seen / 16) / math.log(whole / 16)), 3)


def ruler(duration: float, most: int = 6) -> tuple[tuple[float, float], ...]:
    """Round times along a film, at most `most` and one more, as (per cent, seconds)."""
    if not 0 < duration < math.inf:
        return ((0.0, 0.0),)
    step = next((s for s in _STEPS if duration / s <= most), math.ceil(duration / most / 36000) * 36000.0)
    count = int(duration / step + 1e-9)
    return tuple((round(100 * i * step / duration, 3), i * step) for i in range(count + 1))


def _place(duration: float, seconds: float) -> float:
    if not (duration > 0 and math.isfinite(seconds)):
        return 0.0
    return round(min(100.0, max(0.0, 100 * seconds / duration)), 3)
