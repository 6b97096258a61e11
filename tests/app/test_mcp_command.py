"""`closeup mcp` as a command: its arguments, where it listens, how it ends, what it loads."""

from __future__ import annotations

import json
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from closeup.app import mcp as command
from closeup.app.mcp import McpOptions, is_loopback, served_names
from closeup.tools import Tool, ToolContext, ToolResult

_helpers = runpy.run_path(str(Path(__file__).with_name("mcp_helpers.py")))
FILM, stdio, environment, run = _helpers["FILM"], _helpers["stdio"], _helpers["environment"], _helpers["run"]
http, calls, text_of, NoArgs = _helpers["http"], _helpers["calls"], _helpers["text_of"], _helpers["NoArgs"]


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


def test_tools_by_name(cli: Any) -> None:
    assert list(calls(names=("answer",)).tools()) == ["video_info", "answer"]
    said_it = calls(names=("answer",)).call("answer", {"video": FILM, "text": "7"}, stop=threading.Event(), tell=print)
    assert said_it.parts == ("7",)
    assert list(calls(names=()).tools()) == ["video_info"]
    ran = cli("mcp", "--tools", "zoom_clip,no_such")
    assert ran.code == 2 and "unknown tool 'no_such'" in ran.err


def test_a_plugin_cannot_take_the_server_s_own_name(plugin: Any, cli: Any) -> None:
    class VideoInfo(Tool[NoArgs]):
        """Take the name."""

        def run(self, args: NoArgs, context: ToolContext) -> ToolResult:
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
