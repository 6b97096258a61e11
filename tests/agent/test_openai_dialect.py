"""The openai dialect: assistant messages as JSON, strictly read; and whole conversations as a server takes them."""

from __future__ import annotations

import json
import time
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from closeup.agent.acting import MEDIA_TOKENS
from closeup.agent.check import check_env
from closeup.agent.dialects.base import FormatError, FormatOutcome, ToolCall, View
from closeup.agent.dialects.openai import MAX_CHARS, OpenAIMessages, chat_messages, message_text
from closeup.agent.environment import VideoQAEnv
from closeup.agent.episode import run_episodes
from closeup.agent.messages import Message
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import get_preset
from closeup.agent.replay import replay
from closeup.agent.task import Task
from closeup.tools.registry import registered_tools
from closeup.tools.video.clip import Clip

DIALECT = OpenAIMessages()
CLIP = Clip(video="v", start=0, end=1, num_frames=2, pixels=784)
TOOLS = tuple(registered_tools(("zoom_clip", "answer")).values())


def call(name: Any = "zoom_clip", arguments: Any = '{"start": 1, "end": 2}', **more: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}} | more


def message(*calls: Any, content: Any = "late", **more: Any) -> str:
    return json.dumps({"role": "assistant", "content": content, "tool_calls": list(calls)} | more)


def fault(text: str) -> FormatError:
    action = DIALECT.parse(text).action
    assert isinstance(action, FormatError), f"read as {action}"
    assert len(action.message) > 20
    return action


@pytest.mark.parametrize(
    ("text", "thought", "expected"),
    [
        (message(call()), "late", ToolCall("zoom_clip", {"start": 1, "end": 2})),
        (f"\n {message(call(), content=None)} ", "", ToolCall("zoom_clip", {"start": 1, "end": 2})),
        (json.dumps({"tool_calls": [call("answer", '{"choice": "B"}')]}), "", ToolCall("answer", {"choice": "B"})),
        (message(call(arguments=" {} ")), "late", ToolCall("zoom_clip", {})),
    ],
)
def test_reads_one_call(text: str, thought: str, expected: ToolCall) -> None:
    parsed = DIALECT.parse(text)
    assert (parsed.thought, parsed.action) == (thought, expected)


@pytest.mark.parametrize(
    ("text", "outcome", "says"),
    [
        ("", "no_call", "no JSON object"),
        ("It is B.", "no_call", "no JSON object"),
        ("[1]", "no_call", "no JSON object"),
        (message(), "no_call", "missing or empty"),
        (json.dumps({"role": "assistant", "content": "B"}), "no_call", "missing or empty"),
        (message(call(), call()), "several_calls", "makes 2"),
        ("{'a': 1}", "broken_call", "not valid JSON"),
        (message(call()) + " there", "broken_call", "not valid JSON"),
        ('{"tool_calls": [], "tool_calls": []}', "broken_call", "stands twice"),
        (message(call(), role="user"), "broken_call", "content, role, tool_calls"),
        (message(call(), name="x"), "broken_call", "and this has content, name"),
        (message(call(), content=["late"]), "broken_call", "a text or null"),
        (json.dumps({"tool_calls": {"a": 1}}), "broken_call", "is a list"),
        (message("zoom_clip"), "broken_call", '"id", "type"'),
        (message(call(type="custom")), "broken_call", '"id", "type"'),
        (message({"type": "function", "function": {}}), "broken_call", '"id", "type"'),
        (message(call(id=" ")), "broken_call", "not empty"),
        (message(call(id=7)), "broken_call", "not empty"),
        (message(call(name=None)), "broken_call", '"name", a text'),
        (message(call(function="zoom_clip")), "broken_call", '"name", a text'),
        (message(call(arguments={"start": 1})), "broken_call", "not the object itself"),
        (message(call(arguments="{start: 1}")), "broken_call", '"arguments" cannot be read'),
        (message(call(arguments='{"start": NaN}')), "broken_call", "not a JSON number"),
        (message(call(arguments="[1, 2]")), "broken_call", "holds a JSON object"),
        ("{" + " " * MAX_CHARS, "unfinished", "longer"),
    ],
)
def test_every_fault_is_named_and_explained(text: str, outcome: str, says: str) -> None:
    error = fault(text)
    assert error.outcome == outcome
    assert says in error.message


