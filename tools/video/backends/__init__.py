"""Decoders behind `Video`, chosen by name: `pyav` (default), `decord` and `torchcodec` (optional packages).

A backend returns FFmpeg's frame or raises `UnsupportedByBackend` with the reason; nothing is ever re-routed to another.
"""

from __future__ import annotations

import importlib
from typing import cast

from closeup.tools.video.backends.base import Backend
from closeup.tools.video.errors import BackendMissing

NAMES = ("pyav", "decord", "torchcodec")


def load(name: str) -> Backend:
    """The backend of that name.

    Raises:
        ValueError: an unknown name. BackendMissing: its package is not installed or does not load here.
    """
    if name not in NAMES:
        raise ValueError(f"unknown video backend {name!r}; known: {', '.join(NAMES)}")
    try:
        module = importlib.import_module(f"closeup.tools.video.backends._{name}")
        return cast(Backend, module.backend())
    except (ImportError, OSError, RuntimeError) as error:
        extra = "" if name == "pyav" else f"[{name}]"
        raise BackendMissing(
            f'the {name} backend cannot be used: {error}; install it with `pip install "closeup{extra}"`, '
            "or leave backend at its default, pyav"
        ) from error
