"""The plain_answer dialect: a message is an answer, and a follow-up keeps what was said."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from closeup.agent.check import check_env
from closeup.agent.dialects.base import FormatError, FormatOutcome, ToolCall, View
from closeup.agent.dialects.plain_answer import MAX_CHARS, PlainAnswer
from closeup.agent.environment import VideoQAEnv
from closeup.agent.messages import Message
from closeup.agent.preset import get_preset
from closeup.agent.task import Task
from closeup.tools.video.clip import Clip

DIALECT = PlainAnswer()
CLIP = Clip(video="v", start=0, end=1, num_frames=2, pixels=784)


@pytest.mark.parametrize(
    ("text", "options", "arguments"),
    [
        ("B", ("3", "7"), {"choice": "B"}),
        (" b. 7\n", ("3", "7"), {"choice": "B"}),
        ("7", ("3", "7"), {"choice": "7"}),
        ("A man walks in.", (), {"text": "A man walks in."}),
        ("B", (), {"text": "B"}),
    ],
)
def test_a_message_is_an_answer(text: str, options: tuple[str, ...], arguments: dict[str, str]) -> None:
    action = DIALECT.parse(text).action
    assert isinstance(action, ToolCall)
    assert DIALECT.fit(action, options) == ToolCall("answer", arguments)


@pytest.mark.parametrize(("text", "outcome"), [("", "no_call"), (" \n", "no_call"), ("x" * 200_001, "unfinished")])
def test_what_is_no_answer_is_named(text: str, outcome: str) -> None:
    action = DIALECT.parse(text).action
    assert isinstance(action, FormatError) and action.outcome == outcome and len(action.message) > 20
    assert len(text) <= MAX_CHARS or outcome == "unfinished"


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=2, max_size=40).filter(lambda t: len(t.strip()) > 1))
def test_parse_inverts_write(text: str) -> None:
    call = ToolCall("answer", {"text": text.strip()})
    assert DIALECT.parse(DIALECT.write("", call)).action == call


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(ValueError, match="no thought"):
        DIALECT.write("hm", ToolCall("answer", {"choice": "B"}))
    with pytest.raises(ValueError, match="no other call"):
        DIALECT.write("", ToolCall("zoom_clip", {}))


def test_what_the_model_is_shown() -> None:
    view = View("Which?", overviews=(("", CLIP),), notice="Now.")
    assert DIALECT.start(view) == (Message.of("user", CLIP, "\nWhich?\nNow."),)
    assert DIALECT.observe(View("Which?", news="no", new_clips=(("", CLIP),))) == (Message.of("user", CLIP, "\nno"),)
    assert DIALECT.forced_prefix(()) == "" and not DIALECT.rebuilds_context


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.text(st.characters(exclude_categories=()), max_size=60), st.sampled_from(["stop", "length"]))
def test_hostile_messages(task: Task, text: str, finish: Any) -> None:
    with VideoQAEnv(get_preset("internvl3")) as env:
        env.reset(task)
        result = env.step(text, finish=finish)
        assert result.info.outcome in get_args(FormatOutcome) and (result.terminated or result.truncated)


def test_the_environment_keeps_its_promises(task: Task) -> None:
    check_env(lambda: VideoQAEnv(get_preset("internvl3")), task, messages=["B"])
