"""`closeup mcp` with the mcp package's own client, over both transports and both eras of the protocol."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from mcp import Client, StdioServerParameters
from PIL import Image
from pydantic import Field

from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.app import mcp as command
from closeup.app.allow import Allowed
from closeup.app.background import Busy, TooSlow, Workers
from closeup.app.mcp import EXAMPLES, McpOptions, is_loopback, served_names
from closeup.app.mcp_ask import Asker
from closeup.app.mcp_calls import Calls, Limits, Picture, Refused, served
from closeup.app.mcp_server import VideoServer
from closeup.tools import Clip, Tool, ToolArgs, ToolContext, ToolError, ToolResult, Video, register_tool
from closeup.tools.registry import unregister_tool
from closeup.tools.resample_frames import ResampleFrames
from closeup.tools.sample_video import write_sample_video
from closeup.tools.zoom_clip import ZoomClip

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


class _NoArgs(ToolArgs):
    """None."""


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


class _Gate:
    """A tool that waits until it is let go, and says how many calls came in."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.came = threading.Semaphore(0)
        gate = self

        class Waits(Tool[_NoArgs]):
            """Wait."""

            name = "waits"

            def run(self, args: _NoArgs, context: ToolContext) -> ToolResult:
                gate.came.release()
                assert gate.go.wait(60)
                return ToolResult(text="waited")

        self.tool: type[Tool[Any]] = Waits

    async def entered(self) -> None:
        assert await anyio.to_thread.run_sync(lambda: self.came.acquire(timeout=30))


@pytest.fixture
def gate(plugin: Any) -> Iterator[_Gate]:
    found = _Gate()
    plugin(found.tool)
    yield found
    found.go.set()


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


@pytest.mark.slow
def test_the_whole_agent_answers() -> None:
    """The bundled model, as a client meets it; then what cannot be asked."""

    async def work() -> None:
        told: list[str | None] = []

        async def progress(count: float, total: float | None, text: str | None) -> None:
            told.append(text)

        async with Client(stdio("--model", "tiny")) as client:
            (row,) = [row for row in _rows() if row["video"] == FILM]
            arguments = {"video": FILM, "question": row["question"], "options": row["options"]}
            result = await client.call_tool("ask_video", arguments, progress_callback=progress)
            answer = result.structured_content
            assert answer == json.loads(text_of(result)) and answer is not None
            assert answer["answer"] in row["options"] and answer["steps"] >= 1 and "note" not in answer
            assert told[0] == "skimming the video" and told[-1] == "answered" and len(told) == answer["steps"] + 2
            for more, word in (
                ({"options": ["one"]}, "one option leaves nothing to choose"),
                ({"options": ["a", "a"]}, "options"),
                ({"question": " "}, "the question is empty"),
                ({"question": "x" * 5000}, "question: "),
                ({"video": "/etc/passwd"}, "not in a folder"),
            ):
                assert word in said(await client.call_tool("ask_video", {**arguments, **more}))

    run(work, 240)


def _rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLES / "tasks.jsonl").read_text(encoding="utf-8").splitlines()]


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


def test_the_http_command_says_where_it_serves_and_ends_when_interrupted() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "from closeup.app.cli import main; main()", "mcp", "--transport", "http", "--port", "0"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        assert process.stderr is not None and process.stdout is not None
        line = process.stderr.readline()
        assert line.startswith("closeup mcp: serving http://127.0.0.1:") and line.endswith(
            "/mcp; stop it with Ctrl-C\n"
        )
        address = line.split()[3].rstrip(";")

        async def work() -> None:
            async with Client(address) as client:
                assert json.loads(text_of(await client.call_tool("video_info", {"video": FILM})))["duration"] == 76.0

        run(work)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (130, "") and "Traceback" not in err
    finally:
        process.kill()
        process.wait()


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


