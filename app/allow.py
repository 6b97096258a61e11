"""`Allowed`: the one place that decides which local files a question, a model or a client may have read.

A name is followed one part at a time and every link is read before it is followed. What lies outside the allowed
folders is therefore not only refused: it is never looked at, so neither the sentence nor the time it takes tells
whether something is there.

Invariants
1. `path` gives back a plain file that lies, with every link resolved, in an allowed folder or is an allowed file; the
   path it gives back holds no link and no "..".
2. Nothing is opened, so no pipe, socket or device can make it wait. Nothing outside is looked at.
3. Names are taken literally: no percent-decoding, no Unicode normalisation, no "~", no wildcard, and never an address.
4. A relative name is looked for in the allowed folders, in their order, never in the process's working folder.
5. An allowed folder that was swapped for a link since the start allows nothing.

What a path cannot hold fast: who may rename things inside an allowed folder while a file is being opened can exchange
that file (a hard link there to a file elsewhere counts as being there). Allow only folders whose writers are trusted.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from closeup.app.errors import BadInput
from closeup.tools.video.localfile import kind_of

MAX_PATH = 4096
"""Bytes of a name; Linux accepts no longer path."""
MAX_LINKS = 40
"""Links followed for one name, as many as Linux follows."""
MAX_GB = 64.0
"""Default size limit of a file, in GB (10^9 bytes)."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")

PathLike = str | os.PathLike[str]


class NotAllowed(BadInput):
    """A file that may not be read, or is not there; the message says what is accepted."""


