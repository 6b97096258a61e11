from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import Field

from closeup.tools import call
from closeup.tools.base import Tool, ToolArgs, ToolContext, ToolError, ToolResult
from closeup.tools.call import MAX_ABANDONED, ToolTimeout, run_tool, running_abandoned
from closeup.tools.rules import ToolRules

QUICK = ToolContext(rules=ToolRules(tool_seconds=0.05))
CALM = ToolContext(rules=ToolRules(tool_seconds=300))
release = threading.Event()
threads: list[threading.Thread] = []


class WaitArgs(ToolArgs):
    how: str = Field(description="what to do")


class Wait(Tool[WaitArgs]):
    """Do as told."""

    def run(self, args: WaitArgs, context: ToolContext) -> Any:
        match args.how:
            case "hang":
                threads.append(threading.current_thread())
                release.wait(60)
                return ToolResult(text="too late")
            case "refuse":
                raise ToolError("not that")
            case "break":
                raise ZeroDivisionError("a bug")
            case "exit":
                raise SystemExit(3)
            case "nothing":
                return None
            case how:
                return ToolResult(text=how)


@pytest.fixture(autouse=True)
def released(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every hanging call end, and wait for it; calls that another file left running are not counted here."""
    monkeypatch.setattr(call, "_abandoned", [])
    release.clear()
    yield
    release.set()
    while threads:
        threads.pop().join()
    assert running_abandoned() == 0


def test_the_result_comes_back_from_a_class_or_an_instance_with_raw_or_validated_arguments() -> None:
    expected = ToolResult(text="hello")
    assert run_tool(Wait, {"how": "hello"}, CALM) == expected
    assert run_tool(Wait(), WaitArgs(how="hello"), CALM) == expected


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("refuse", ToolError, "not that"),
        ("break", ZeroDivisionError, "a bug"),
        ("exit", SystemExit, "3"),
        ("nothing", TypeError, "'wait' returned NoneType; a tool returns a ToolResult"),
    ],
)
def test_what_the_tool_raises_the_caller_gets(how: str, kind: type[BaseException], said: str) -> None:
    with pytest.raises(kind, match=said):
        run_tool(Wait, {"how": how}, CALM)


def test_raw_arguments_are_validated_before_anything_runs() -> None:
    with pytest.raises(ToolError, match="wrong arguments for wait: how is missing"):
        run_tool(Wait, {}, CALM)


def test_a_call_past_its_limit_is_given_up_and_told_to_the_model() -> None:
    with pytest.raises(ToolTimeout, match="wait took longer than 0.05 s") as caught:
        run_tool(Wait, {"how": "hang"}, QUICK)
    assert isinstance(caught.value, ToolError)
    assert running_abandoned() == 1 and threads[0].daemon
    assert run_tool(Wait, {"how": "still fine"}, CALM).text == "still fine"


def test_hanging_calls_are_bounded_and_the_refusal_ends_when_they_do() -> None:
    for _ in range(MAX_ABANDONED):
        with pytest.raises(ToolTimeout, match="took longer"):
            run_tool(Wait, {"how": "hang"}, QUICK)
    for _ in range(3):
        with pytest.raises(ToolTimeout, match=f"{MAX_ABANDONED} earlier calls still run past their time limit"):
            run_tool(Wait, {"how": "hello"}, CALM)
    assert len(threads) == MAX_ABANDONED
    release.set()
    for thread in threads:
        thread.join()
    assert run_tool(Wait, {"how": "hello"}, CALM).text == "hello"
    assert call.running_abandoned() == 0