def test_a_broken_tool_is_a_sentence_and_its_traceback_stays(plugin: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Breaks(Tool[_NoArgs]):
        """Break."""

        def run(self, args: _NoArgs, context: ToolContext) -> ToolResult:
            raise ValueError("the password is swordfish")

    async def work() -> None:
        async with Client(VideoServer(calls()).server) as client:
            sentence = said(await client.call_tool("breaks", {"video": FILM}))
            assert sentence == "internal error in breaks (ValueError); the server's log has more"

    plugin(Breaks)
    run(work)
    (record,) = [record for record in caplog.records if record.name == "closeup.mcp"]
    assert record.exc_info is not None and "swordfish" in str(record.exc_info[1])


@pytest.mark.parametrize("mode", MODES)
def test_a_server_whose_calls_all_wait_still_answers(gate: _Gate, mode: str) -> None:
    limits = Limits(together=2, waiting=1)

    async def work() -> None:
        async with http(calls(limits=limits)) as address, Client(address, mode=mode) as client:
            waited: list[str] = []

            async def wait() -> None:
                waited.append(text_of(await client.call_tool("waits", {"video": FILM})))

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(wait)
                await gate.entered()
                await gate.entered()
                began = time.monotonic()
                with anyio.fail_after(20):
                    while not (sentence := (await client.call_tool("video_info", {"video": FILM}))).is_error:
                        await anyio.sleep(0.05)  # until the third has taken its place in the queue
                assert "busy with other calls" in said(sentence)
                assert len((await client.list_tools()).tools) >= 4
                assert time.monotonic() - began < 20 and waited == []
                gate.go.set()
            assert waited == ["waited"] * 3
            assert text_of(await client.call_tool("video_info", {"video": FILM}))

    run(work)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transport", ["http", "memory"])
def test_cancelling_a_call_lets_the_client_go_on(gate: _Gate, mode: str, transport: str) -> None:
    server = VideoServer(calls())

    @asynccontextmanager
    async def connected() -> AsyncIterator[Client]:
        if transport == "memory":
            async with Client(server.server, mode=mode) as client:
                yield client
            return
        with command._listen("127.0.0.1", 0) as listening:
            port = listening.getsockname()[1]
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(server.http, listening, served_names(McpOptions(), port))
                async with Client(f"http://127.0.0.1:{port}/mcp", mode=mode) as client:
                    yield client
                tasks.cancel_scope.cancel()

    async def work() -> None:
        async with connected() as client:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.call_tool, "waits", {"video": FILM})
                await gate.entered()
                tasks.cancel_scope.cancel()
            began = time.monotonic()
            assert text_of(await client.call_tool("video_info", {"video": FILM}))
            assert time.monotonic() - began < 10
            assert server._looks.taken == 1  # what hangs keeps its place until it really ends
            gate.go.set()
            while server._looks.taken:
                await anyio.sleep(0.01)

    run(work, 60)


class _Asker:
    """Stands where the model is: hears `stop`, or answers."""

    def __init__(self) -> None:
        self.asked, self.stopped = threading.Event(), threading.Event()

    def ask(self, video: Path, question: str, options: tuple[str, ...], *, stop: threading.Event, tell: Any) -> Any:
        self.asked.set()
        if question == "wait":
            assert stop.wait(30)
            self.stopped.set()
        return {"answer": f"{video.name}: {question}"}


@pytest.mark.parametrize("mode", MODES)
def test_cancelling_a_question_stops_the_agent(mode: str) -> None:
    asker = _Asker()

    async def work() -> None:
        async with http(calls(asker=asker)) as address, Client(address, mode=mode) as client:
            assert "ask_video" in {tool.name for tool in (await client.list_tools()).tools}
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.call_tool, "ask_video", {"video": FILM, "question": "wait"})
                assert await anyio.to_thread.run_sync(lambda: asker.asked.wait(30))
                tasks.cancel_scope.cancel()
            assert await anyio.to_thread.run_sync(lambda: asker.stopped.wait(30))
            result = await client.call_tool("ask_video", {"video": FILM, "question": "next"})
            assert result.structured_content == {"answer": "digit.mp4: next"}

    run(work, 60)


