from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture
def browser() -> Iterator[Any]:
    """Debian's chromium, driven by Playwright. Where one is missing the test is skipped, but under CI it fails."""
    missing = ""
    if importlib.util.find_spec("playwright") is None:
        missing = "playwright is not installed (pip install 'closeup[dev]')"
    elif importlib.util.find_spec("axe_playwright_python") is None:
        missing = "axe-playwright-python is not installed (pip install 'closeup[dev]')"
    elif not CHROMIUM.is_file():
        missing = f"{CHROMIUM} is not there (apt install chromium, or make test-browser as root)"
    if missing and os.environ.get("CI"):
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=str(CHROMIUM), args=arguments, timeout=120_000)
        yield chromium
        chromium.close()
