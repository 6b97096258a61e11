"""What one process remembers between calls: resized frames, what is known of each stream, and open readers.

All rollouts of a process share these three stores. Each is bounded in bytes and forgets the least recently used first.

Invariants
1. A stored frame is keyed by everything that makes its pixels (`FrameKey`) and is read-only; callers get copies.
2. A reader is lent to one caller at a time; two callers on one file get two readers.
3. After a fork the child starts with empty stores. What the parent had open is neither used nor closed there: FFmpeg's
   decoder threads do not exist in the child, and closing would wait for them for ever.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from closeup.tools.video.localfile import FileStamp

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class FrameKey(NamedTuple):
    """Everything that makes a frame's pixels: two equal keys mean equal pixels.

    `video` names the content (`Probe.content`), `stream` the stream's index, `pts` the presentation time in ticks,
    `backend` the decoder's name and version, `resizer` what resized, `size` = (height, width) in pixels, `overlay` the
    drawing (over the frame, or with bicubic over the picture that was resized).
    """

    video: Hashable
    stream: int
    pts: int
    backend: str
    resizer: str
    size: tuple[int, int]
    overlay: str | None


@dataclass(frozen=True)
class StoreStats:
    """One store: entries and bytes held, its limit in bytes, and how often a look-up found something or did not."""

    entries: int
    bytes: int
    limit: int
    hits: int
    misses: int


class Store(Generic[K, V]):
    """A least-recently-used map bounded by the bytes of its values. Safe under threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.reset()

    def reset(self) -> None:
        """Forget everything, counters and lock included."""
        self._lock = threading.Lock()
        self._items: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._bytes = self._hits = self._misses = 0

    def get(self, key: K) -> V | None:
        """The value, which becomes the most recently used, or None."""
        with self._lock:
            item = self._items.get(key)
            if item is None:
                self._misses += 1
                return None
            self._items.move_to_end(key)
            self._hits += 1
            return item[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep `value`, of `size` bytes, unless it alone is larger than a quarter of the limit."""
        with self._lock:
            self._keep(key, value, size)

    def setdefault(self, key: K, make: Callable[[], V], size: Callable[[V], int]) -> V:
        """The value under `key`, made and kept if there is none. Callers at one time may each make it; all get one."""
        value = self.get(key)
        if value is None:
            value = make()
            with self._lock:
                if key in self._items:
                    return self._items[key][0]
                self._keep(key, value, size(value))
        return value

    def _keep(self, key: K, value: V, size: int) -> None:
        self._bytes -= self._items.pop(key, (None, 0))[1]
        if size * 4 > self._limit:
            return
        self._items[key] = (value, size)
        self._bytes += size
        self._shrink()

    def limit(self, size: int) -> None:
        """Set the limit in bytes; 0 keeps nothing."""
        with self._lock:
            self._limit = size
            self._shrink()

    def stats(self) -> StoreStats:
        """What the store holds and how it has done."""
        with self._lock:
            return StoreStats(len(self._items), self._bytes, self._limit, self._hits, self._misses)

    def _shrink(self) -> None:
        while self._bytes > self._limit and self._items:
            _, (_, size) = self._items.popitem(last=False)
            self._bytes -= size


class Reader(Protocol):
    """Anything that holds a file open."""

    def close(self) -> None:
        """Give the file back."""


class ReaderPool:
    """Idle open readers by key, bounded in (estimated) bytes. `take` hands one out for exclusive use."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._alive: weakref.WeakSet[Reader] = weakref.WeakSet()
        self.reset()

    def reset(self) -> None:
        """Forget the idle readers without closing them."""
        self._lock = threading.Lock()
        self._idle: OrderedDict[int, tuple[Hashable, Reader, int]] = OrderedDict()
        self._bytes = self._hits = self._misses = self._ticket = 0

    def take(self, key: Hashable) -> Reader | None:
        """An idle reader under `key`, the most recently used first, or None."""
        with self._lock:
            for ticket in reversed(self._idle):
                if self._idle[ticket][0] == key:
                    _, reader, size = self._idle.pop(ticket)
                    self._bytes -= size
                    self._hits += 1
                    return reader
            self._misses += 1
            return None

    def give(self, key: Hashable, reader: Reader, size: int) -> None:
        """Keep an open reader of about `size` bytes for the next caller; close those that no longer fit."""
        closing: list[Reader] = []
        with self._lock:
            self._alive.add(reader)
            self._ticket += 1
            self._idle[self._ticket] = (key, reader, size)
            self._bytes += size
            closing = self._shrink()
        for old in closing:
            old.close()

    def limit(self, size: int) -> None:
        """Set the limit in bytes; 0 keeps no reader open."""
        with self._lock:
            self._limit = size
            closing = self._shrink()
        for old in closing:
            old.close()

    def drop(self, belongs: Callable[[Hashable], bool]) -> None:
        """Close the idle readers whose key `belongs`."""
        with self._lock:
            gone = [ticket for ticket, (key, _, _) in self._idle.items() if belongs(key)]
            closing = [self._idle.pop(ticket) for ticket in gone]
            self._bytes -= sum(size for _, _, size in closing)
        for _, reader, _ in closing:
            reader.close()

    def clear(self) -> None:
        """Close every idle reader."""
        before = self._limit
        self.limit(0)
        self.limit(before)

    def stats(self) -> StoreStats:
        """Idle readers, their estimated bytes, and how often one could be reused."""
        with self._lock:
            return StoreStats(len(self._idle), self._bytes, self._limit, self._hits, self._misses)

    def watch(self, reader: Reader) -> None:
        """Remember that a reader exists, so that a forked child never closes it."""
        self._alive.add(reader)

    def abandon(self) -> None:
        """In a forked child: make every reader of the parent immortal and forget it."""
        for reader in list(self._alive):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(reader))
        self._alive = weakref.WeakSet()
        self.reset()

    def _shrink(self) -> list[Reader]:
        closing = []
        while self._bytes > self._limit and self._idle:
            _, (_, reader, size) = self._idle.popitem(last=False)
            self._bytes -= size
            closing.append(reader)
        return closing