def test_a_question_that_takes_too_long_is_given_up() -> None:
    asker = _Asker()

    async def work() -> None:
        async with Client(VideoServer(calls(asker=asker, limits=Limits(ask_seconds=0.3))).server) as client:
            sentence = said(await client.call_tool("ask_video", {"video": FILM, "question": "wait"}))
            assert sentence == "ask_video took longer than 0.3 s and was given up; ask for less"
            assert await anyio.to_thread.run_sync(lambda: asker.stopped.wait(30))

    run(work)


ZOOM = '<tool_call>{"name": "zoom_clip", "arguments": {"start": 24, "end": 27}}</tool_call>'
ANSWER = '<tool_call>{"name": "answer", "arguments": {"choice": "B", "evidence": [[24, 27]]}}</tool_call>'


def asked(monkeypatch: pytest.MonkeyPatch, script: list[str], video: Path = EXAMPLES / FILM) -> Any:
    """What `ask_video` gives when the bundled model's place is taken by a script."""
    monkeypatch.setattr("closeup.app.setup.open_policy", lambda model, preset: ScriptedPolicy(script))
    arguments = {"video": str(video), "question": "Which digit?", "options": ["3", "7"]}
    answering = calls(video.parent, asker=Asker("tiny"))
    return answering.call("ask_video", arguments, stop=threading.Event(), tell=lambda _: None).data


def test_an_answer_comes_with_its_evidence_and_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = asked(monkeypatch, [ZOOM, ANSWER])
    assert (answer["answer"], answer["choice"], answer["evidence"], answer["steps"]) == ("7", "B", [[24.0, 27.0]], 2)
    assert answer["visual_tokens"] > 0 and "note" not in answer


def test_no_answer_is_said_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = asked(monkeypatch, ["I do not know."] * 20)
    assert answer["answer"] is None and "max_steps" in answer["reason"]


def test_the_bundled_model_is_not_to_be_trusted_on_other_films(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer = asked(monkeypatch, [ZOOM, ANSWER], write_sample_video(tmp_path / "real.mp4", seconds=60))
    assert "knows only the videos of `closeup data needles`" in answer["note"]


def test_a_policy_that_breaks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="the agent failed: .*script"):
        asked(monkeypatch, [ZOOM])


def test_a_model_that_cannot_be_loaded_is_said_to_everyone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(model: str, preset: Any) -> Any:
        raise OSError("the weights are cut short")

    monkeypatch.setattr("closeup.app.setup.open_policy", fail)
    asker = Asker("tiny")
    for _ in range(2):
        with pytest.raises(ToolError, match="the model 'tiny' could not be loaded: the weights are cut short"):
            asker.ask(EXAMPLES / FILM, "Which digit?", (), stop=threading.Event())
    assert capsys.readouterr().err == "closeup: the model 'tiny' could not be loaded: the weights are cut short\n"


def test_a_call_cancelled_while_the_model_loads_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    go, stop = threading.Event(), threading.Event()
    stop.set()
    monkeypatch.setattr("closeup.app.setup.open_policy", lambda *_: go.wait(30))
    try:
        with pytest.raises(ToolError, match="cancelled while the model"):
            Asker("tiny").ask(EXAMPLES / FILM, "Which digit?", (), stop=stop)
    finally:
        go.set()


def test_two_clients_at_once_and_one_that_leaves(gate: _Gate) -> None:
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


def test_a_connection_cut_in_the_middle_of_a_call_harms_nobody(gate: _Gate) -> None:
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


def test_the_schema_is_the_class_s_with_a_path_for_the_index() -> None:
    for tool in (ZoomClip, ResampleFrames):
        found, own = served(tool), tool.spec()["function"]["parameters"]
        assert found.path == "video" and found.parameters["properties"]["video"]["type"] == "string"
        rest = {name: part for name, part in found.parameters["properties"].items() if name != "video"}
        assert rest == {name: part for name, part in own["properties"].items() if name != "video"}
        assert found.parameters["required"] == ["video", *own.get("required", [])]
        assert found.parameters["additionalProperties"] is False
        assert own["properties"]["video"]["type"] == "integer"  # the class's own schema is left as it is

    class NamedArgs(ToolArgs):
        """Arguments."""

        video: str = Field(description="a word")

    class Named(Tool[NamedArgs]):
        """Has another idea of what `video` is."""

        def run(self, args: NamedArgs, context: ToolContext) -> ToolResult:
            return ToolResult(text=args.video)

    found = served(Named)
    assert found.path == "video_file" and found.parameters["required"] == ["video_file", "video"]


