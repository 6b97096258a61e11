from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from closeup.app.cli import _run
from closeup.app.errors import guarded
from closeup.tools import Tool, ToolArgs, ToolContext, ToolResult, register_tool
from closeup.tools.registry import unregister_tool

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


@pytest.fixture
def plugin() -> Iterator[Callable[[type[Tool[Any]]], type[Tool[Any]]]]:
    """Register tools of this test, and take them out again."""
    added: list[str] = []

    def add(tool: type[Tool[Any]]) -> type[Tool[Any]]:
        added.append(tool.name)
        return register_tool(tool)

    yield add
    for name in added:
        unregister_tool(name)


class Gate:
    """A tool that waits until it is let go, and says how many calls came in."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.came = threading.Semaphore(0)
        gate = self

        class WaitsArgs(ToolArgs):
            """None."""

        class Waits(Tool[WaitsArgs]):
            """Wait."""

            name = "waits"

            def run(self, args: WaitsArgs, context: ToolContext) -> ToolResult:
                gate.came.release()
                assert gate.go.wait(60)
                return ToolResult(text="waited")

        self.tool: type[Tool[Any]] = Waits

    async def entered(self) -> None:
        """Until one more call has come in."""
        from anyio import to_thread

        assert await to_thread.run_sync(lambda: self.came.acquire(timeout=30))


@pytest.fixture
def gate(plugin: Any) -> Iterator[Gate]:
    """The tool `waits`, whose calls end when the gate's `go` is set."""
    found = Gate()
    plugin(found.tool)
    yield found
    found.go.set()
