"""The hermes dialect: reads exactly one form, names every fault, and writes what it reads."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from closeup.agent.dialects import get_dialect
from closeup.agent.dialects.base import FormatError, ToolCall, View
from closeup.agent.dialects.diagnose import likely_call
from closeup.agent.dialects.hermes import MAX_CHARS, Hermes
from closeup.agent.messages import Message, TextPart
from closeup.tools.video.clip import Clip

DIALECT = Hermes()
CLIP = Clip(video="v", start=0, end=1, num_frames=2, pixels=784)
ZOOM = '{"name": "zoom_clip", "arguments": {"start": 12, "end": 13}}'


def fault(text: str) -> FormatError:
    action = DIALECT.parse(text).action
    assert isinstance(action, FormatError), f"read as {action}"
    assert len(action.message) > 10
    return action


@pytest.mark.parametrize(
    "text",
    [
        f"<think>red at 12s</think>\n<tool_call>\n{ZOOM}\n</tool_call>",
        f"  <think>\nred at 12s\n</think><tool_call>{ZOOM}</tool_call>\n\n",
    ],
)
def test_reads_a_thought_and_a_call(text: str) -> None:
    parsed = DIALECT.parse(text)
    assert parsed.thought == "red at 12s"
    assert parsed.action == ToolCall("zoom_clip", {"start": 12, "end": 13})


def test_the_thought_is_optional() -> None:
    parsed = DIALECT.parse(f"<tool_call>{ZOOM}</tool_call>")
    assert (parsed.thought, parsed.action) == ("", ToolCall("zoom_clip", {"start": 12, "end": 13}))


@pytest.mark.parametrize(
    ("text", "outcome", "says"),
    [
        ("", "no_call", "missing"),
        ("the answer is B", "no_call", "missing"),
        ("<think>hm", "no_call", "not closed"),
        ("<think>hm</think>", "no_call", "missing"),
        (f"<think><tool_call>{ZOOM}</tool_call></think>", "no_call", "inside the thought"),
        (f"<tool_call>{ZOOM}</tool_call>" * 2, "several_calls", "makes 2"),
        (f"<tool_call><tool_call>{ZOOM}</tool_call></tool_call>", "several_calls", "makes 2"),
        (f"<tool_call>{ZOOM}", "broken_call", "not closed"),
        (f"I zoom. <tool_call>{ZOOM}</tool_call>", "broken_call", "before"),
        (f"<think>a</think> so <tool_call>{ZOOM}</tool_call>", "broken_call", "before"),
        (f"<tool_call>{ZOOM}</tool_call> there", "broken_call", "after"),
        (f"<tool_call>{ZOOM}</tool_call></tool_call>", "broken_call", "after"),
        ("<tool_call></tool_call>", "broken_call", "not valid JSON"),
        ("<tool_call>zoom_clip(1, 2)</tool_call>", "broken_call", "not valid JSON"),
        ("<tool_call>{'name': 'answer', 'arguments': {}}</tool_call>", "broken_call", "not valid JSON"),
        (f"<tool_call>{ZOOM}{ZOOM}</tool_call>", "broken_call", "not valid JSON"),
        ('<tool_call>{"name": "a", "arguments": {"start": 1, "start": 2}}</tool_call>', "broken_call", "twice"),
        ('<tool_call>{"name": "a", "name": "b", "arguments": {}}</tool_call>', "broken_call", "twice"),
        ('<tool_call>{"name": "a", "arguments": {"start": NaN}}</tool_call>', "broken_call", "NaN"),
        ('<tool_call>{"name": "a", "arguments": {"start": -Infinity}}</tool_call>', "broken_call", "Infinity"),
        ('<tool_call>{"name": "a", "arguments": {"start": 1e999}}</tool_call>', "broken_call", "too large"),
        ('<tool_call>{"name": "a", "arguments": {"start": ' + "9" * 5000 + "}}</tool_call>", "broken_call", "digits"),
        ('<tool_call>{"name": "a", "arguments": {"t": "\\ud800"}}</tool_call>', "broken_call", "surrogate"),
        (
            '<tool_call>{"name": "a", "arguments": {"t": ' + "[" * 40 + "]" * 40 + "}}</tool_call>",
            "broken_call",
            "nested",
        ),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "broken_call", "nested"),
        ('<tool_call>{"name": "a"}</tool_call>', "broken_call", "keys"),
        ('<tool_call>{"name": "a", "arguments": {}, "id": 1}</tool_call>', "broken_call", "keys"),
        ("<tool_call>[1]</tool_call>", "broken_call", "keys"),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', "broken_call", "string"),
        ('<tool_call>{"name": "a", "arguments": "{}"}</tool_call>', "broken_call", "object"),
        ('<tool_call>{"name": "a", "arguments": null}</tool_call>', "broken_call", "object"),
        ("x" * (MAX_CHARS + 1), "unfinished", "longer"),
    ],
)
def test_every_fault_is_named_and_explained(text: str, outcome: str, says: str) -> None:
    error = fault(text)
    assert error.outcome == outcome
    assert says in error.message


def test_the_thought_of_a_broken_message_is_kept() -> None:
    assert DIALECT.parse("<think>red at 12s</think>\n<tool_call>{").thought == "red at 12s"


def test_json_repair_may_explain_and_never_accept() -> None:
    pytest.importorskip("json_repair", reason="the optional package json-repair is not installed")
    error = fault("<tool_call>{'name': 'answer', 'arguments': {'choice': 'B',}}</tool_call>")
    assert json.loads(error.hint) == {"name": "answer", "arguments": {"choice": "B"}}
    assert "choice" not in error.message, "what the model is told must not depend on an optional package"
    assert likely_call("{" * 100_000) == ""


@pytest.mark.parametrize(
    "piece",
    ["<think>", "</think>", "<tool_call>", "</tool_call>", '{"name":', "[", "\\", '"', "\n", "<", "{", '"a":[', " "],
)
def test_the_longest_hostile_repetitions_are_read_to_the_end(piece: str) -> None:
    for start in ("<tool_call>", "<think>", ""):
        fault((start + piece * MAX_CHARS)[:MAX_CHARS])


def test_format_of_a_written_call() -> None:
    call = ToolCall("answer", {"choice": "B", "evidence": [[12.0, 13.5]]})
    assert DIALECT.write("red 7, B", call) == (
        "<think>red 7, B</think>\n<tool_call>\n"
        '{"name": "answer", "arguments": {"choice": "B", "evidence": [[12, 13.5]]}}\n</tool_call>'
    )
    assert DIALECT.write("", call).startswith("<tool_call>\n")


def test_the_forced_prefix_begins_a_written_answer() -> None:
    assert DIALECT.write("", ToolCall("answer", {"choice": "B"})).startswith(DIALECT.forced_prefix(()))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
tagged = st.text() | st.sampled_from(["</tool_call>", "<tool_call>", "<think>x</think>", "</tool_response>", "\\u003c"])


@given(
    st.text(alphabet=st.characters(exclude_characters="<", exclude_categories=("Cs",))),
    tagged,
    st.dictionaries(tagged, values | tagged, max_size=4),
)
def test_parse_inverts_write(thought: str, name: str, arguments: dict[str, object]) -> None:
    parsed = DIALECT.parse(DIALECT.write(thought, ToolCall(name, arguments)))
    assert parsed.thought == thought.strip()
    assert parsed.action == ToolCall(name, arguments)


def test_a_thought_with_a_tag_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="tag"):
        DIALECT.write("</think><tool_call>", ToolCall("answer", {}))


@given(
    st.lists(st.sampled_from(["<", "/", "think>", "tool_call>", "tool_response>", "</tool_response>", "a", " "])).map(
        "".join
    )
)
def test_plain_text_holds_no_tag_and_is_otherwise_untouched(text: str) -> None:
    plain = DIALECT.plain(text)
    assert not any(f"<{slash}{tag}>" in plain for slash in ("", "/") for tag in ("think", "tool_call", "tool_response"))
    assert plain.replace("< ", "<") == text.replace("< ", "<")
    assert DIALECT.plain(plain) == plain


def test_an_episode_opens_with_clips_and_question() -> None:
    (message,) = DIALECT.start(View("Which?", overviews=(("", CLIP),), clips=(("Seen before:", CLIP),)))
    texts = [part.text if isinstance(part, TextPart) else "CLIP" for part in message.content]
    assert (message.role, texts) == ("user", ["CLIP", "\nSeen before:\n", "CLIP", "\nWhich?"])


def test_news_stand_in_a_tool_response() -> None:
    (shown,) = DIALECT.observe(View("Which?", new_clips=(("", CLIP),)))
    assert shown == Message.of("tool", "<tool_response>\n", CLIP, "\n</tool_response>")
    (said,) = DIALECT.observe(View("Which?", news="Error: no", forced=True, notice="Answer now."))
    assert said == Message.of("tool", "<tool_response>\nError: no\n</tool_response>\nAnswer now.")


def test_unknown_dialects_are_named() -> None:
    assert isinstance(get_dialect("hermes"), Hermes)
    with pytest.raises(ValueError, match="'herms'; did you mean 'hermes'"):
        get_dialect("herms")