class _Many(Tool[_NoArgs]):
    """Ask for more than any rule allows."""

    name = "many"
    clip: dict[str, Any] = {}

    def run(self, args: _NoArgs, context: ToolContext) -> ToolResult:
        video = context.video()
        return ToolResult(clips=(Clip(video=video.identity, start=0, end=video.duration, **self.clip),))


@pytest.mark.parametrize(
    ("clip", "limits", "word"),
    [
        ({"num_frames": 8000, "pixels": 100}, Limits(), "8000 frames, more than the 128"),
        ({"num_frames": 100, "pixels": 10**6}, Limits(pixels=10**6), "1.25 million pixels together, more than the 1 "),
        ({"num_frames": 64, "pixels": 10**6}, Limits(bytes=50_000), "more than the 0.05 MB"),
    ],
)
def test_a_tool_that_asks_for_too_much_is_refused(
    plugin: Any, monkeypatch: pytest.MonkeyPatch, clip: dict[str, Any], limits: Limits, word: str
) -> None:
    plugin(_Many)
    monkeypatch.setattr(_Many, "clip", clip)
    if "frames, more" in word or "pixels together" in word:
        monkeypatch.setattr(Video, "frames", lambda *_, **__: pytest.fail("decoded before it was refused"))
    with pytest.raises(Refused, match=word):
        calls(limits=limits).call("many", {"video": FILM}, stop=threading.Event(), tell=lambda _: None)


def test_the_limit_of_frames_is_what_the_tools_are_told() -> None:
    few = calls(limits=Limits(frames=6))

    def call(name: str, **arguments: Any) -> Any:
        return few.call(name, {"video": FILM, **arguments}, stop=threading.Event(), tell=lambda _: None)

    assert sum(isinstance(part, Picture) for part in call("zoom_clip", start=1, end=3).parts) == 6
    assert call("video_info").data["resample_max_frames"] == 6
    with pytest.raises(Refused, match="at most 6 frames are allowed"):
        call("resample_frames", num_frames=7)


def test_a_stopped_call_stops() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Refused, match="cancelled"):
        calls().call("zoom_clip", {"video": FILM, "start": 1, "end": 3}, stop=stop, tell=lambda _: None)


def test_a_film_exchanged_while_it_is_opened_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes((EXAMPLES / FILM).read_bytes())
    real = Video.__init__

    def exchange(self: Video, path: Path, **more: Any) -> None:
        if film.exists() and not film.is_symlink():
            film.unlink()
            film.symlink_to(EXAMPLES / "count.mp4")
        real(self, path, **more)

    monkeypatch.setattr(Video, "__init__", exchange)
    with pytest.raises(Refused, match="not in a folder"):
        Calls(Allowed([tmp_path])).call("video_info", {"video": "film.mp4"}, stop=threading.Event(), tell=print)
    (tmp_path / "other.mp4").write_bytes((EXAMPLES / FILM).read_bytes())
    film.unlink()
    film.symlink_to("other.mp4")
    info = Calls(Allowed([tmp_path])).call("video_info", {"video": "film.mp4"}, stop=threading.Event(), tell=print)
    assert info.data is not None and info.data["name"] == "other.mp4"


def test_tools_by_name(cli: Any) -> None:
    assert list(calls(names=("answer",)).tools()) == ["video_info", "answer"]
    said_it = calls(names=("answer",)).call("answer", {"video": FILM, "text": "7"}, stop=threading.Event(), tell=print)
    assert said_it.parts == ("7",)
    assert list(calls(names=()).tools()) == ["video_info"]
    ran = cli("mcp", "--tools", "zoom_clip,no_such")
    assert ran.code == 2 and "unknown tool 'no_such'" in ran.err


