"""`closeup mcp`: the whole agent as one tool, its answers, what ends a question early, and a model that is none."""

from __future__ import annotations

import json
import runpy
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client

from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.app.mcp import EXAMPLES
from closeup.app.mcp_ask import Asker
from closeup.app.mcp_calls import Limits, Refused
from closeup.app.mcp_server import VideoServer
from closeup.tools import ToolError
from closeup.tools.sample_video import write_sample_video

_helpers = runpy.run_path(str(Path(__file__).with_name("mcp_helpers.py")))
MODES, FILM, stdio, run = _helpers["MODES"], _helpers["FILM"], _helpers["stdio"], _helpers["run"]
http, calls, said, text_of = _helpers["http"], _helpers["calls"], _helpers["said"], _helpers["text_of"]


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
