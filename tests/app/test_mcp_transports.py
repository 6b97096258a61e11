"""`closeup mcp` with the mcp package's own client, over both transports and both eras of the protocol."""

from __future__ import annotations

import base64
import io
import json
import os
import runpy
import subprocess
import time
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from mcp import Client
from PIL import Image
from pydantic import Field

from closeup.app.mcp import EXAMPLES
from closeup.tools import Tool, ToolArgs, ToolContext, ToolResult, Video
from closeup.tools.zoom_clip import ZoomClip

_helpers = runpy.run_path(str(Path(__file__).with_name("mcp_helpers.py")))
MODES, FILM, stdio, environment = _helpers["MODES"], _helpers["FILM"], _helpers["stdio"], _helpers["environment"]
run, http, calls, said = _helpers["run"], _helpers["http"], _helpers["calls"], _helpers["said"]
text_of = _helpers["text_of"]


def check_frames(result: Any, video: Path) -> None:
    """The pictures of a reply are the frames of the film at the times that are written beside them."""
    assert not result.is_error, result
    header, *rest = result.content
    assert header.type == "text" and "16 frames of 112x112 pixels from 24 to 27 s of digit.mp4" in header.text
    assert len(rest) == 32
    times = [part.meta["closeup/seconds"] for part in rest[1::2]]
    assert [part.text for part in rest[::2]] == [f"{time:.2f}".rstrip("0").rstrip(".") + " s" for time in times]
    assert times == sorted(times) and times[0] == 24.0 and times[-1] < 27
    with Video(video) as opened:
        frames = opened.frames(times)
    assert frames.times.tolist() == times
    for part, pixels in zip(rest[1::2], frames.pixels, strict=True):
        assert part.type == "image" and part.mime_type == "image/jpeg"
        with Image.open(io.BytesIO(base64.b64decode(part.data, validate=True))) as picture:
            shown = np.asarray(picture.convert("RGB"), dtype=np.int16)
        assert shown.shape == (112, 112, 3) and np.abs(shown - pixels).mean() < 6  # JPEG of noise


