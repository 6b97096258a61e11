"""What an agent may cite: only the parts of a window that it has watched closely."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Window = tuple[float, float]


def merge(windows: Iterable[Window]) -> tuple[Window, ...]:
    """The union of windows (seconds) as disjoint windows in order; windows that touch become one."""
    merged: list[Window] = []
    for start, end in sorted(windows):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return tuple(merged)


def watched_part(cited: Sequence[Window], watched: Iterable[Window]) -> tuple[tuple[Window, ...], tuple[Window, ...]]:
    """Split cited windows (seconds) into the parts that were watched and the parts that were not.

    A cited instant is kept when it lies in a watched window; a window that only touches one is dropped.

    Returns:
        `(kept, dropped)`: the kept parts in the order they were cited, and every cited part outside `watched`.
    """
    union = merge(watched)
    kept: list[Window] = []
    dropped: list[Window] = []
    for start, end in cited:
        position, found = start, False
        for low, high in union:
            left, right = max(start, low), min(end, high)
            if right > left or (right == left and start == end):
                if left > position:
                    dropped.append((position, left))
                kept.append((left, right))
                position, found = right, True
        if not found or position < end:
            dropped.append((position, end))
    return tuple(kept), tuple(dropped)
