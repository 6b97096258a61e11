"""Bad model output of every kind: no exception, a named outcome, and something helpful to read, every time.

The default run tries 1,500 episodes of hostile messages, `make test-slow` 12,000.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from closeup.agent.acting import MEDIA_TOKENS
from closeup.agent.budget import Budget
from closeup.agent.contract import StepResult
from closeup.agent.dialects.base import FormatOutcome
from closeup.agent.environment import VideoQAEnv
from closeup.agent.messages import Message
from closeup.agent.preset import Preset, get_preset
from closeup.agent.task import Task
from closeup.rl.rewards import DEFAULT_REWARDS

OUTCOMES = get_args(FormatOutcome)
TOOLS = ("zoom_clip", "resample_frames", "answer")
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>")
TOKENS = (*MEDIA_TOKENS, "<|im_start|>", "<|im_end|>", "<|endoftext|>")
KEYS = ("start", "end", "video", "fps", "num_frames", "choice", "text", "evidence", "extra", "")

anything = st.text(st.characters(exclude_categories=()), max_size=60)  # halves of surrogate pairs included
soup = st.lists(
    st.sampled_from((*TAGS, *TOKENS, "{", "}", '"', "\\", "[", "]", ",", ":", "1", "e", "\n", "\0")) | anything
)

odd_numbers = st.sampled_from(
    ["NaN", "-Infinity", "Infinity", "1e999", "-1e999", "1e308", "-0.0", "9" * 50, "9" * 5000, "1e-320", "007", "1."]
)
numbers = st.integers(-(10**30), 10**30).map(str) | st.floats(allow_nan=False, allow_infinity=False).map(json.dumps)
seconds = st.floats(-5, 30).map(json.dumps) | st.integers(-2, 25).map(str)
scalars = (
    odd_numbers | numbers | seconds | anything.map(json.dumps) | st.sampled_from(["null", "true", '"B"', '"\\ud800"'])
)
values = scalars | st.lists(st.lists(scalars, max_size=3).map(lambda v: f"[{','.join(v)}]"), max_size=10).map(
    lambda v: f"[{','.join(v)}]"
)
arguments = st.lists(st.tuples(st.sampled_from(KEYS).map(json.dumps), values), max_size=5).map(
    lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"  # keys may stand twice
)
names = st.sampled_from((*TOOLS, "zoom", "Answer", "zoom_clip ", "__class__", "", "\udfff")) | anything
bodies = st.builds(lambda name, args: f'{{"name": {json.dumps(name)}, "arguments": {args}}}', names, arguments)
windows = st.tuples(seconds, seconds).map(
    lambda pair: f'{{"name": "zoom_clip", "arguments": {{"start": {pair[0]}, "end": {pair[1]}}}}}'
)
sound = st.sampled_from(
    [
        '{"name": "zoom_clip", "arguments": {"start": 12, "end": 13}}',
        '{"name": "resample_frames", "arguments": {"start": 2, "end": 4, "num_frames": 7}}',
        '{"name": "answer", "arguments": {"choice": "B", "evidence": [[12, 14], [0, 0]]}}',
        '{"name": "zoom", "arguments": {}}',
    ]
)
calls = st.builds(
    lambda thought, body: f"{thought}<tool_call>\n{body}\n</tool_call>",
    st.sampled_from(["", "", "<think>hm</think>\n", "<think>hm</think>\n", "<think>hm", "I look. ", "</think>"]),
    sound | windows | bodies | values,
)
cut = st.builds(lambda text, where: text[: where % (len(text) + 1)], calls, st.integers(0, 400))
patched = st.builds(
    lambda text, where, piece: text[: where % (len(text) + 1)] + piece + text[where % (len(text) + 1) :],
    calls,
    st.integers(0, 400),
    st.sampled_from((*TAGS, *TOKENS, '"', "{", "}", ",", "\ud800", "//")),
)
two = st.builds("{}{}".format, calls, calls)
endless = st.builds(
    lambda piece, times: piece * times,
    st.sampled_from((*TAGS, *TOKENS, "word ", "[", '{"a":', "\n")),
    st.sampled_from([3, 500, 25_000]),
)
deep = st.builds(
    lambda count, mark: f'<tool_call>{{"name": "answer", "arguments": {{"x": {mark * count}',
    st.sampled_from([3, 20, 3000]),
    st.sampled_from("[{"),
)
messages = anything | soup.map("".join) | calls | cut | patched | two | endless | deep
episodes = st.lists(st.tuples(messages, st.sampled_from(["stop", "length"])), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def env(preset: Preset) -> Any:
    budget = preset.budget.model_copy(update={"max_steps": 3, "max_context_tokens": 100_000})
    with VideoQAEnv(preset.model_copy(update={"budget": budget}), rewards=DEFAULT_REWARDS) as made:
        yield made


def survives(env: VideoQAEnv, task: Task, episode: list[tuple[str, Any]]) -> None:
    """Play an episode of hostile messages and check everything that is promised of every step."""
    observation = env.reset(task)
    for text, finish in episode:
        result = env.step(text, finish=finish)
        check(env, result, forced=observation.forced)
        observation = result.observation
        if result.terminated or result.truncated:
            return


def check(env: VideoQAEnv, result: StepResult, *, forced: bool) -> None:
    info = result.info
    assert info.outcome in OUTCOMES
    assert (info.outcome == "ok") == (info.note == ""), "what went wrong is said, and only then"
    assert result.rewards.keys() == DEFAULT_REWARDS.keys()
    assert result.rewards["format"] == float(info.outcome == "ok")
    assert result.terminated == (info.answer is not None)
    assert not forced or result.terminated or result.truncated
    if info.outcome == "ok" and not result.terminated:
        assert info.clips
    if not result.terminated:
        (told,) = result.observation.messages
        assert told.role == "tool"
        assert told.text.startswith("<tool_response>\n") and told.text.endswith("\n</tool_response>")
        assert told.text.count("</tool_response>") == 1, "what the model wrote cannot close the response"
        if info.outcome != "ok":
            assert 40 < len(told.text) < 5000
    for message in (*result.observation.messages, Message.of("assistant", info.text)):
        assert Message.model_validate_json(message.model_dump_json()) == message
    if info.call is not None:
        json.dumps(info.call.arguments, ensure_ascii=False, allow_nan=False).encode()
    budget: Budget = env.preset.budget
    assert env.spent.frames <= budget.max_frames and env.spent.visual_tokens <= budget.max_visual_tokens
    for clip in info.clips:
        video = result.observation.videos[clip.video]
        assert 0 <= clip.start < clip.end <= video.duration


HUGE_INDEX = (
    f'<tool_call>{{"name": "zoom_clip", "arguments": {{"video": {"9" * 39}, "start": 0, "end": 1}}}}</tool_call>'
)
relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck))


@settings(relaxed, max_examples=1500, derandomize=True)
@given(episode=episodes)
@example(episode=[("\ud800", "stop"), ("<tool_call>" * 9000, "length")])
@example(episode=[('<tool_call>{"name": "answer", "arguments": {"choice": "\\ud83d"}}</tool_call>', "stop")])
@example(episode=[(HUGE_INDEX, "stop")])
def test_hostile_messages(env: VideoQAEnv, task: Task, episode: list[tuple[str, Any]]) -> None:
    survives(env, task, episode)


@pytest.mark.slow
@settings(relaxed, max_examples=12_000)
@given(episode=episodes)
def test_hostile_messages_many(env: VideoQAEnv, task: Task, episode: list[tuple[str, Any]]) -> None:
    survives(env, task, episode)


@settings(relaxed, max_examples=150, derandomize=True)
@given(episode=episodes, question=anything, options=st.lists(anything, max_size=4, unique=True))
def test_hostile_tasks_in_the_default_preset(
    task: Task, say: Callable[..., str], episode: list[tuple[str, Any]], question: str, options: list[str]
) -> None:
    asked = {"question": "?" + question.encode("utf-8", "replace").decode(), "answer": None, "evidence": ()}
    clean = tuple(dict.fromkeys(option.encode("utf-8", "replace").decode() for option in options))
    with VideoQAEnv(get_preset("default"), rewards=DEFAULT_REWARDS) as env:
        opened = env.reset(task.model_copy(update={**asked, "options": clean}))
        assert [message.role for message in opened.context] == ["system", "user"]
        for text, finish in episode:
            result = env.step(text, finish=finish)
            assert result.info.outcome in OUTCOMES
            if result.terminated or result.truncated:
                return
            roles = [message.role for message in result.observation.context]
            assert roles[1:] == ["user", *["assistant", "tool"] * ((len(roles) - 2) // 2)]


def test_the_fuzzing_reaches_every_outcome(env: VideoQAEnv, task: Task) -> None:
    seen: set[str] = set()

    @settings(relaxed, max_examples=700, derandomize=True, database=None)
    @given(message=messages, finish=st.sampled_from(["stop", "length"]))
    def collect(message: str, finish: Any) -> None:
        env.reset(task)
        seen.add(env.step(message, finish=finish).info.outcome)

    collect()
    assert seen == set(OUTCOMES), f"never seen: {sorted(set(OUTCOMES) - seen)}"
