"""`VideoQAEnv` and its budgets: steps, frames, visual tokens and context, and the forced answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from closeup import prompts
from closeup.agent.environment import VideoQAEnv
from closeup.agent.geometry import VisionGeometry
from closeup.agent.preset import get_preset
from closeup.agent.task import Task
from closeup.tools.answer import AnswerTool
from closeup.tools.base import Tool
from closeup.tools.resample_frames import ResampleFrames
from closeup.tools.zoom_clip import ZoomClip

MakeEnv = Callable[..., VideoQAEnv]
Say = Callable[..., str]
BUILTINS: tuple[type[Tool[Any]], ...] = (ZoomClip, ResampleFrames, AnswerTool)


# --- budgets -------------------------------------------------------------------------------------------------------


def test_the_last_step_is_a_forced_answer(make_env: MakeEnv, task: Task, say: Say) -> None:
    env = make_env(max_steps=3)
    env.reset(task)
    assert not env.step("?").observation.forced
    observation = env.step("?").observation
    assert observation.forced
    assert observation.assistant_prefix == '<tool_call>\n{"name": "answer", "arguments": {'
    assert [tool["function"]["name"] for tool in observation.tools] == ["answer"]
    result = env.step(say("answer", choice="B"))
    assert result.terminated and result.info.forced


@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        ("?", "no_call"),
        ('<tool_call>{"name": "zoom_clip", "arguments": {"start": 1, "end": 2}}</tool_call>', "refused"),
        ('<tool_call>{"name": "answer", "arguments": {"choice": "Q"}}</tool_call>', "refused"),
        ('<tool_call>{"name": "answer", "arguments": {"choice": [2]}}</tool_call>', "bad_arguments"),
    ],
)
def test_a_bad_forced_message_truncates(make_env: MakeEnv, task: Task, message: str, outcome: str) -> None:
    env = make_env(max_steps=1)
    assert env.reset(task).forced
    result = env.step(message)
    assert (result.terminated, result.truncated, result.info.outcome) == (False, True, outcome)
    assert result.info.limit == "max_steps" and outcome in result.info.reason
    assert result.observation.messages[0].text.startswith("<tool_response>\nError: ")
    with pytest.raises(RuntimeError):
        env.step(message)


def test_the_default_set_says_that_the_last_message_has_come(make_env: MakeEnv, task: Task) -> None:
    env = make_env(of=get_preset("default"), tools=BUILTINS, max_steps=2)
    env.reset(task)
    assert (
        env.step("?").observation.messages[0].text.endswith("</tool_response>\n" + prompts.render("default", "forced"))
    )


def test_a_look_over_the_frame_budget_is_refused_with_what_is_left(make_env: MakeEnv, task: Task, say: Say) -> None:
    env = make_env(max_frames=43)
    env.reset(task)  # 40 frames
    result = env.step(say("zoom_clip", start=1, end=2))
    assert result.info.outcome == "refused" and "3" in result.info.note
    assert env.spent.frames == 40
    assert env.step(say("resample_frames", start=1, end=2, num_frames=3)).info.outcome == "ok"
    assert env.spent.frames == 43


def test_a_look_over_the_token_budget_is_refused_with_what_is_left(make_env: MakeEnv, task: Task, say: Say) -> None:
    env = make_env(max_visual_tokens=20 + 31)
    env.reset(task)
    assert env.spent.visual_tokens == 20
    result = env.step(say("zoom_clip", start=1, end=2))
    assert result.info.outcome == "refused"
    assert "32 visual tokens, and 31 are left" in result.info.note
    assert env.step(say("resample_frames", start=1, end=2, num_frames=8)).info.outcome == "ok"
    assert env.spent.visual_tokens == 24


def test_the_answer_is_forced_when_no_look_fits_any_more(make_env: MakeEnv, task: Task, say: Say) -> None:
    env = make_env(max_frames=44)
    assert not env.reset(task).forced
    observation = env.step(say("zoom_clip", start=1, end=2)).observation
    assert observation.forced and env.spent.steps == 1
    result = env.step("?")
    assert result.truncated and result.info.limit == "max_frames"


def test_the_policys_own_token_count_decides_about_the_context(make_env: MakeEnv, task: Task) -> None:
    env = make_env(max_context_tokens=2048, max_new_tokens=96)
    env.reset(task)
    assert not env.step("?", spent_context_tokens=1500).observation.forced
    assert env.step("?", spent_context_tokens=1850).observation.forced
    result = env.step("?", spent_context_tokens=1900)
    assert result.truncated and result.info.limit == "max_context_tokens"


def test_a_full_context_ends_the_episode(make_env: MakeEnv, task: Task) -> None:
    env = make_env(max_context_tokens=2048)
    env.reset(task)
    result = env.step("?", spent_context_tokens=2040)
    assert result.truncated and result.info.limit == "max_context_tokens"


def test_a_look_that_the_context_cannot_hold_is_refused(make_env: MakeEnv, task: Task, say: Say) -> None:
    env = make_env(max_context_tokens=2048, max_new_tokens=96)
    env.reset(task)
    result = env.step(say("zoom_clip", start=1, end=2), spent_context_tokens=1920)
    assert result.info.outcome == "refused" and "context" in result.info.note


def test_an_overview_over_budget_is_an_error_not_an_empty_episode(make_env: MakeEnv, task: Task) -> None:
    with pytest.raises(ValueError, match="max_frames = 39"):
        make_env(max_frames=39).reset(task)
    with pytest.raises(ValueError, match="max_visual_tokens = 19"):
        make_env(max_visual_tokens=19).reset(task)


def test_tokens_are_counted_by_the_policys_geometry(make_env: MakeEnv, task: Task) -> None:
    env = make_env(geometry=VisionGeometry(temporal=1))
    env.reset(task)
    assert env.spent.visual_tokens == 40


def test_with_answer_as_the_only_tool_thinking_first_is_free(make_env: MakeEnv, task: Task, say: Say) -> None:
    env = make_env(of=get_preset("tiny-direct"))
    assert not env.reset(task).forced
    assert env.step(say("zoom_clip", start=1, end=2)).info.outcome == "unknown_tool"
    assert env.step(say("answer", choice="A", thought="3?")).terminated
