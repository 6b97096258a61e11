"""`closeup mcp`: the tools for other programs' models, over stdio or streamable HTTP (Model Context Protocol).

Everything that can be wrong with the command's arguments is said before anything is served. The `mcp` package is
imported when the command runs.

Invariants
1. Only files of the allowed folders and the bundled examples are read (`closeup.app.allow`).
2. In stdio mode standard output carries the protocol and nothing else.
3. Without --expose the server listens to this machine alone.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from closeup.app.allow import MAX_GB, Allowed
from closeup.app.errors import BadInput
from closeup.app.mcp_calls import DEFAULT_FRAMES, Calls, Limits
from closeup.extras import require

if TYPE_CHECKING:
    from closeup.app.mcp_ask import Asker

EXAMPLES = Path(__file__).resolve().parent / "examples"
TRANSPORTS = ("stdio", "http")
_ANYWHERE = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class McpOptions:
    """The command's arguments, as typed."""

    transport: str = "stdio"
    host: str = "127.0.0.1"
    port: int = 7861
    allow: tuple[Path, ...] = ()
    expose: bool = False
    host_names: tuple[str, ...] = ()
    model: str | None = None
    preset: str | None = None
    tools: str | None = None
    max_frames: int = DEFAULT_FRAMES
    max_gb: float = MAX_GB


def run(options: McpOptions) -> int:
    """Serve until the client leaves (stdio) or the program is interrupted (http); returns the exit code."""
    if options.transport not in TRANSPORTS:
        raise BadInput(f"there is no transport {options.transport!r}; accepted: {', '.join(TRANSPORTS)}")
    check_host(options)
    require("mcp", "mcp.server.lowlevel")  # before a model is loaded
    allowed = Allowed([*options.allow, EXAMPLES], max_gb=options.max_gb)
    calls = Calls(allowed, Limits(frames=options.max_frames), names=_names(options.tools))
    calls.tools()  # two tools of one name, or one that is not there, are said before anything is served
    asker = _asker(options)
    if asker is not None:
        calls = replace(calls, asker=asker)
        calls.tools()

    import anyio

    from closeup.app.mcp_server import ENDPOINT, VideoServer

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="closeup mcp: %(message)s")
    server = VideoServer(calls)
    if options.transport == "stdio":
        anyio.run(server.stdio)
        return 0
    with _listen(options.host, options.port) as listening:
        port: int = listening.getsockname()[1]
        sys.stderr.write(
            f"closeup mcp: serving http://{_bracketed(options.host)}:{port}{ENDPOINT}; stop it with Ctrl-C\n"
        )
        sys.stderr.flush()
        anyio.run(server.http, listening, served_names(options, port))
    return 0


def check_host(options: McpOptions) -> None:
    """Refuse to listen beyond this machine unless it was asked for in so many words. Raises `BadInput`."""
    if options.transport == "stdio" or is_loopback(options.host):
        return
    if not options.expose:
        raise BadInput(
            f"--host {options.host} lets other machines in, and there is no password: whoever reaches the port can "
            "watch every video of the allowed folders. If that is what you want, add --expose"
        )
    if options.host in _ANYWHERE and not options.host_names:
        raise BadInput(
            f"--host {options.host} does not say by which name clients reach this machine, and requests by other names "
            "are refused; add --host-name NAME (repeat for several)"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def served_names(options: McpOptions, port: int) -> tuple[str, ...]:
    """The Host headers that are served: this machine's own, the one listened on, and those given by --host-name."""
    names = [f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")]
    if options.host not in _ANYWHERE:
        names.append(f"{_bracketed(options.host)}:{port}")
    for name in options.host_names:
        names += [f"{_bracketed(name)}:{port}", _bracketed(name)]  # without a port: behind a proxy on 80 or 443
    return tuple(dict.fromkeys(names))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    if text.strip() == "none":
        return ()
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _asker(options: McpOptions) -> Asker | None:
    if options.model is None:
        if options.preset is not None:
            raise BadInput("--preset says how a model is asked; give --model too")
        return None
    from closeup.app.mcp_ask import Asker

    return Asker(options.model, options.preset)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens already, so that a port in use is a sentence and not a log line."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, proto)
    except OSError as error:
        raise BadInput(f"--host {host} is no address of this machine: {error.strerror}; try 127.0.0.1") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise BadInput(
            f"cannot listen on {host}, port {port}: {error.strerror}; is another server running there? Give another "
            "--port, or 0 for any that is free"
        ) from None
    return listening
