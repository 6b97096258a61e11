"""`StreamIndex`: what has been learnt about one stream while reading it, shared by every reader of that content.

It saves work and never changes an answer: the intervals are those of frames that were really decoded one after the
other, the key frames' times are those of packets that were really read.

Invariants
1. `shown(tick)` is None or the PTS of the frame shown at `tick`.
2. `bad` only grows.
"""

from __future__ import annotations

import threading
from bisect import bisect_right

_FOREVER = 1 << 62


class StreamIndex:
    """Known frames, key frames and bad packets of one stream. Safe under threads."""

    def __init__(self, bad: frozenset[int | None] = frozenset()) -> None:
        self._lock = threading.Lock()
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._bad: set[int | None] = set(bad)
        self._keys: list[int] | None = None  # stamps as the container lists them, ascending; PTS or DTS
        self._key_pts: dict[int, int | None] = {}  # stamp -> real PTS; None: that key frame cannot be decoded

    # -- frames -----------------------------------------------------------------------------------------------------

    def learn(self, pts: int, until: int | None) -> None:
        """The frame at `pts` is shown until the next one, at `until` (None: it is the last)."""
        with self._lock:
            at = bisect_right(self._starts, pts)
            if at and self._starts[at - 1] == pts:
                return
            self._starts.insert(at, pts)
            self._ends.insert(at, _FOREVER if until is None else until)

    def shown(self, tick: int) -> int | None:
        """PTS of the frame shown at `tick`, or None when that is not known yet."""
        with self._lock:
            at = bisect_right(self._starts, tick) - 1
            return self._starts[at] if at >= 0 and tick < self._ends[at] else None

    # -- key frames -------------------------------------------------------------------------------------------------

    @property
    def keys(self) -> list[int] | None:
        """The stamps of all key frames, ascending, or None when nobody has listed them yet. Not to be changed."""
        return self._keys

    def list_keys(self, stamps: list[int]) -> None:
        """Record the stamps of all key frames. A stamp is never later than its key frame's PTS."""
        with self._lock:
            self._keys = sorted(set(stamps))

    def learn_key(self, stamp: int, pts: int | None) -> None:
        """The key frame listed under `stamp` is shown at `pts` (None: it cannot be decoded)."""
        with self._lock:
            self._key_pts[stamp] = pts

    def key_shown(self, tick: int) -> int | None:
        """PTS of the last decodable key frame at or before `tick`, or None when that is not known yet."""
        with self._lock:
            keys = self._keys or []
            for at in range(bisect_right(keys, tick) - 1, -1, -1):
                if keys[at] not in self._key_pts:
                    return None
                pts = self._key_pts[keys[at]]
                if pts is not None and pts <= tick:
                    return pts
            return None

    # -- damage -----------------------------------------------------------------------------------------------------

    def add_bad(self, packets: set[int | None]) -> int:
        """Add packets that could not be decoded (by position in the file); returns how many are known now."""
        with self._lock:
            self._bad |= packets
            return len(self._bad)

    @property
    def nbytes(self) -> int:
        """Rough size in memory."""
        return 512 + 80 * len(self._starts) + 40 * len(self._keys or ()) + 100 * len(self._key_pts)
