"""`DiskStore`: a folder of small and large files by name, bounded in bytes, shared by any number of processes.

It knows nothing of what the files hold; `featurecache.py` does.

Layout: `closeup-cache.json` (what the folder is, and its bound), the entries (`features/KEY/maker.json`,
`features/KEY/KK/KEY.safetensors` and `records/KK/KEY.json`, a KEY being 32 hexadecimal digits and KK 2), `.lock`,
`.bytes` (how much the entries take) and `.tmp/` (files being written).

Invariants
1. An entry appears whole or not at all, and never changes: it is written beside, flushed to the disk, then renamed.
2. The entries take at most `max_bytes`, whoever writes: adding, counting and removing happen under one lock of the
   folder. Entries that were not used for the longest time go first; or, when told so, nothing more is taken in, and a
   bound below what is there is refused.
3. Nothing but a store's own files is ever removed: a folder that holds anything else is refused, and what has come into
   it since under no name of an entry is passed over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MARKER = "closeup-cache.json"
FORMAT = 1
DEFAULT_MAX_BYTES = 64 << 30
ROOTS = ("features", "records")
SPARE = 16  # when full, a sixteenth of the bound is freed at once: looking through the folder is the slow part
STALE_SECONDS = 3600.0  # files being written for longer were left by a process that died
_KEY, _PART = "[0-9a-f]{32}", "[0-9a-f]{2}"
_NAME = re.compile(rf"features/{_KEY}/(?:maker\.json|{_PART}/{_KEY}\.safetensors)|records/{_PART}/{_KEY}\.json")

WhenFull = Literal["evict", "refuse"]


class CacheError(ValueError):
    """A cache on disk that cannot be used; the message names the file, the fault, and the command that mends it."""


class CacheFull(CacheError):
    """There is no room for another entry, and the store was told not to make any."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the store: its name, its size in bytes, and when it was last used (seconds since the epoch)."""

    name: str
    bytes: int
    used: float


