"""`closeup mcp`: what a tool may take, what the server holds at once, and what a call that is cancelled leaves."""

from __future__ import annotations

import runpy
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from pydantic import Field

from closeup.app import mcp as command
from closeup.app.allow import Allowed
from closeup.app.background import Busy, TooSlow, Workers
from closeup.app.mcp import EXAMPLES, McpOptions, served_names
from closeup.app.mcp_calls import Calls, Limits, Picture, Refused, served
from closeup.app.mcp_server import VideoServer
from closeup.tools import Clip, Tool, ToolArgs, ToolContext, ToolResult, Video
from closeup.tools.resample_frames import ResampleFrames
from closeup.tools.zoom_clip import ZoomClip

_helpers = runpy.run_path(str(Path(__file__).with_name("mcp_helpers.py")))
MODES, FILM, run, http = _helpers["MODES"], _helpers["FILM"], _helpers["run"], _helpers["http"]
calls, said, text_of, NoArgs = _helpers["calls"], _helpers["said"], _helpers["text_of"], _helpers["NoArgs"]


def test_a_broken_tool_is_a_sentence_and_its_traceback_stays(plugin: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Breaks(Tool[NoArgs]):
        """Break."""

        def run(self, args: NoArgs, context: ToolContext) -> ToolResult:
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
def test_a_server_whose_calls_all_wait_still_answers(gate: Any, mode: str) -> None:
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
def test_cancelling_a_call_lets_the_client_go_on(gate: Any, mode: str, transport: str) -> None:
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


class _Many(Tool[NoArgs]):
    """Ask for more than any rule allows."""

    name = "many"
    clip: dict[str, Any] = {}

    def run(self, args: NoArgs, context: ToolContext) -> ToolResult:
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