class Turns:
    """Lets only one caller at a time do a piece of work; the others wait, and then find it done in the stores."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget who is waiting (after a fork: nobody is)."""
        self._lock = threading.Lock()
        self._work: dict[Hashable, tuple[threading.Lock, int]] = {}

    @contextmanager
    def take(self, work: Hashable) -> Iterator[None]:
        """Hold the turn for `work`."""
        with self._lock:
            turn, waiting = self._work.get(work, (threading.Lock(), 0))
            self._work[work] = (turn, waiting + 1)
        try:
            with turn:
                yield
        finally:
            with self._lock:
                turn, waiting = self._work.get(work, (turn, 1))
                if waiting > 1:
                    self._work[work] = (turn, waiting - 1)
                else:
                    self._work.pop(work, None)


frames: Store[FrameKey, NDArray[np.uint8]] = Store(512 << 20)
knowledge: Store[Hashable, object] = Store(64 << 20)
readers = ReaderPool(256 << 20)
turns = Turns()


def cache_stats() -> dict[str, StoreStats]:
    """The three stores of this process by name: "frames", "knowledge" (probes and indexes), "readers"."""
    return {"frames": frames.stats(), "knowledge": knowledge.stats(), "readers": readers.stats()}


def set_cache_limits(
    *, frames_bytes: int | None = None, knowledge_bytes: int | None = None, readers_bytes: int | None = None
) -> None:
    """Change the limits of this process's stores, in bytes; None leaves one as it is, 0 keeps nothing.

    The defaults are 512 MiB of frames, 64 MiB of knowledge and 256 MiB of readers.
    """
    given = {"frames_bytes": frames_bytes, "knowledge_bytes": knowledge_bytes, "readers_bytes": readers_bytes}
    for name, size in given.items():
        if size is not None and size < 0:
            raise ValueError(f"{name} must be at least 0, got {size}")
    if frames_bytes is not None:
        frames.limit(frames_bytes)
    if knowledge_bytes is not None:
        knowledge.limit(knowledge_bytes)
    if readers_bytes is not None:
        readers.limit(readers_bytes)


def close_readers(path: str | os.PathLike[str]) -> None:
    """Close the idle readers of the file at `path`: an open file keeps its disk space when it is deleted.

    Readers that are in use are kept when their users have done with them; frames that are known stay known.
    """
    place = os.path.realpath(path)

    def belongs(key: Hashable) -> bool:
        return isinstance(key, tuple) and any(isinstance(p, FileStamp) and p.path == place for p in key)

    readers.drop(belongs)


def clear_caches() -> None:
    """Forget everything and close idle readers; limits stay."""
    frames.reset()
    knowledge.reset()
    readers.clear()


def _after_fork_in_child() -> None:
    readers.abandon()
    turns.reset()
    frames.reset()
    knowledge.reset()


os.register_at_fork(after_in_child=_after_fork_in_child)
