"""Which paths are read at all, and what names their content.

Only plain files of this machine are opened. Addresses (http://, rtsp://) and FFmpeg's own protocols (concat:, pipe:,
subfile,...) are refused before FFmpeg sees them; pipes, devices and folders are refused before anything is opened, so
that nothing can hang; FFmpeg then gets an absolute path, the `file` protocol and a list of self-contained formats, so
that a playlist cannot make it read another file.

Invariants
1. `content_identity` reads at most 3 MiB whatever the file's size; it depends on the bytes only, not on name or date.
   It covers every byte of a file of at most `WHOLE` bytes; two larger files may share one, so it never decides alone
   whose pixels something is (`Probe.content` in this process, `content_digest` beyond it).
2. Two `FileStamp`s are equal only while the file has not been replaced or rewritten in between (as far as its size,
   inode and modification time tell).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from closeup.tools.video.errors import EmptyFile, FileChanged, NotAFile, VideoError, VideoNotFound

BLOCK = 1 << 20  # bytes read at the head, the middle and the tail for the content identity
WHOLE = 3 * BLOCK  # bytes up to which a file is read whole for its content identity
_ADDRESS = re.compile(
    r"[a-zA-Z][a-zA-Z0-9+.\-]*://|(?:https?|ftps?|rtsp|rtmp|s3|gs):/"
)  # `Path` makes one slash of two
_PROTOCOL = re.compile(
    r"(async|bluray|cache|concat|concatf|crypto|data|fd|file|hls|md5|pipe|subfile|tee)[:,]", re.IGNORECASE
)


@dataclass(frozen=True)
class FileStamp:
    """Where a file is and which version of it: absolute path, device, inode, size in bytes, modification time in ns."""

    path: str
    device: int
    inode: int
    size: int
    modified_ns: int


def stamp(path: str | os.PathLike[str]) -> FileStamp:
    """Check that `path` is a readable, non-empty plain file and return its stamp.

    Raises:
        NotAFile: an address, an FFmpeg protocol, a folder, a pipe, a device or a socket.
        VideoNotFound: nothing is there. EmptyFile: no bytes. VideoError: no permission to read it.
    """
    text = os.fsdecode(path)
    if "\0" in text:
        raise NotAFile("a path cannot contain a zero byte; give the path of a local video file")
    try:
        place = Path(text).expanduser()
        found = place.stat()
    except (FileNotFoundError, NotADirectoryError):
        if _ADDRESS.match(text) or _PROTOCOL.match(text):
            raise NotAFile(f"{text!r} is an address, and only local files are opened; download it first") from None
        raise VideoNotFound(
            f"there is no file at {text!r}; check the path (relative paths start at {Path.cwd()})"
        ) from None
    except RuntimeError as error:  # "~name" of a user that does not exist
        raise VideoNotFound(f"there is no file at {text!r}: {error}") from None
    except OSError as error:
        raise VideoError(f"{text!r} cannot be looked at: {error.strerror}") from None
    kind = kind_of(found.st_mode)
    if kind:
        raise NotAFile(f"{text!r} is {kind}, not a plain file; give the path of a video file")
    if found.st_size == 0:
        raise EmptyFile(f"{text!r} is empty (0 bytes); the download or recording may have failed")
    if not os.access(place, os.R_OK):
        raise VideoError(f"{text!r} cannot be read: no permission; try `chmod u+r` on it")
    return FileStamp(str(place.resolve()), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def verify(expected: FileStamp) -> None:
    """Raise `FileChanged` (or what `stamp` raises) unless the file is still the one that was stamped."""
    if stamp(expected.path) != expected:
        raise FileChanged(f"{expected.path!r} was rewritten after it was opened; open it again with Video(path)")


def content_identity(path: str, size: int) -> str:
    """32 hexadecimal digits naming the content: SHA-256 over the size and the head, middle and tail blocks of 1 MiB.

    A file of up to 3 MiB is read whole. Larger files that agree in size and in all three blocks share an identity: an
    edit elsewhere that keeps the length is not seen.
    """
    digest = hashlib.sha256(f"closeup-video-1:{size}:".encode())
    with Path(path).open("rb") as file:
        if size <= WHOLE:
            digest.update(file.read())
        else:
            for offset in (0, (size - BLOCK) // 2, size - BLOCK):
                file.seek(offset)
                digest.update(file.read(BLOCK))
    return digest.hexdigest()[:32]


def content_digest(expected: FileStamp) -> str:
    """64 hexadecimal digits: SHA-256 over every byte of the file, which is read from end to end.

    Raises `FileChanged` (or what `stamp` raises) unless the file is the one that was stamped, before and after.
    """
    verify(expected)
    with Path(expected.path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    verify(expected)
    return digest


def kind_of(mode: int) -> str | None:
    """What a thing that is no plain file is called; None for a plain file."""
    for check, name in (
        (stat.S_ISREG, None),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISLNK, "a link"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if check(mode):
            return name
    return "something special"