def test_a_plugin_cannot_take_the_server_s_own_name(plugin: Any, cli: Any) -> None:
    class VideoInfo(Tool[_NoArgs]):
        """Take the name."""

        def run(self, args: _NoArgs, context: ToolContext) -> ToolResult:
            return ToolResult(text="mine")

    plugin(VideoInfo)
    ran = cli("mcp")
    assert ran.code == 2 and "has the name of one that `closeup mcp` serves itself" in ran.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--transport", "carrier-pigeon"), ("no transport 'carrier-pigeon'", "stdio, http")),
        (("--transport", "http", "--host", "0.0.0.0"), ("no password", "--expose")),
        (("--transport", "http", "--host", "192.0.2.1"), ("no password", "--expose")),
        (("--transport", "http", "--host", "example.org"), ("no password", "--expose")),
        (("--transport", "http", "--host", "::", "--expose"), ("--host-name",)),
        (("--transport", "http", "--host", "192.0.2.1", "--expose"), ("cannot listen on 192.0.2.1",)),
        (("--transport", "http", "--host", "no.such.invalid", "--expose"), ("no address of this machine",)),
        (("--allow", "/no/such/folder"), ("no folder '/no/such/folder'",)),
        (("--preset", "tiny"), ("give --model too",)),
        (("--model", "/no/such/model"), ("/no/such/model",)),
        (("--model", "tiny", "--preset", "no-such"), ("no-such",)),
        (("--max-gb", "0"), ("more than 0 GB",)),
        (("--port", "70000"), ("--port", "65535")),
    ],
)
def test_arguments_that_cannot_be(cli: Any, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    ran = cli("mcp", *arguments)
    assert ran.code == 2 and ran.out == "" and all(word in ran.err for word in words), ran


def test_a_port_in_use(cli: Any) -> None:
    with command._listen("127.0.0.1", 0) as taken:
        ran = cli("mcp", "--transport", "http", "--port", str(taken.getsockname()[1]))
    assert ran.code == 2 and "is another server running there? Give another --port" in ran.err


def test_without_the_extra_the_line_that_installs_it_is_named(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "mcp" or name.startswith("mcp.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mcp", None)
    ran = cli("mcp")
    assert ran.code == 2 and 'pip install "closeup[mcp]"' in ran.err, ran


def test_neither_torch_nor_mcp_is_loaded_before_it_is_needed() -> None:
    code = (
        "import sys, closeup.app.cli, closeup.app.mcp, closeup.app.mcp_calls\n"
        "print([name for name in ('torch', 'transformers', 'mcp', 'gradio', 'uvicorn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_which_hosts_are_this_machine() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.evil", ""))
    names = served_names(McpOptions(host="0.0.0.0", host_names=("films.lan", "fe80::1")), 80)
    assert names[:3] == ("127.0.0.1:80", "localhost:80", "[::1]:80")
    assert names[3:] == ("films.lan:80", "films.lan", "[fe80::1]:80", "[fe80::1]")


def test_workers() -> None:
    async def work() -> None:
        workers, go, stops = Workers(1, 1), threading.Event(), list[threading.Event]()

        def wait(stop: threading.Event) -> str:
            stops.append(stop)
            assert go.wait(30)
            return "done"

        with pytest.raises(TooSlow):
            await workers.run(wait, 0.2, "slow")
        assert stops[0].is_set() and workers.taken == 1
        with pytest.raises(TooSlow):  # waits for its turn, which does not come in time
            await workers.run(lambda _: "never", 0.2, "queued")
        while workers.taken > 1:  # and leaves the queue
            await anyio.sleep(0.01)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(workers.run, wait, 30, "second")
            await anyio.sleep(0.1)
            with pytest.raises(Busy):
                await workers.run(lambda _: 1, 1, "third")
            go.set()
        while workers.taken:
            await anyio.sleep(0.01)
        assert await workers.run(lambda _: 7, 5, "free") == 7

        def fail(stop: threading.Event) -> None:
            raise TimeoutError("its own")

        with pytest.raises(TimeoutError, match="its own"):
            await workers.run(fail, 5, "fails")

    run(work, 60)
    with pytest.raises(ValueError, match="at least 1"):
        Workers(0, 1)