@pytest.mark.parametrize("piece", ["{", '{"a":', "[", '"', "\\", "{}", "\n", "1"])
def test_the_longest_hostile_repetitions_are_read_in_no_time(piece: str) -> None:
    for start in ("{", '{"content": "', '{"tool_calls": ['):
        began = time.process_time()
        fault((start + piece * MAX_CHARS)[:MAX_CHARS])
        assert time.process_time() - began < 5


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab<>\"\\/é ", max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
arguments = st.dictionaries(st.text('ab<>"\\/é ', max_size=5), values, max_size=4)


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=30), st.sampled_from(["zoom_clip", "é"]), arguments)
def test_parse_inverts_write(thought: str, name: str, given_arguments: dict[str, Any]) -> None:
    written = DIALECT.write(thought, ToolCall(name, given_arguments))
    parsed = DIALECT.parse(written)
    assert (parsed.thought, parsed.action) == (thought.strip(), ToolCall(name, given_arguments))
    assert message_text(json.loads(written)) == written


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        DIALECT.write("", ToolCall("zoom_clip", {"start": float("nan")}))


def test_a_forced_prefix_can_only_become_an_answer() -> None:
    prefix = DIALECT.forced_prefix(TOOLS)
    parsed = DIALECT.parse(prefix + '\\"choice\\": \\"B\\"}"}}]}')
    assert parsed.action == ToolCall("answer", {"choice": "B"})


@given(st.lists(st.sampled_from(['"tool_calls"', '"', "tool_calls", " ", "a"])).map("".join))
def test_plain_text_holds_no_call(text: str) -> None:
    plain = DIALECT.plain(text)
    assert '"tool_calls"' not in plain and plain.replace(" ", "") == text.replace(" ", "")


def test_what_the_model_is_shown() -> None:
    view = View("Which?", overviews=(("", CLIP),), clips=(("Seen:", CLIP),), notice="Now.")
    assert DIALECT.start(view) == (Message.of("user", CLIP, "\nSeen:\n", CLIP, "\nWhich?\nNow."),)
    again = DIALECT.observe(View("Which?", news="no", new_clips=(("", CLIP),), notice="Now."))
    assert again == (Message.of("tool", CLIP, "\nno\nNow."),)
    assert DIALECT.observe(View("Which?")) == (Message.of("tool", "done"),)
    assert not DIALECT.rebuilds_context


# --- a conversation as a server takes it -----------------------------------------------------------------------------

SCRIPT = [
    message(call(arguments='{"start": 12, "end": 13}')),
    "no call at all",
    message(call(arguments='{"start": 12, "end": 13}')),
    message(call("answer", '{"choice": "B"}'), content=None),
]


def show(clip: Clip) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": f"clip:{clip.start:g}"}}]


@pytest.mark.parametrize("clips_in_tools", [True, False])
def test_every_call_is_answered_by_its_own_id(task: Task, clips_in_tools: bool) -> None:
    with VideoQAEnv(get_preset("openai")) as env:
        observation = env.reset(task)
        for text in SCRIPT[:3]:
            observation = env.step(text).observation
    made = chat_messages(observation.context, show=show, clips_in_tools=clips_in_tools)
    json.dumps(made)
    roles = [m["role"] for m in made]
    extra = [] if clips_in_tools else ["user"]
    assert roles == ["system", "user", "assistant", "tool", *extra, "assistant", "user", "assistant", "tool"]
    asked = [m["tool_calls"][0]["id"] for m in made if m.get("tool_calls")]
    assert asked == [m["tool_call_id"] for m in made if m["role"] == "tool"] and len(set(asked)) == 2
    assert "clip:12" in json.dumps(made[3] if clips_in_tools else made[4])
    assert all(part["type"] == "text" for m in made if m["role"] == "tool" for part in m["content"]) is (
        not clips_in_tools
    ), "OpenAI's own server takes text in a tool message"
    assert all(m["content"] for m in made if m["role"] != "assistant")
    broken = next(m for m in made if m["content"] == "no call at all")
    assert set(broken) == {"role", "content"}