class Allowed:
    """Which local files may be read.

    Attributes:
        folders: the allowed folders, links resolved, in the order given.
        files: single files that are allowed besides, links resolved.
        max_gb: largest file, in GB (10^9 bytes).
    """

    def __init__(
        self,
        folders: Iterable[PathLike],
        files: Iterable[PathLike] = (),
        *,
        max_gb: float = MAX_GB,
        accepted: str | None = None,
    ) -> None:
        """Fix what is allowed; relative folders and files are taken from the working folder, once, now.

        Args:
            folders: everything below them is allowed. files: allowed besides, by path or by bare name.
            max_gb: largest file, in GB (10^9 bytes).
            accepted: what a refusal names as accepted; default: the folders and files. Give it where those who read
                the refusal should not learn this machine's paths, e.g. "an uploaded video or an example".

        Raises `BadInput` when a folder or file is not there, or is something else.
        """
        if not max_gb > 0:
            raise BadInput(f"the size limit of a file is more than 0 GB, got {max_gb:g}")
        self.max_gb = max_gb
        folder_pairs = [_root(folder, folder=True) for folder in folders]
        file_pairs = [_root(file, folder=False) for file in files]
        self.folders = tuple(dict.fromkeys(real for _, real in folder_pairs))
        self.files = tuple(dict.fromkeys(real for _, real in file_pairs))
        # Both spellings count: a folder that was given by way of a link is still called by that name.
        self._spelled = {str(spelled): real for spelled, real in (*folder_pairs, *file_pairs)}
        self._spelled |= {str(real): real for _, real in (*folder_pairs, *file_pairs)}
        self._accepted = accepted

    def path(self, text: str) -> Path:
        """The file that `text` names, absolute, with every link resolved.

        Raises `NotAllowed`, whose sentence is the same for everything outside whether it exists or not.
        """
        shown = _shown(text)
        parts = self._parts(text, shown)
        if text.startswith("/"):
            starts = [("/", parts)]
        else:
            starts = [(str(folder), parts) for folder in self.folders]
            starts += [(str(file), []) for file in self.files if [file.name] == parts]
        fault = f"{shown} is not a file that may be read"
        for start, rest in starts:
            found = self._follow(start, rest)
            if isinstance(found, Path):
                return self._checked(found, shown)
            fault = f"{shown} {found}"
            if found != _NOTHING:
                break
        raise NotAllowed(f"{fault}. {self.accepted()}")

    def accepted(self) -> str:
        """A sentence that says what is accepted."""
        if self._accepted is not None:
            return f"Accepted: {self._accepted}."
        places = [f"a file in {folder}" for folder in self.folders] + [str(file) for file in self.files]
        if not places:
            return "No folder is allowed, so no file is accepted."
        more = f" or {len(places) - 8} other places" if len(places) > 8 else ""
        return f"Accepted: {', or '.join(places[:8])}{more}; not larger than {self.max_gb:g} GB."

    def _parts(self, text: object, shown: str) -> list[str]:
        """The parts of a name; refuses what is no plain name before anything is looked at."""
        if not isinstance(text, str):
            raise NotAllowed(f"a file's name is text, got {type(text).__name__}. {self.accepted()}")
        fault = ""
        if not text.strip():
            fault = "the file's name is empty"
        elif "\0" in text:
            fault = f"{shown} holds a zero byte, which no file's name does"
        elif len(text.encode("utf-8", "surrogatepass")) > MAX_PATH:
            fault = f"{shown} is longer than the {MAX_PATH} bytes that a path may have"
        elif any("\ud800" <= letter <= "\udfff" for letter in text):
            fault = f"{shown} is not valid text (UTF-8)"
        elif _SCHEME.match(text) or text.startswith(("//", "\\\\")):
            fault = f"{shown} is an address, and only files of this machine are read; give a plain path"
        elif text.startswith("~"):
            fault = f"{shown} begins with '~', which is not expanded; give the path in full"
        elif ".." in text.split("/"):
            fault = f"{shown} holds '..'; give the path without it"
        if fault:
            raise NotAllowed(f"{fault}. {self.accepted()}")
        return [part for part in text.split("/") if part not in ("", ".")]

    def _follow(self, start: str, parts: list[str]) -> Path | str:
        """Walk from `start` along `parts`, links included; the real path, or what is wrong with it.

        `here` is free of links wherever it lies inside. Outside it is only spelled, never looked at, and may come to
        spell an allowed place again.
        """
        here, links = self._spelled.get(start, Path(start)), 0
        todo = list(reversed(parts))
        unseen = False  # whether `here` holds parts that were spelled without being looked at
        while todo:
            part = todo.pop()
            if part == "..":  # only out of a link
                if unseen:
                    return _OUTSIDE
                here = here.parent
                continue
            here = here / part
            root = self._spelled.get(str(here))
            if root is not None:
                here, unseen = root, False
                continue
            if not self._inside(here):
                unseen = True
                continue
            try:
                if not stat.S_ISLNK(os.lstat(here).st_mode):
                    continue
                target = os.readlink(here)  # the link's own text; Path would tidy it
            except OSError:
                return _NOTHING
            links += 1
            if links > MAX_LINKS:
                return "is a link that leads to ever more links"
            here = Path("/") if target.startswith("/") else here.parent
            unseen = False
            todo += [part for part in reversed(target.split("/")) if part not in ("", ".")]
        if unseen or not self._inside(here):
            return _OUTSIDE
        return here

    def _inside(self, place: Path) -> bool:
        if place in self.files:
            return _is_itself(place.parent)
        return any(place.is_relative_to(folder) and _is_itself(folder) for folder in self.folders)

    def _checked(self, place: Path, shown: str) -> Path:
        """`place` if it is a plain file within the size limit that this process can read."""
        try:
            found = os.lstat(place)
        except OSError:
            raise NotAllowed(f"{shown} {_NOTHING}. {self.accepted()}") from None
        fault = ""
        if kind := kind_of(found.st_mode):
            fault = f"{shown} is {kind}, not a file"
        elif found.st_size == 0:  # the kernel's own endless files say so too
            fault = f"{shown} is empty (0 bytes)"
        elif found.st_size > self.max_gb * 1e9:
            fault = f"{shown} has {found.st_size / 1e9:.3g} GB, more than the {self.max_gb:g} GB that are accepted"
        elif not os.access(place, os.R_OK):
            fault = f"{shown} cannot be read: this program has no permission"
        if fault:
            raise NotAllowed(f"{fault}. {self.accepted()}")
        return place


_OUTSIDE = "is not in a folder that may be read"
_NOTHING = "is not there"


def _root(given: PathLike, *, folder: bool) -> tuple[Path, Path]:
    """An allowed folder or file as it was spelled (absolute, without ".."), and as it really is."""
    what = "folder" if folder else "file"
    text = os.fspath(given)
    spelled = Path(os.path.normpath(Path(text).expanduser().absolute()))
    try:
        if "\0" in text:
            raise ValueError
        real = Path(text).expanduser().resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        raise BadInput(f"there is no {what} {_shown(text)} to allow; give one that exists") from None
    if not (real.is_dir() if folder else real.is_file()):
        raise BadInput(f"{_shown(text)} is not a {what}, so it cannot be allowed; give a {what}")
    return spelled, real


def _is_itself(folder: Path) -> bool:
    """Whether a folder that had no link in its path at the start still has none."""
    try:
        return os.path.realpath(folder, strict=True) == str(folder)
    except OSError:
        return False


def _shown(text: object) -> str:
    """A name for a sentence: quoted, control characters escaped, at most 80 characters."""
    broken = isinstance(text, str) and any("\ud800" <= letter <= "\udfff" for letter in text)
    shown = ascii(text) if broken else repr(text)
    return shown if len(shown) <= 80 else f"{shown[:60]}...{shown[-17:]}"
