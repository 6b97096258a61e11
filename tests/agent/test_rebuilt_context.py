"""The interface carries dialects that rebuild the context: each step is a fresh prompt with every clip again."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest

from closeup.agent import dialects
from closeup.agent.dialects.base import Dialect, FormatError, Parsed, ToolCall, View
from closeup.agent.environment import VideoQAEnv
from closeup.agent.episode import run_episodes
from closeup.agent.messages import Message
from closeup.agent.policies.base import Completion, Policy, Request
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import Preset
from closeup.agent.replay import replay
from closeup.agent.task import Task
from closeup.tools.base import Tool
from closeup.tools.video.clip import Clip

NUMBER = r"(\d+(?:\.\d+)?)"


class Boxed(Dialect):
    r"""`\boxed{[s, e]}` zooms, `\boxed{B}` answers; every step is one user message with all clips."""

    name: ClassVar[str] = "boxed"
    rebuilds_context: ClassVar[bool] = True

    def parse(self, text: str) -> Parsed:
        if found := re.search(rf"\\boxed{{\[{NUMBER}, {NUMBER}\]}}", text):
            window = {"start": float(found[1]), "end": float(found[2])}
            return Parsed(text[: found.start()], ToolCall("zoom_clip", window))
        if found := re.search(r"\\boxed{([A-Z])}", text):
            return Parsed(text[: found.start()], ToolCall("answer", {"choice": found[1]}))
        return Parsed(text, FormatError("no_call", "give a window or a letter in a box"))

    def start(self, view: View) -> tuple[Message, ...]:
        content: list[str | Clip] = [part for pair in (*view.overviews, *view.clips) for part in pair]
        failed = f"\n{view.news}" if view.failed else ""
        return (Message.of("user", *content, view.question + failed),)

    def observe(self, view: View) -> tuple[Message, ...]:
        return self.start(view)

    def forced_prefix(self, tools: Sequence[type[Tool[Any]]]) -> str:
        return "I get the answer.\n\n"

    def write(self, thought: str, call: ToolCall) -> str:
        return f"{thought}\\boxed{{{call.arguments}}}"


@pytest.fixture
def boxed(preset: Preset, monkeypatch: pytest.MonkeyPatch) -> Preset:
    monkeypatch.setitem(dialects.DIALECTS, "boxed", Boxed)
    budget = preset.budget.model_copy(update={"max_steps": 3})
    return preset.model_copy(update={"dialect": "boxed", "budget": budget})


def test_every_step_is_a_fresh_prompt_with_every_clip(boxed: Preset, task: Task) -> None:
    with VideoQAEnv(boxed) as env:
        opened = env.reset(task)
        first = env.step(r"I need to zoom. \boxed{[12, 13]}").observation
        assert first.rebuilt and first.messages == first.context
        (message,) = first.context
        assert message.clips[0] == opened.overviews[0] and len(message.clips) == 2
        second = env.step("?").observation
        assert len(second.context) == 1 and second.context[0].clips == message.clips
        assert "Error: give a window" in second.context[0].text
        assert second.forced and second.assistant_prefix == "I get the answer.\n\n"
        result = env.step(r"I get the answer.\n\n\boxed{B}")
        assert result.terminated and result.info.answer is not None and result.info.answer.text == "7"


def test_the_context_estimate_is_that_of_the_new_prompt(boxed: Preset, task: Task) -> None:
    with VideoQAEnv(boxed) as env:
        env.reset(task)
        env.step("word " * 500)
        grown = env.spent.context_tokens
        env.step("word " * 500)
        assert env.spent.context_tokens == grown, "what the model said is not in the new prompt"


def test_a_rebuilt_context_is_one_more_path_of_the_trajectory(boxed: Preset, task: Task) -> None:
    script = [r"so \boxed{[12, 13]}", "?", r"I get the answer. \boxed{B}"]
    (trajectory,) = run_episodes([task], ScriptedPolicy(script), preset=boxed)
    assert trajectory.outcome.correct
    assert [step.parent for step in trajectory.steps] == [None, None, None]
    assert [len(trajectory.context(i)) for i in range(3)] == [1, 1, 1]
    assert len(trajectory.context(2)[0].clips) == 2
    assert replay(trajectory).same


def test_ids_of_rebuilt_prompts_are_kept_per_path(boxed: Preset, task: Task) -> None:
    class Counting(Policy):
        """Gives as ids the lengths of the messages, so that every prompt has its own."""

        name = "counting"

        def __init__(self, forget: Callable[[str], None] | None = None) -> None:
            self.script = ScriptedPolicy([r"\boxed{[12, 13]}", r"\boxed{B}"])

        def generate(self, requests: Sequence[Request], **rest: Any) -> list[Completion]:
            done = []
            for request, said in zip(requests, self.script.generate(requests), strict=True):
                prompt = tuple(len(message.text) for message in request.messages)
                done.append(Completion(said.text, ids=(7, 8), logprobs=(-0.5, -0.25), prompt_ids=prompt))
            return done

    (trajectory,) = run_episodes([task], Counting(), preset=boxed)
    for index, step in enumerate(trajectory.steps):
        assert step.parent is None
        assert trajectory.full_prompt_ids(index) == tuple(len(m.text) for m in trajectory.context(index))
        assert (step.ids, step.logprobs) == ((7, 8), (-0.5, -0.25))
