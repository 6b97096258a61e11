"""`Uploads`: the temporary folder of what visitors upload, bounded in bytes and age, gone when the demo ends.

Gradio writes an upload into `incoming`; `take` moves it to a folder of its own under an unguessable name, out of reach
of Gradio's own file route. What nobody takes is swept.

Invariants
1. Nothing outside `incoming` is ever taken, links are never followed, and nothing but plain files.
2. All files together stay below `max_bytes` once `sweep` or `make_room` has run; a file that is in use is not removed.
3. `close` removes the whole folder; a demo that was killed leaves its folder to the next one, which removes it.
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

PREFIX, LOCK = "closeup-demo-", "lock"
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
            if found.parent != self.incoming:
                with contextlib.suppress(OSError):
                    found.parent.rmdir()  # Gradio's folder for this one file
            return target

    def give_back(self, path: Path) -> None:
        """Delete a taken upload; harmless when it is gone or is none."""
        if path.parent.parent == self.kept:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()

    def sweep(self) -> None:
        """Delete uploads that nobody took in time, and the oldest of them while all together take too much."""
        now = time.time()
        with self._lock:
            waiting = sorted((p for p in self.incoming.rglob("*") if p.is_file() or p.is_symlink()), key=_age)
            total = self.bytes(self.folder)
            for path in waiting:
                info = path.lstat()
                if now - info.st_mtime > self.keep_seconds or total > self.max_bytes:
                    path.unlink(missing_ok=True)
                    total -= info.st_size
            for folder in sorted((p for p in self.incoming.rglob("*") if p.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()  # only empty ones go

    def room(self) -> int:
        """Bytes that may still be uploaded."""
        return max(0, self.max_bytes - self.bytes(self.folder))

    def bytes(self, folder: Path | None = None) -> int:
        """Bytes of all files below a folder (default: all uploads)."""
        total = 0
        for parent, _, names in os.walk(folder or self.folder):
            for name in names:
                with contextlib.suppress(OSError):  # it went away meanwhile
                    total += os.lstat(Path(parent, name)).st_size
        return total

    def close(self) -> None:
        """Delete everything."""
        self._held.close()
        shutil.rmtree(self.folder, ignore_errors=True)

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