class DiskStore:
    """See the module's docstring. Safe under threads and processes; opening one costs a look at its folder."""

    def __init__(self, folder: Path, *, max_bytes: int | None = None, when_full: WhenFull = "evict") -> None:
        """Open a folder, or make it.

        Args:
            folder: made when it is not there. max_bytes: the bound, which the folder remembers; None is the one it
                remembers, and 64 GiB for a new folder.
            when_full: "evict" makes room by removing what was not used for longest, "refuse" raises `CacheFull`.

        Raises:
            CacheError: the folder holds something else, or cannot be read or written.
            CacheFull: with "refuse", a folder that holds more than `max_bytes`; it stays as it is.
        """
        if max_bytes is not None and max_bytes < 0:
            raise CacheError(f"the size of a cache is a number of bytes from 0 on, got {max_bytes}")
        self.folder = Path(os.path.abspath(folder))
        self.when_full: WhenFull = when_full
        self.refused = 0  # entries that were larger than the whole bound
        with self._said():
            self.folder.mkdir(parents=True, exist_ok=True)
        remembered = self._read_marker()
        if remembered is None:
            with self._locked():
                remembered = self._read_marker()  # another process may have been faster
                if remembered is None:
                    self._claim(DEFAULT_MAX_BYTES if max_bytes is None else max_bytes)
        if max_bytes is not None and remembered is not None and remembered != max_bytes:
            with self._locked():
                self._change_bound(max_bytes)
        bound = remembered if max_bytes is None else max_bytes
        self.max_bytes = DEFAULT_MAX_BYTES if bound is None else bound

    def path(self, name: str) -> Path:
        """Where an entry is or would be. Raises `ValueError` for what is no name of an entry."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a cache entry; one is e.g. records/0a/{'0a' * 16}.json")
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether an entry is there."""
        return self.path(name).is_file()

    def read(self, name: str, *, touch: bool = True) -> bytes | None:
        """An entry's bytes, None when there is none. Raises `CacheError` when it cannot be read.

        `touch` marks it as used now.
        """
        path = self.path(name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CacheError(f"cannot read {path}: {error.strerror or error}") from None
        if touch:
            with contextlib.suppress(OSError):  # a cache that others own can be read; then they decide what is old
                os.utime(path)
        return data

    def write(self, name: str, data: bytes) -> bool:
        """Keep an entry; one that is there already stays. False when it is larger than the whole bound.

        Raises:
            CacheFull: see `when_full`. CacheError: the folder cannot be written.
        """
        path = self.path(name)
        if path.is_file():
            return True
        with self._said():
            partial = self._aside(data)
            try:
                with self._locked():
                    return self._take_in(path, partial, len(data))
            finally:
                partial.unlink(missing_ok=True)

    def entries(self, under: str = "") -> list[Entry]:
        """Every entry whose name begins with `under`, in no order."""
        found = []
        for root in ROOTS:
            for place, _, files in os.walk(self.folder / root):
                for file in files:
                    path = Path(place) / file
                    name = path.relative_to(self.folder).as_posix()
                    if not name.startswith(under) or not _NAME.fullmatch(name):
                        continue
                    with contextlib.suppress(FileNotFoundError):  # removed by another process meanwhile
                        stat = path.stat()
                        found.append(Entry(name, stat.st_size, stat.st_mtime))
        return found

    @property
    def option(self) -> str:
        """How a command is told of this folder."""
        return f"--dir {shlex.quote(str(self.folder))}"

    def size(self) -> int:
        """Bytes that the entries take."""
        return sum(entry.bytes for entry in self.entries())

    def remove(self, wanted: Callable[[Entry], bool]) -> tuple[int, int]:
        """Remove the entries that are wanted gone, and what dead processes left; returns their number and bytes."""
        with self._said(), self._locked():
            entries = self.entries()
            gone = [entry for entry in entries if wanted(entry)]
            for entry in gone:
                self.path(entry.name).unlink(missing_ok=True)
            self._sweep(0.0 if len(gone) == len(entries) else STALE_SECONDS)
            self._set_total(sum(e.bytes for e in entries) - sum(e.bytes for e in gone))
        return len(gone), sum(entry.bytes for entry in gone)

    # ---- under the lock --------------------------------------------------------------------------------------------

    def _change_bound(self, bound: int) -> None:
        if self.when_full == "refuse" and (held := self.size()) > bound:
            raise CacheFull(
                f"the cache {self.folder} holds {held} bytes, more than the {bound} it was now told to take at most; "
                f"give it more room, or make some with: closeup cache clear {self.option}"
            )
        self._write_marker(bound)
        self._evict(bound)

    def _take_in(self, path: Path, partial: Path, size: int) -> bool:
        if path.is_file():
            return True
        if size > self.max_bytes and self.when_full == "evict":
            self.refused += 1
            return False
        total = self._total()
        if total + size > self.max_bytes:
            if self.when_full == "refuse":
                raise CacheFull(
                    f"the cache {self.folder} is full: {total} of {self.max_bytes} bytes are taken, and the next entry "
                    f"has {size}; give it more room, or make some with: closeup cache clear {self.option}"
                )
            total = self._evict(min(self.max_bytes - size, self.max_bytes - self.max_bytes // SPARE))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._set_total(total + size)  # before the entry: a process that dies here counts too much, never too little
        partial.replace(path)
        return True

    def _evict(self, most: int) -> int:
        """Remove what was not used for longest until at most `most` bytes are taken; returns what is."""
        entries = sorted(self.entries(), key=lambda entry: entry.used)
        total = sum(entry.bytes for entry in entries)
        for entry in entries:
            if total <= most:
                break
            self.path(entry.name).unlink(missing_ok=True)
            total -= entry.bytes
        self._sweep(STALE_SECONDS)
        self._set_total(total)
        return total

    def _total(self) -> int:
        """What the entries take, as counted so far; counted anew when the count is missing or broken."""
        try:
            text = (self.folder / ".bytes").read_text(encoding="ascii")
        except (FileNotFoundError, UnicodeDecodeError):
            text = ""
        return int(text) if re.fullmatch(r"\d{20}\n", text) else self.size()

    def _set_total(self, total: int) -> None:
        (self.folder / ".bytes").write_text(f"{max(0, total):020d}\n", encoding="ascii")

    def _sweep(self, older: float) -> None:
        now = time.time()
        for partial in (self.folder / ".tmp").glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if now - partial.stat().st_mtime >= older:
                    partial.unlink()

    # ---- files and locks -------------------------------------------------------------------------------------------

    def _aside(self, data: bytes) -> Path:
        """Write a file that is on the disk when this returns."""
        place = self.folder / ".tmp"
        place.mkdir(exist_ok=True)
        partial = place / f"{os.getpid()}-{uuid.uuid4().hex}"
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return partial

    def _read_marker(self) -> int | None:
        """The bound that the folder remembers; None when it is new. Raises `CacheError`."""
        path = self.folder / MARKER
        try:
            marker = json.loads(path.read_text(encoding="utf-8"))
            version, bound = marker["format"], marker["max_bytes"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CacheError(f"{path} cannot be read ({error}); give another folder, or remove this one") from None
        if version != FORMAT or not isinstance(bound, int) or bound < 0:
            raise CacheError(
                f"{self.folder} is a cache in format {version!r}, and this closeup reads format {FORMAT}; "
                "give another folder"
            )
        return bound

    def _claim(self, bound: int) -> None:
        others = sorted(path.name for path in self.folder.iterdir() if path.name not in (".lock", ".tmp"))
        if others:
            (self.folder / ".lock").unlink(missing_ok=True)
            raise CacheError(
                f"{self.folder} is no feature cache: it holds {len(others)} other things, first {others[0]!r}; "
                "give a new or empty folder"
            )
        self._write_marker(bound)

    def _write_marker(self, bound: int) -> None:
        text = json.dumps({"what": "vision features of closeup", "format": FORMAT, "max_bytes": bound}) + "\n"
        partial = self._aside(text.encode())
        partial.replace(self.folder / MARKER)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock; other processes and threads wait. Raises `CacheError` where there are no locks."""
        with self._said():
            handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                yield
            finally:
                os.close(handle)

    @contextmanager
    def _said(self) -> Iterator[None]:
        """What the system refuses becomes a sentence that names the folder."""
        try:
            yield
        except OSError as error:
            raise CacheError(
                f"the cache {self.folder} cannot be used: {error.strerror or error}; "
                "give another folder, or free space and permissions there"
            ) from error
