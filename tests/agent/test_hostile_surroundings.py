"""What surrounds an episode misbehaves: a tool that exits, a model that is nearly full, a model that is busy."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from closeup.agent.episode import run_episodes
from closeup.agent.messages import Message
from closeup.agent.models.testing import write_random_checkpoint
from closeup.agent.policies.base import Request
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.policies.transformers_policy import TransformersPolicy
from closeup.agent.preset import get_preset
from closeup.agent.task import Task
from closeup.tools.base import Tool, ToolArgs, ToolContext, ToolResult
from closeup.tools.registry import register_tool, unregister_tool

ANSWER = '<tool_call>\n{"name": "answer", "arguments": {"choice": "A"}}\n</tool_call>'


class NoArgs(ToolArgs):
    """Nothing."""


def task(name: str, video: Path) -> Task:
    return Task(id=name, videos=(video,), question="?", options=("1", "2"), answer="1")


def test_a_tool_that_exits_ends_its_episode_only(make_video) -> None:  # type: ignore[no-untyped-def]
    class Leaves(Tool[NoArgs]):
        """End the program."""

        def run(self, args: NoArgs, context: ToolContext) -> ToolResult:
            sys.exit(0)

    register_tool(Leaves)
    try:
        call = '<tool_call>\n{"name": "leaves", "arguments": {}}\n</tool_call>'
        policy = ScriptedPolicy(lambda request: call if request.episode_id.startswith("bad") else ANSWER)
        preset = get_preset("tiny").model_copy(update={"tools": ("leaves", "answer")})
        video = make_video(seconds=20)
        bad, good = run_episodes([task("bad", video), task("good", video)], policy, preset=preset)
    finally:
        unregister_tool("leaves")
    assert bad.outcome.failed and "SystemExit" in bad.outcome.reason
    assert good.outcome.correct is True


def test_an_answer_is_forced_before_the_model_is_full(make_video) -> None:  # type: ignore[no-untyped-def]
    policy = ScriptedPolicy(["no action", ANSWER])
    policy.max_context = 300
    (run,) = run_episodes([task("a", make_video(seconds=20))], policy, preset=get_preset("tiny"))
    assert run.settings["preset"]["budget"]["max_context_tokens"] == 300
    assert run.steps[-1].forced and len(run.steps) < 8
    assert not run.outcome.failed


def test_a_busy_model_can_be_given_up_waiting_for(tmp_path: Path) -> None:
    policy = TransformersPolicy(str(write_random_checkpoint(tmp_path / "model")))
    cancel = threading.Event()
    request = Request("e", (Message.of("user", "hello"),))
    with policy._lock:  # another call has the model
        threading.Timer(0.1, cancel.set).start()
        began = time.monotonic()
        (done,) = policy.generate([request], cancel=cancel)
        assert time.monotonic() - began < 30  # without the cancel it would wait for ever
    assert done.finish == "cancelled"
    (again,) = policy.generate([request])
    assert again.finish in ("stop", "length")


@pytest.mark.parametrize("placement", ["ends", "left", "centre"])
def test_windows_without_an_order_are_refused(placement: str) -> None:
    from closeup.tools.video.sampling import uniform

    for window in ((5.0, 1.0), (0.0, float("nan")), (0.0, float("inf")), (-1.7e308, 1.7e308)):
        with pytest.raises(ValueError, match="finite ends"):
            uniform(*window, 3, placement=placement)  # type: ignore[arg-type]
