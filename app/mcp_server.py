"""The protocol side of `closeup mcp`: `Calls` over stdio or streamable HTTP, with the `mcp` package's low-level server.

It takes the low-level server, because the tools' schemas come from the tools' classes: the package's `MCPServer` would
derive them a second time from functions, and say its own words about wrong arguments. Importing this module loads
neither `mcp` nor a web server; making a `VideoServer` does.

Invariants
1. The event loop only speaks the protocol: everything else runs in `Workers`.
2. A failure is a tool error with one sentence. A bug's traceback goes to standard error, never to a client.
3. Over HTTP a request is served only if its Host header, and its Origin header if it has one, name this server.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
import threading
from typing import TYPE_CHECKING, Any

from closeup import __version__
from closeup.app.background import Busy, TooSlow, Workers
from closeup.app.mcp_calls import AskVideo, Calls, Picture, Refused, Reply, Served
from closeup.extras import require
from closeup.tools.registry import DuplicateTool, UnknownTool

if TYPE_CHECKING:
    import mcp_types as types
    from mcp.server.context import ServerRequestContext
    from mcp.server.lowlevel import Server
    from starlette.applications import Starlette

    Context = ServerRequestContext[Any, Any]

log = logging.getLogger("closeup.mcp")
ENDPOINT = "/mcp"
MAX_SESSIONS = 256
MAX_BODY = 1 << 20
"""Bytes of a request; arguments are short."""
INSTRUCTIONS = (
    "Watch long videos: call video_info for the length, resample_frames to skim the whole film, then zoom_clip for the "
    "seconds that matter. Times are seconds from the video's start; every frame comes with its real time."
)


class VideoServer:
    """The server; `server` is the package's own, for any transport (`streamable_http_app`, `run`)."""

    def __init__(self, calls: Calls) -> None:
        """Raises `MissingExtra` without the `mcp` package."""
        require("mcp", "mcp.server.lowlevel")
        from mcp.server.lowlevel import Server

        self.calls = calls
        limits = calls.limits
        self._lists = Workers(2, limits.waiting)  # apart, so that a server whose calls all hang still says what it has
        self._looks = Workers(limits.together, limits.waiting)
        self._asks = Workers(1, limits.asks_waiting)
        self.server: Server[Any] = Server(
            "closeup",
            title="closeup: watch long videos",
            version=__version__,
            instructions=f"{INSTRUCTIONS} {calls.allowed.accepted()}",
            get_tool_input_schema=lambda _: None,  # asked before each call, for headers that no schema here names
            on_list_tools=self._list,
            on_call_tool=self._call,
        )

    async def stdio(self) -> None:
        """Serve standard input and output until the input ends; stray prints go to standard error."""
        from mcp.server.stdio import stdio_server

        async with stdio_server() as (read, write):
            await self.server.run(read, write, self.server.create_initialization_options())

    def http_app(self, names: tuple[str, ...]) -> Starlette:
        """The ASGI app; `names` are the values of the Host header that are served ("127.0.0.1:7861")."""
        from mcp.server.transport_security import TransportSecuritySettings

        return self.server.streamable_http_app(
            streamable_http_path=ENDPOINT,
            max_request_body_size=MAX_BODY,
            max_sessions=MAX_SESSIONS,
            transport_security=TransportSecuritySettings(
                enable_dns_rebinding_protection=True,
                allowed_hosts=list(names),
                allowed_origins=[f"{scheme}://{name}" for name in names for scheme in ("http", "https")],
            ),
        )

    async def http(self, listening: socket.socket, names: tuple[str, ...]) -> None:
        """Serve HTTP on a socket that listens already, until interrupted."""
        import uvicorn

        config = uvicorn.Config(self.http_app(names), log_config=None, access_log=False, timeout_graceful_shutdown=2)
        await uvicorn.Server(config).serve(sockets=[listening])

    async def _list(self, context: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        import mcp_types as types
        from mcp.shared.exceptions import MCPError

        limits = self.calls.limits
        try:
            tools = await self._lists.run(lambda _: self.calls.tools(), limits.seconds, "closeup-mcp-list")
        except (DuplicateTool, UnknownTool) as error:
            raise MCPError(code=types.INTERNAL_ERROR, message=str(error)) from None
        except (Busy, TooSlow):
            raise MCPError(code=types.INTERNAL_ERROR, message="the server is busy; ask again soon") from None
        return types.ListToolsResult(tools=[_described(tool) for tool in tools.values()])

    async def _call(self, context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        name, limits = params.name, self.calls.limits
        asks = name == AskVideo.name
        seconds = limits.ask_seconds if asks else limits.seconds
        workers = self._asks if asks else self._looks
        tell = _Progress(context)
        try:
            reply = await workers.run(
                lambda stop: self.calls.call(name, params.arguments or {}, stop=stop, tell=tell),
                seconds,
                f"closeup-mcp-{name[:40]}",
            )
            return _result(reply)
        except Refused as error:
            return _error(str(error))
        except Busy:
            return _error("the server is busy with other calls; call again in a few seconds")
        except TooSlow:
            return _error(f"{name[:60]} took longer than {seconds:g} s and was given up; ask for less")
        except Exception as error:
            log.exception("the tool %r failed", name[:60])
            return _error(f"internal error in {name[:60]} ({type(error).__name__}); the server's log has more")


class _Progress:
    """Passes what a call tells in its thread on to the client, as progress."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._told = 0
        self._lock = threading.Lock()

    def __call__(self, text: str) -> None:
        with self._lock:
            self._told += 1
            count = self._told
        try:
            asyncio.run_coroutine_threadsafe(self._pass_on(count, text), self._loop)
        except RuntimeError:  # the loop has ended, and the client with it
            return

    async def _pass_on(self, count: int, text: str) -> None:
        try:
            await self._context.session.report_progress(float(count), None, text)
        except Exception as error:  # a client that left gets no progress; its call ends by itself
            log.debug("no progress could be told: %r", error)


def _described(tool: Served) -> types.Tool:
    import mcp_types as types

    return types.Tool(
        name=tool.name,
        description=tool.description,
        input_schema=tool.parameters,
        annotations=types.ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
    )


def _result(reply: Reply) -> types.CallToolResult:
    import mcp_types as types

    content: list[types.ContentBlock] = []
    for part in reply.parts:
        if isinstance(part, Picture):
            data = base64.b64encode(part.jpeg).decode("ascii")
            meta = {"closeup/seconds": part.seconds}
            content.append(types.ImageContent(type="image", data=data, mime_type="image/jpeg", _meta=meta))
        else:
            content.append(types.TextContent(type="text", text=part))
    return types.CallToolResult(content=content, structured_content=reply.data)


def _error(sentence: str) -> types.CallToolResult:
    import mcp_types as types

    return types.CallToolResult(content=[types.TextContent(type="text", text=sentence)], is_error=True)
