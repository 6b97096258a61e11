"""Optional parts: a missing one is named together with the line that installs it.

`require("decord", "decord")` is the one way this package imports something that a plain `pip install closeup` does not
bring. Torch-free, so every room may use it.

Invariants
1. Only the absence of the wanted module itself becomes `MissingExtra`. A module that is there but fails to load (a
   library of the system is missing, a version does not fit) raises what it raised: installing it again would not help.
2. The extras named here are those of `pyproject.toml` (a test compares them).
"""

from __future__ import annotations

import importlib
from types import ModuleType

EXTRAS = ("decord", "torchcodec", "train", "demo", "vllm", "vllm-cpu", "openai", "mcp", "repair", "dev")


class MissingExtra(ImportError):
    """An optional part is not installed. The message holds the exact line that installs it."""

    def __init__(self, extra: str, module: str) -> None:
        super().__init__(
            f"this needs the module {module!r}, which is not installed; install it with: {install_line(extra)}",
            name=module,
        )
        self.extra = extra


def install_line(extra: str) -> str:
    """The command that installs `extra`, one of `EXTRAS`; raises ValueError for any other name."""
    if extra not in EXTRAS:
        raise ValueError(f"there is no extra {extra!r}; there are: {', '.join(EXTRAS)}")
    return f'pip install "closeup[{extra}]"'


def require(extra: str, module: str) -> ModuleType:
    """Import and return `module` (dotted name), which the extra `extra` installs.

    Raises `MissingExtra` (an ImportError) if the module or the package it lives in is not installed, ValueError if
    there is no such extra, and whatever the module itself raises while it loads.
    """
    install_line(extra)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            raise MissingExtra(extra, module) from None
        raise