def test_what_a_server_answers_is_the_text_of_a_step() -> None:
    answered = json.loads(message(call())) | {"refusal": None, "annotations": [], "audio": None, "function_call": None}
    assert DIALECT.parse(message_text(answered)).action == ToolCall("zoom_clip", {"start": 1, "end": 2})
    outcomes = {
        message_text({"role": "assistant", "content": "B"}): "no_call",
        message_text({"role": "assistant", "content": None, "tool_calls": [call(), call()]}): "several_calls",
        message_text({"role": "assistant", "content": "", "tool_calls": [call(arguments="{")]}): "broken_call",
    }
    assert [fault(text).outcome for text in outcomes] == list(outcomes.values())


# --- in the environment ----------------------------------------------------------------------------------------------

anything = st.text(st.characters(exclude_categories=()), max_size=40)
odd = st.sampled_from([None, 1, "", [], {}, "\ud800", "{", "NaN", {"a": 1}, [[1]]])
odd_calls = st.builds(
    lambda key, value: call() | {key: value}, st.sampled_from(["id", "type", "function", "x"]), odd
) | st.builds(lambda name, args: call(name, args), odd | st.just("answer"), odd | anything)
made_messages = (
    anything
    | st.lists(odd_calls, max_size=2).map(lambda calls: message(*calls))
    | st.builds(lambda key, value: message(call(), **{key: value}), st.sampled_from(["content", "role", "y"]), odd)
    | st.sampled_from([*SCRIPT, *MEDIA_TOKENS, message(call("answer", '{"choice": "Z"}'))])
    | st.builds(lambda text, at: text[: at % len(text)], st.sampled_from(SCRIPT), st.integers(0, 400))
)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(made_messages, st.sampled_from(["stop", "length"])), min_size=1, max_size=4))
@example([(message(call(arguments='{"start": ' + "9" * 39 + ', "end": 1}')), "stop")])
def test_hostile_messages(task: Task, episode: list[tuple[str, Any]]) -> None:
    with VideoQAEnv(get_preset("openai")) as env:
        env.reset(task)
        for text, finish in episode:
            result = env.step(text, finish=finish)
            assert result.info.outcome in get_args(FormatOutcome)
            assert (result.info.outcome == "ok") == (result.info.note == "")
            json.dumps(chat_messages(result.observation.context, show=show))
            if result.terminated or result.truncated:
                return
            (told,) = result.observation.messages
            assert told.role == "tool" and told.content


def test_an_episode_runs_and_replays(task: Task) -> None:
    (trajectory,) = run_episodes([task], ScriptedPolicy(SCRIPT), preset=get_preset("openai"))
    assert trajectory.outcome.correct
    assert [step.outcome for step in trajectory.steps] == ["ok", "no_call", "refused", "ok"]
    assert replay(trajectory).same
    check_env(lambda: VideoQAEnv(get_preset("openai")), task, messages=SCRIPT)


def test_the_prompt_shows_a_message_that_the_dialect_reads(task: Task) -> None:
    with VideoQAEnv(get_preset("openai")) as env:
        system = env.reset(task).context[0].text
    (shape,) = (line for line in system.splitlines() if line.startswith('{"role"'))
    parsed = DIALECT.parse(shape.replace("<name>", '"zoom_clip"'))
    assert parsed.action == ToolCall("zoom_clip", {"start": 1, "end": 2})
