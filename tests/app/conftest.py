from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from closeup.app.cli import _run
from closeup.app.errors import guarded

EXAMPLES = Path(__file__).resolve().parents[2] / "app" / "examples"


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ran]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run `closeup ARGS` in this process."""

    def run(*args: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["closeup", *map(str, args)])
        monkeypatch.delenv("CLOSEUP_TRACEBACK", raising=False)
        capsys.readouterr()
        code = guarded(_run)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def examples() -> Path:
    """The bundled examples."""
    return EXAMPLES
