"""`Uploads`: the temporary folder of what visitors upload, bounded in bytes and age, gone when the demo ends.

Gradio writes an upload into `incoming`, under the hash of its content: two visitors with the same film would share one
file. `hand_out` gives each a name of its own before its browser learns any; `take` then moves that to a folder out of
reach of Gradio's own file route. What nobody takes is swept.

Invariants
1. Nothing outside `incoming` is ever taken, links are never followed, and nothing but plain files.
2. All files together stay below `max_bytes` once `sweep` has run; a file that is in use, or still being written (it
   lies in `incoming` itself), is not removed to make room.
3. No visitor's upload depends on, or tells of, what another one uploads.
4. `close` removes the whole folder; a demo that was killed leaves its folder to the next one, which removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
import threading
import time
from pathlib import Path

from closeup.app.errors import BadInput
from closeup.app.settings import MB

PREFIX, LOCK, HANDED = "closeup-demo-", "lock", "of-"
MAX_NAME = 80
"""Bytes of an upload's name that are kept."""


class Uploads:
    """A temporary folder of uploads.

    Args:
        max_bytes: of all uploads together. max_file: of one. keep_seconds: how long an untaken upload is kept.

    Attributes:
        incoming: where Gradio puts uploads (its GRADIO_TEMP_DIR).
    """

    def __init__(self, max_bytes: int, max_file: int, keep_seconds: float) -> None:
        _remove_abandoned()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
        self._held = (self.folder / LOCK).open("w")  # the lock ends with the process, however that ends
        fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.incoming, self.kept = self.folder / "incoming", self.folder / "kept"
        self.incoming.mkdir(mode=0o700)
        self.kept.mkdir(mode=0o700)
        self.max_bytes, self.max_file, self.keep_seconds = max_bytes, max_file, keep_seconds
        self._lock = threading.Lock()
        self._shared: set[Path] = set()

    def hand_out(self, path: str) -> str:
        """A name for an upload that nobody else has; the shared one stays until `tidy`. Raises `BadInput`."""
        with self._lock:
            found = self._incoming(path)
            target = self.incoming / f"{HANDED}{secrets.token_hex(16)}" / found.name
            target.parent.mkdir(mode=0o700)
            try:
                os.link(found, target)
            except OSError:  # a file system without hard links
                shutil.copyfile(found, target)
            self._shared.add(found)
            return str(target)

    def tidy(self) -> None:
        """Drop shared names and what was broken off; call it only when no upload is on its way: it may share a name."""
        with self._lock:
            while self._shared:
                self._remove(self._shared.pop())
            for path in self.incoming.iterdir():
                if not path.is_dir() or path.is_symlink():
                    path.unlink(missing_ok=True)

    def take(self, path: str) -> Path:
        """Move an upload out of `incoming`; returns where it is now.

        Raises:
            BadInput: the path is no upload, is larger than allowed, or does not fit any more.
        """
        with self._lock:
            found = self._incoming(path)
            size = found.stat().st_size
            if size > self.max_file:
                found.unlink()
                raise BadInput(
                    f"the upload has {size / MB:.1f} MB and at most {self.max_file / MB:g} MB are accepted; cut the"
                    " video, or start the demo with a larger --max-upload-mb"
                )
            if self.bytes(self.kept) + size > self.max_bytes:
                found.unlink()
                raise BadInput("the demo's disk space for uploads is full; try again in a few minutes")
            target = self.kept / secrets.token_hex(16) / plain_name(found.name)
            target.parent.mkdir(mode=0o700)
            found.replace(target)
            self._remove(found)
            return target

    def give_back(self, path: Path) -> None:
        """Delete a taken upload; harmless when it is gone or is none."""
        if path.parent.parent == self.kept:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()

    def sweep(self, need: int = 0, coming: int = 0) -> None:
        """Delete uploads that nobody took in time, and the oldest of them until `need` more bytes fit (see `room`)."""
        now = time.time()
        with self._lock:
            waiting = sorted((p for p in self.incoming.rglob("*") if p.is_file() or p.is_symlink()), key=_age)
            for path in waiting:
                with contextlib.suppress(OSError):  # Gradio moved it meanwhile
                    old = now - path.lstat().st_mtime > self.keep_seconds
                    whole = path.parent != self.incoming
                    if old or (whole and self._taken(coming) + need > self.max_bytes):
                        path.unlink()
            for folder in sorted((p for p in self.incoming.rglob("*") if p.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()  # only empty ones go

    def room(self, coming: int = 0) -> int:
        """Bytes that may still be uploaded, when uploads of `coming` bytes are on their way already."""
        return max(0, self.max_bytes - self._taken(coming))

    def _taken(self, coming: int) -> int:
        with os.scandir(self.incoming) as entries:
            here = sum(e.stat(follow_symlinks=False).st_size for e in entries if e.is_file(follow_symlinks=False))
        return self.bytes(self.folder) + max(0, coming - here)

    def bytes(self, folder: Path | None = None) -> int:
        """Bytes of all files below a folder (default: all uploads), one with several names counted once."""
        sizes: dict[tuple[int, int], int] = {}
        for parent, _, names in os.walk(folder or self.folder):
            for name in names:
                with contextlib.suppress(OSError):  # it went away meanwhile
                    info = os.lstat(Path(parent, name))
                    sizes[info.st_dev, info.st_ino] = info.st_size
        return sum(sizes.values())

    def close(self) -> None:
        """Delete everything."""
        self._held.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove(self, path: Path) -> None:
        """Delete a file of `incoming`, and the folder that was made for it alone."""
        path.unlink(missing_ok=True)
        if path.parent != self.incoming:
            with contextlib.suppress(OSError):
                path.parent.rmdir()

    def _incoming(self, path: str) -> Path:
        fault = BadInput("this is no upload of yours; upload the video again")
        try:
            given = Path(path)
            real = given.resolve(strict=True)
            info = os.lstat(given)
        except (OSError, ValueError, RuntimeError):
            raise fault from None
        if not real.is_relative_to(self.incoming) or not stat.S_ISREG(info.st_mode):
            raise fault
        return real


def _remove_abandoned() -> None:
    """Delete the folders of demos that were killed: those of this user whose lock nobody holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            if folder.is_symlink() or folder.lstat().st_uid != os.getuid():
                continue
            with (folder / LOCK).open("r") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # it is held, was made this moment, or is gone
            continue
        shutil.rmtree(folder, ignore_errors=True)


def plain_name(name: str) -> str:
    """A file name to show and to store: letters, digits and a few marks, its end kept, never empty or hidden."""
    plain = "".join(c if c.isalnum() or c in "-_.() " else "_" for c in name).strip(". ")
    while len(plain.encode()) > MAX_NAME:
        plain = plain[1:]
    return plain.strip(". ") or "video"


def _age(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0
