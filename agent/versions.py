"""The versions of what shapes an episode, as recorded with every trajectory."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from closeup import __version__

PACKAGES = ("av", "jinja2", "numpy", "pydantic", "torch", "transformers")


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = [("closeup", __version__), ("python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            found.append((name, "not installed"))
    return tuple(found)


def versions() -> dict[str, str]:
    """Versions of closeup, Python and the packages that decode, render and run models; nothing is imported for it."""
    return dict(_versions())