async def conversation(client: Client, folder: Path) -> None:
    """What every transport must do."""
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert list(tools)[:3] == ["video_info", "zoom_clip", "resample_frames"] and "answer" not in tools
    assert tools["zoom_clip"].description == ZoomClip.description()
    facts = json.loads(text_of(await client.call_tool("video_info", {"video": FILM})))
    assert (facts["duration"], facts["width"], facts["fps"], facts["codec"]) == (76.0, 112, 10.0, "h264")
    check_frames(await client.call_tool("zoom_clip", {"video": FILM, "start": 24, "end": 27}), EXAMPLES / FILM)
    looked = await client.call_tool("resample_frames", {"video": str(EXAMPLES / FILM), "num_frames": 5})
    assert [part.text for part in looked.content[1::2]] == ["0 s", "19 s", "38 s", "57 s", "75.9 s"]

    for path in ("/etc/passwd", "../cli.py", "http://127.0.0.1/a.mp4", "file:///etc/passwd", "pipe.mp4", "out.mp4"):
        sentence = said(await client.call_tool("zoom_clip", {"video": path, "start": 0, "end": 1}))
        assert f"Accepted: a file in {folder}" in sentence, sentence
    assert "not a video" in said(await client.call_tool("video_info", {"video": "text.mp4"}))
    for arguments, word in (
        ({}, "video is missing"),
        ({"video": 0, "start": 0, "end": 1}, "path of a file as text, got int"),
        ({"video": FILM}, "start is missing; end is missing"),
        ({"video": FILM, "start": "0", "end": 1}, "start: input should be a valid number (given '0')"),
        ({"video": FILM, "start": 0, "end": 1, "zoom": 2}, "there is no argument zoom"),
        ({"video": FILM, "start": 3, "end": 1}, "must end after it starts"),
        ({"video": FILM, "start": 0, "end": 70}, "too long. A close look may last 0.2 to 38 s"),
        ({"video": FILM, "start": 1e308, "end": 1e309}, "end: "),
        ({"video": FILM, "start": {"a": [1]}, "end": None}, "start: "),
    ):
        assert word in said(await client.call_tool("zoom_clip", arguments))
    assert "at most 128 frames" in said(await client.call_tool("resample_frames", {"video": FILM, "num_frames": 10**9}))
    assert "there is no tool 'no_such_tool'" in said(await client.call_tool("no_such_tool", {}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An allowed folder of things that are no films."""
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "out.mp4").symlink_to("/etc/passwd")
    (tmp_path / "text.mp4").write_text("no film\n" * 50)
    return tmp_path.resolve()


@pytest.mark.parametrize("mode", MODES)
def test_over_stdio(folder: Path, mode: str) -> None:
    async def work() -> None:
        async with Client(stdio("--allow", folder), mode=mode) as client:
            await conversation(client, folder)

    run(work)


@pytest.mark.parametrize("mode", MODES)
def test_over_http(folder: Path, mode: str) -> None:
    async def work() -> None:
        async with http(calls(folder)) as address, Client(address, mode=mode) as client:
            await conversation(client, folder)

    run(work)


def test_only_the_protocol_is_on_standard_output_and_the_end_of_input_ends_it() -> None:
    """Spoken to by hand: garbage, a tool that prints everywhere, a tool that hangs, then the client goes away."""
    parameters = stdio(plugin=True)
    process = subprocess.Popen(
        [parameters.command, *parameters.args],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None

        def send(message: dict[str, Any]) -> None:
            assert process.stdin is not None
            process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
            process.stdin.flush()

        process.stdin.write("this is no JSON\n")
        client = {"name": "hand", "version": "0"}
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}
        send({"id": 1, "method": "initialize", "params": hello})
        lines = [process.stdout.readline()]
        send({"method": "notifications/initialized"})
        send({"id": 2, "method": "tools/call", "params": {"name": "noisy", "arguments": {"video": FILM}}})
        lines.append(process.stdout.readline())
        send({"id": 3, "method": "tools/call", "params": {"name": "hangs", "arguments": {"video": FILM}}})
        send({"id": 4, "method": "tools/list"})
        lines.append(process.stdout.readline())
        began = time.monotonic()
        process.stdin.close()
        lines += process.stdout.readlines()
        assert process.wait(20) == 0 and time.monotonic() - began < 15
        messages = [json.loads(line) for line in lines]
        assert all(message["jsonrpc"] == "2.0" for message in messages)
        assert messages[1]["result"]["content"] == [{"type": "text", "text": "quiet"}]
        assert {"noisy", "hangs"} <= {tool["name"] for tool in messages[2]["result"]["tools"]}
        errors = process.stderr.read()
        assert errors.count("stray") == 3 and "Traceback" not in errors
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_tool_added_while_it_serves_is_there(plugin: Any, mode: str) -> None:
    class CountArgs(ToolArgs):
        """Arguments."""

        every: float = Field(gt=0, description="seconds between two")

    async def work() -> None:
        async with http(calls()) as address, Client(address, mode=mode) as client:
            assert "count_cuts" not in {tool.name for tool in (await client.list_tools()).tools}

            @plugin
            class CountCuts(Tool[CountArgs]):
                """Count what is cut."""

                def run(self, args: CountArgs, context: ToolContext) -> ToolResult:
                    return ToolResult(text=f"{context.video().duration / args.every:.0f}")

            (tool,) = [tool for tool in (await client.list_tools()).tools if tool.name == "count_cuts"]
            assert tool.description == "Count what is cut."
            assert tool.input_schema["required"] == ["video", "every"]
            assert tool.input_schema["properties"]["every"]["description"] == "seconds between two"
            assert text_of(await client.call_tool("count_cuts", {"video": FILM, "every": 4})) == "19"

    run(work)


def test_two_clients_at_once_and_one_that_leaves(gate: Any) -> None:
    async def work() -> None:
        async with http(calls()) as address, Client(address) as stays:
            window = {"video": FILM, "start": 24, "end": 27}
            alone = await stays.call_tool("zoom_clip", window)

            async def leaves() -> None:
                async with Client(address, mode="legacy") as client:
                    await client.call_tool("waits", {"video": FILM})

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(leaves)
                await gate.entered()
                tasks.cancel_scope.cancel()  # gone in the middle of its call

            seen: list[Any] = []

            async def look(mode: str) -> None:
                async with Client(address, mode=mode) as client:
                    for _ in range(3):  # the same look again: a call keeps nothing, so none is refused
                        seen.append(await client.call_tool("zoom_clip", window))

            async with anyio.create_task_group() as tasks:
                for mode in MODES:
                    tasks.start_soon(look, mode)
            assert len(seen) == 6 and all(result.content == alone.content for result in seen)

    run(work)


def test_a_connection_cut_in_the_middle_of_a_call_harms_nobody(gate: Any) -> None:
    """As when the client's machine dies: no goodbye, the socket is just gone; once in its call, once in its request."""

    async def work() -> None:
        async with http(calls()) as address, httpx.AsyncClient() as web:
            headers = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
            hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "0"}}
            body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
            headers["mcp-session-id"] = (await web.post(address, json=body, headers=headers)).headers["mcp-session-id"]
            await web.post(address, json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=headers)
            text = json.dumps(
                {**body, "method": "tools/call", "params": {"name": "waits", "arguments": {"video": FILM}}}
            )
            port = int(address.split(":")[2].split("/")[0])
            for missing in (0, 50):
                lines = [f"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-length: {len(text) + missing}\r\n"]
                lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
                stream = await anyio.connect_tcp("127.0.0.1", port)
                await stream.send("".join([*lines, "\r\n", text]).encode())
                if not missing:
                    await gate.entered()
                await stream.aclose()
            for mode in MODES:
                async with Client(address, mode=mode) as client:
                    assert text_of(await client.call_tool("video_info", {"video": FILM}))

    run(work)


def test_only_requests_for_this_server_are_served() -> None:
    """A page of another site, and a name that was made to mean 127.0.0.1 (DNS rebinding), are refused."""

    async def work() -> None:
        async with http(calls()) as address, httpx.AsyncClient() as web:
            port = address.split(":")[2].split("/")[0]
            hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "0"}}
            body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
            accept = {"accept": "application/json, text/event-stream"}

            async def status(**headers: str) -> int:
                return (await web.post(address, json=body, headers={**accept, **headers})).status_code

            assert await status() == 200
            for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
                assert await status(host=host) == 200
            for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port}.evil.example", ""):
                assert await status(host=host) in (400, 421)
            for origin in (f"http://127.0.0.1:{port}", f"http://localhost:{port}"):
                assert await status(origin=origin) == 200
            for origin in (
                "http://evil.example",
                "null",
                "http://127.0.0.1:1",
                f"http://127.0.0.1:{port}.evil.example",
            ):
                assert await status(origin=origin) == 403
            assert (await web.post(address, content="x" * (2 << 20), headers=accept)).status_code in (400, 413)
            answer = await web.post(address, json={**body, "params": {"x": "y" * (2 << 20)}}, headers=accept)
            assert answer.status_code == 413
            assert (await web.get(address.replace("/mcp", "/"))).status_code == 404

    run(work)
