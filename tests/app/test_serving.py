"""Drawing as events come, and ending: last states go out, nothing is waited for for long."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import runpy
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from closeup.app import watching
from closeup.app.demo import Demo
from closeup.app.settings import DemoSettings
from closeup.app.watching import changes
from closeup.app.wishes import Wish

_helpers = runpy.run_path(str(Path(__file__).with_name("slow_policy.py")))
SlowPolicy, zoom_and_answer = _helpers["SlowPolicy"], _helpers["zoom_and_answer"]
QUESTION, OPTIONS = "Which digit is in the orange box?", ("5", "1", "6", "7")
NAMES = (
    "GRADIO_TEMP_DIR",
    "GRADIO_ANALYTICS_ENABLED",
    "GRADIO_ANALYTICS_MAX_EVENTS",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY",
)


@pytest.fixture
def demo_of() -> Iterator[Callable[..., Demo]]:
    """Makes demos with a given policy; closes them."""
    made: list[Demo] = []

    def make(policy: Any, **settings: Any) -> Demo:
        made.append(Demo(DemoSettings(**settings), load=lambda model, preset: policy))
        return made[-1]

    yield make
    for demo in made:
        demo.close()


def watched(run: Any, shortest: float) -> list[tuple[float, bool, str]]:
    """When each change came, whether it was the last, and what was to be seen then."""

    async def collect() -> list[tuple[float, bool, str]]:
        found = []
        async for over in changes(run, shortest):
            steps = run.scenes[0].steps
            state = steps[-1].calls[0].state if steps and steps[-1].calls else ""
            found.append((time.monotonic(), over, f"{run.scenes[0].status} {state}"))
        return found

    return asyncio.run(collect())


def test_a_question_is_drawn_as_its_events_come(demo_of: Callable[..., Demo]) -> None:
    demo = demo_of(SlowPolicy(zoom_and_answer, pause=0.01))
    demo.pick("me", "digit.mp4")
    run = demo.ask("me", Wish(QUESTION, OPTIONS))
    seen = watched(run, 0.02)
    assert [over for _, over, _ in seen] == [False] * (len(seen) - 1) + [True]
    assert "running running" in {state for _, _, state in seen}  # the card is seen while the tool is being called
    assert seen[-1][2] == "done done"
    assert len(seen) > 20  # of some 250 tokens
    assert run._listeners == ()


def test_many_events_are_one_change_and_none_is_a_tick(
    demo_of: Callable[..., Demo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "AT_LEAST_EVERY", 0.1)
    demo = demo_of(SlowPolicy(zoom_and_answer), at_once=1)
    demo.pick("me", "digit.mp4")
    place = demo.line.join()  # somebody else is answered first, so nothing happens here
    run = demo.ask("me", Wish(QUESTION, OPTIONS))
    threading.Timer(1.0, place.leave).start()
    seen = watched(run, 0.3)
    assert all(later[0] - sooner[0] >= 0.29 for sooner, later in zip(seen, seen[1:], strict=False))
    assert len(seen) >= 3 and seen[-1][1:] == (True, "done done")


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")
def test_an_interrupt_ends_questions_and_server_within_seconds(
    demo_of: Callable[..., Demo], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradio_client import Client

    from closeup.app import serving

    demo = demo_of(SlowPolicy(lambda request: "…"), port=0)
    before = {name: os.environ.get(name) for name in NAMES}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    told: dict[str, Any] = {}
    launch = serving.launch

    def launched(demo: Demo) -> Any:
        blocks, url = launch(demo)
        threading.Thread(target=ask, args=(url,), daemon=True).start()
        return blocks, url

    def ask(url: str) -> None:
        client = Client(url, verbose=False, analytics_enabled=False)
        job = client.submit(question=QUESTION, video="digit.mp4", api_name="/ask")
        end = time.monotonic() + 120
        while not any(state["status"] == "running" for state in job.outputs()) and time.monotonic() < end:
            time.sleep(0.05)
        told["at"] = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            told["last"] = job.result(timeout=30)
        except Exception as error:  # whatever the client raises is what is wrong
            told["last"] = error

    monkeypatch.setattr(serving, "launch", launched)
    try:
        serving.serve(demo)
        took = time.monotonic() - told["at"]
    finally:
        logging.getLogger("uvicorn.error").setLevel(logging.NOTSET)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
    end = time.monotonic() + 40
    while "last" not in told and time.monotonic() < end:
        time.sleep(0.05)
    assert isinstance(told["last"], dict) and told["last"]["status"] == "stopped"
    assert took < 10  # Gradio itself waits up to 5 s for its server's thread
    assert not demo.uploads.folder.exists()
    assert "closeup demo: closing" in capsys.readouterr().out
