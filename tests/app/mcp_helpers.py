"""What the tests of `closeup mcp` share: servers, clients, and how a reply is read. Not a test module."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from mcp import StdioServerParameters

from closeup.app import mcp as command
from closeup.app.allow import Allowed
from closeup.app.mcp import EXAMPLES, McpOptions, served_names
from closeup.app.mcp_calls import Calls
from closeup.app.mcp_server import VideoServer
from closeup.tools import ToolArgs

MODES = ("legacy", "2026-07-28")


FILM = "digit.mp4"


PLUGIN = '''
import os, sys, time
from closeup.tools import Tool, ToolArgs, ToolResult, register_tool

@register_tool
class Noisy(Tool[ToolArgs]):
    """Print where only the protocol may be."""

    def run(self, args, context):
        print("stray print")
        os.write(1, b"stray write\\n")
        os.system("echo stray child")
        return ToolResult(text="quiet")

@register_tool
class Hangs(Tool[ToolArgs]):
    """Never end."""

    def run(self, args, context):
        time.sleep(600)

from closeup.app.cli import main
main()
'''


def stdio(*args: str | Path, plugin: bool = False) -> StdioServerParameters:
    """`closeup mcp ARGS` as a client would start it."""
    code = PLUGIN if plugin else "from closeup.app.cli import main; main()"
    return StdioServerParameters(command=sys.executable, args=["-c", code, "mcp", *map(str, args)], env=environment())


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(work: Callable[[], Awaitable[None]], seconds: float = 120) -> None:
    """Run a client with a limit: a server that hangs is a failure."""

    async def limited() -> None:
        with anyio.fail_after(seconds):
            await work()

    anyio.run(limited)


@asynccontextmanager
async def http(calls: Calls) -> AsyncIterator[str]:
    """An HTTP server of these calls in this process; gives its address."""
    server = VideoServer(calls)
    with command._listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.http, listening, served_names(McpOptions(), port))
            try:
                yield f"http://127.0.0.1:{port}/mcp"
            finally:
                tasks.cancel_scope.cancel()


def calls(*folders: Path, **more: Any) -> Calls:
    return Calls(Allowed([*folders, EXAMPLES]), **more)


def said(result: Any) -> str:
    """The sentence of a tool error."""
    assert result.is_error, result
    (content,) = result.content
    assert "Traceback" not in content.text and "\n" not in content.text
    return str(content.text)


def text_of(result: Any) -> str:
    assert not result.is_error, result
    return str(result.content[0].text)


class NoArgs(ToolArgs):
    """None."""
