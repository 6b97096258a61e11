r"""The love_r1 dialect: reads two sentences and a box, names every fault, and writes what it reads."""

from __future__ import annotations

import re
import time
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from closeup.agent.acting import MEDIA_TOKENS
from closeup.agent.dialects import get_dialect
from closeup.agent.dialects.base import FormatError, FormatOutcome, ToolCall, View
from closeup.agent.dialects.love_r1 import ANSWER, ANSWER_PREFIX, MAX_CHARS, ZOOM, ZOOM_PREFIX, LoveR1
from closeup.agent.environment import VideoQAEnv
from closeup.agent.messages import Message, TextPart
from closeup.agent.preset import get_preset
from closeup.agent.task import Task
from closeup.tools.video.clip import Clip

DIALECT = LoveR1()
CLIP = Clip(video="v", start=0, end=60, num_frames=2, pixels=784)


def fault(text: str) -> FormatError:
    action = DIALECT.parse(text).action
    assert isinstance(action, FormatError), f"read as {action}"
    assert len(action.message) > 20
    return action


@pytest.mark.parametrize(
    ("text", "thought", "call"),
    [
        (
            f"{ZOOM_PREFIX}The scoreboard is too small.\n\\boxed{{[12, 18]}}",
            "The scoreboard is too small.",
            ToolCall("zoom_clip", {"start": 12, "end": 18}),
        ),
        (f"{ZOOM_PREFIX}\\boxed{{[12,18]}}", "", ToolCall("zoom_clip", {"start": 12, "end": 18})),
        (f"  {ZOOM} So: \\boxed{{ [ 0 , 7 ] }}\n", "So:", ToolCall("zoom_clip", {"start": 0, "end": 7})),
        (f"{ZOOM_PREFIX}\\boxed{{[-3, 7]}}", "", ToolCall("zoom_clip", {"start": -3, "end": 7})),
        (f"{ANSWER_PREFIX}Red comes first.\n\\boxed{{C}}", "Red comes first.", ToolCall("answer", {"choice": "C"})),
        (f"{ANSWER_PREFIX}\\boxed{{c}}", "", ToolCall("answer", {"choice": "C"})),
        (f"{ANSWER_PREFIX}\\boxed{{C. red}}", "", ToolCall("answer", {"text": "C. red"})),
        (f"{ANSWER_PREFIX}\\boxed{{[12, 18]}}", "", ToolCall("answer", {"text": "[12, 18]"})),
        (f"{ANSWER_PREFIX}\\boxed{{\\frac{{1}}{{2}}}}", "", ToolCall("answer", {"text": "\\frac{1}{2}"})),
        (f"{ANSWER_PREFIX}It is \\boxed{{C}}, at 9 s.", "It is\n, at 9 s.", ToolCall("answer", {"choice": "C"})),
    ],
)
def test_reads_a_sentence_a_thought_and_a_box(text: str, thought: str, call: ToolCall) -> None:
    parsed = DIALECT.parse(text)
    assert (parsed.thought, parsed.action) == (thought, call)


@pytest.mark.parametrize(
    ("text", "outcome", "says"),
    [
        ("", "no_call", "neither"),
        ("The answer is \\boxed{C}", "no_call", "neither"),
        ("I need to zoom in. \\boxed{[1, 2]}", "no_call", "neither"),
        (f"Hm. {ANSWER_PREFIX}\\boxed{{C}}", "no_call", "neither"),
        (f"{ZOOM_PREFIX}somewhere around 12", "broken_call", "whole seconds"),
        (f"{ANSWER_PREFIX}it is C", "broken_call", "no box"),
        (f"{ANSWER_PREFIX}\\boxed{{C", "broken_call", "not closed"),
        (f"{ANSWER_PREFIX}\\boxed{{\\text{{C}}", "broken_call", "not closed"),
        (f"{ANSWER_PREFIX}\\boxed{{ }}", "broken_call", "empty"),
        (f"{ZOOM_PREFIX}\\boxed{{C}}", "broken_call", "two whole numbers"),
        (f"{ZOOM_PREFIX}\\boxed{{[1.5, 3]}}", "broken_call", "two whole numbers"),
        (f"{ZOOM_PREFIX}\\boxed{{12, 18}}", "broken_call", "two whole numbers"),
        (f"{ZOOM_PREFIX}\\boxed{{[12]}}", "broken_call", "two whole numbers"),
        (f"{ZOOM_PREFIX}\\boxed{{[1, 2, 3]}}", "broken_call", "two whole numbers"),
        (f"{ZOOM_PREFIX}\\boxed{{[{'9' * 5000}, 3]}}", "broken_call", "two whole numbers"),
        (f"{ZOOM_PREFIX}\\boxed{{[0:12, 0:18]}}", "broken_call", "two whole numbers"),
        (f"{ZOOM_PREFIX}\\boxed{{[1, 2]}} or \\boxed{{[3, 4]}}", "several_calls", "2 boxes"),
        (f"{ZOOM_PREFIX}Hm.\n{ANSWER_PREFIX}\\boxed{{C}}", "several_calls", "second time"),
        (f"{ANSWER_PREFIX}{ANSWER_PREFIX}\\boxed{{C}}", "several_calls", "second time"),
        (ANSWER_PREFIX + "x" * MAX_CHARS, "unfinished", "longer"),
    ],
)
def test_every_fault_is_named_and_explained(text: str, outcome: str, says: str) -> None:
    error = fault(text)
    assert error.outcome == outcome
    assert says in error.message


@pytest.mark.parametrize("sentence", [ZOOM_PREFIX, ANSWER_PREFIX, ""])
@pytest.mark.parametrize("piece", ["\\boxed{", "{", "}", "\\", "\n", " ", "[", ANSWER, "\n" + ZOOM, "\\boxed", "1,"])
def test_the_longest_hostile_repetitions_are_read_in_no_time(sentence: str, piece: str) -> None:
    began = time.process_time()
    fault((sentence + piece * MAX_CHARS)[:MAX_CHARS])
    assert time.process_time() - began < 5


# --- writing ---------------------------------------------------------------------------------------------------------


def test_format_of_written_messages() -> None:
    zoom = DIALECT.write("Too small.", ToolCall("zoom_clip", {"start": 12.0, "end": 18}))
    assert zoom == "I need to zoom in on the video.\n\nToo small.\n\\boxed{[12, 18]}"
    assert DIALECT.write("", ToolCall("answer", {"choice": "C"})) == "I get the answer.\n\n\\boxed{C}"
    assert DIALECT.write("", ToolCall("answer", {"choice": "C"})).startswith(DIALECT.forced_prefix(()))
    assert zoom.startswith(ZOOM_PREFIX)


@pytest.mark.parametrize(
    ("thought", "call", "says"),
    [
        ("see \\boxed{C}", ToolCall("answer", {"choice": "C"}), "box"),
        (f"first\n{ANSWER}", ToolCall("answer", {"choice": "C"}), "begins as a step"),
        ("", ToolCall("zoom_clip", {"start": 1.5, "end": 3}), "whole seconds"),
        ("", ToolCall("zoom_clip", {"start": True, "end": 3}), "whole seconds"),
        ("", ToolCall("zoom_clip", {"start": 1, "end": float("nan")}), "whole seconds"),
        ("", ToolCall("zoom_clip", {"start": 1, "end": float("inf")}), "whole seconds"),
        ("", ToolCall("zoom_clip", {"start": 1}), "start and an end"),
        ("", ToolCall("zoom_clip", {"start": 1, "end": 3, "video": 1}), "first video"),
        ("", ToolCall("resample_frames", {"fps": 1}), "zoom_clip and answer"),
        ("", ToolCall("answer", {"choice": "C", "evidence": [[1, 2]]}), "alone"),
        ("", ToolCall("answer", {}), "alone"),
        ("", ToolCall("answer", {"text": "  "}), "not empty"),
        ("", ToolCall("answer", {"text": "a } b"}), "balanced"),
        ("", ToolCall("answer", {"text": "a { b"}), "balanced"),
        ("", ToolCall("answer", {"text": "\\boxed{C}"}), "no box"),
        ("", ToolCall("answer", {"text": f"a\n{ZOOM}"}), "no step"),
    ],
)
def test_what_cannot_be_written_is_refused(thought: str, call: ToolCall, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DIALECT.write(thought, call)


free_text = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
thoughts = free_text | st.lists(st.sampled_from(["I get", " the answer.", "\n", "{", "}", "\\", "boxed"])).map("".join)
zooms = st.builds(
    lambda start, end: ToolCall("zoom_clip", {"start": start, "end": end}),
    st.integers(-(10**9) + 1, 10**9 - 1),
    st.integers(-(10**9) + 1, 10**9 - 1),
)
answers = st.builds(lambda letter: ToolCall("answer", {"choice": letter}), st.sampled_from("ABCDEFXYZ")) | st.builds(
    lambda text: ToolCall("answer", {"text": text}), thoughts.map(str.strip).filter(lambda text: len(text) > 1)
)


@settings(deadline=None, max_examples=400)
@given(thoughts, zooms | answers)
def test_parse_inverts_write(thought: str, call: ToolCall) -> None:
    try:
        message = DIALECT.write(thought, call)
    except ValueError:  # it says why; the test above lists the reasons
        text = str(call.arguments.get("text", ""))
        told = thought + "\n" + text
        assert "boxed" in told or ANSWER in told or ZOOM in told or "{" in text or "}" in text
        return
    parsed = DIALECT.parse(message)
    assert (parsed.thought, parsed.action) == (thought.strip(), call)


@pytest.mark.parametrize(
    ("call", "options", "meant"),
    [
        ({"choice": "B"}, ("3", "7"), {"choice": "B"}),
        ({"choice": "B"}, (), {"text": "B"}),
        ({"text": "7"}, ("3", "7"), {"choice": "7"}),
        ({"text": "7"}, (), {"text": "7"}),
        ({"text": "(b)"}, ("3", "7"), {"choice": "B"}),
        ({"text": "B. seven"}, ("3", "7"), {"choice": "B"}),
        ({"text": "B) seven"}, ("3", "7"), {"choice": "B"}),
        ({"text": "B: seven"}, ("3", "7"), {"choice": "B"}),
        ({"text": "Bee"}, ("3", "7"), {"choice": "Bee"}),
        ({"text": "B. Smith"}, ("A. Jones", "B. Jones", "B. Smith"), {"choice": "B. Smith"}),
        ({"choice": "B", "evidence": []}, ("3", "7"), {"choice": "B", "evidence": []}),
        ({"choice": 3}, ("3", "7"), {"choice": 3}),
    ],
)
def test_the_task_says_whether_an_answer_is_a_choice_or_a_text(
    call: dict[str, Any], options: tuple[str, ...], meant: dict[str, Any]
) -> None:
    assert DIALECT.fit(ToolCall("answer", call), options) == ToolCall("answer", meant)
    assert DIALECT.fit(ToolCall("zoom_clip", call), options).arguments == call


# --- what the model is shown -----------------------------------------------------------------------------------------


def test_the_prompt_holds_the_video_the_clips_by_time_and_the_question() -> None:
    late, early = CLIP.model_copy(update={"start": 30.0}), CLIP.model_copy(update={"start": 5.0})
    view = View("Which?", overviews=(("Full:", CLIP),), clips=(("Late:", late), ("Early:", early)), news="Error: no")
    (message,) = DIALECT.observe(view)
    texts = [part.text if isinstance(part, TextPart) else part.clip.start for part in message.content]
    assert (message.role, texts) == (
        "user",
        ["Full:\n", 0.0, "\nEarly:\n", 5.0, "\nLate:\n", 30.0, "\nWhich?\nError: no"],
    )
    (forced,) = DIALECT.start(View("Which?", news="Error: no", forced=True, notice="Now."))
    assert forced == Message.of("user", "Which?\nNow."), "a forced answer is asked for as if nothing had gone wrong"


def test_clips_of_a_second_video_stand_after_those_of_the_first() -> None:
    other = CLIP.model_copy(update={"video": "w", "start": 1.0})
    first = CLIP.model_copy(update={"start": 9.0})
    view = View(
        "?", overviews=(("", CLIP), ("", CLIP.model_copy(update={"video": "w"}))), clips=(("", other), ("", first))
    )
    (message,) = DIALECT.start(view)
    assert [(clip.video, clip.start) for clip in message.clips] == [("v", 0), ("w", 0), ("v", 9), ("w", 1)]


@given(st.lists(st.sampled_from(["\\", "boxed", "{", "\\boxed{", "\\boxed {", "a", " "])).map("".join))
def test_plain_text_holds_no_box_and_is_otherwise_untouched(text: str) -> None:
    plain = DIALECT.plain(text)
    assert "\\boxed{" not in plain and not re.search(r"\\boxed\s*{", plain)
    assert plain.replace("\\ boxed", "\\boxed") == text.replace("\\ boxed", "\\boxed")
    assert DIALECT.plain(plain) == plain


def test_it_is_known_by_name() -> None:
    dialect = get_dialect("love_r1")
    assert isinstance(dialect, LoveR1) and dialect.rebuilds_context


# --- hostile messages ------------------------------------------------------------------------------------------------

anything = st.text(st.characters(exclude_categories=()), max_size=60)
pieces = st.sampled_from(
    (ZOOM, ANSWER, "\n\n", "\\boxed{", "}", "[", "]", ",", "1", "12", "C", "-", "9" * 50, "{", *MEDIA_TOKENS, " ", "\0")
)
soup = st.lists(pieces | anything, max_size=12).map("".join)
bodies = st.builds(
    lambda prefix, thought, content: f"{prefix}{thought}\\boxed{{{content}}}",
    st.sampled_from((ZOOM_PREFIX, ANSWER_PREFIX)),
    st.sampled_from(("", "Hm.\n", "{", "\ud800")),
    st.builds("[{}, {}]".format, st.sampled_from([-1, 0, 3, 12]), st.integers(-3, 25))
    | st.sampled_from("ABZ")
    | anything,
)
cut = st.builds(lambda text, at: text[: at % (len(text) + 1)], bodies, st.integers(0, 200))
endless = st.builds(lambda piece, times: ZOOM_PREFIX + piece * times, pieces, st.sampled_from([3, 500, 25_000]))
messages = anything | soup | bodies | cut | endless | st.builds("{}{}".format, bodies, bodies)
OUTCOMES = get_args(FormatOutcome)
relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def env() -> Any:
    preset = get_preset("love_r1").model_copy(update={"after_fault": "tell"})
    with VideoQAEnv(preset) as made:
        yield made


@settings(relaxed, max_examples=800, derandomize=True)
@given(episode=st.lists(st.tuples(messages, st.sampled_from(["stop", "length"])), min_size=1, max_size=3))
@example(episode=[(ZOOM_PREFIX + "\\boxed{[" + "9" * 9 + ", 3]}", "stop")])
def test_hostile_messages(env: VideoQAEnv, task: Task, episode: list[tuple[str, Any]]) -> None:
    observation = env.reset(task)
    for text, finish in episode:
        result = env.step(text, finish=finish)
        info = result.info
        assert info.outcome in OUTCOMES and (info.outcome == "ok") == (info.note == "")
        assert not observation.forced or result.terminated or result.truncated
        observation = result.observation
        if result.terminated or result.truncated:
            return
        roles = [message.role for message in observation.context]
        assert observation.rebuilt and roles == ["system", "user"], "what was said is not in the new prompt"
        told = observation.context[1].text
        assert observation.forced or info.outcome == "ok" or f"Error: {info.note}" in told


def test_the_fuzzing_reaches_every_outcome(env: VideoQAEnv, task: Task) -> None:
    seen: set[str] = set()

    @settings(relaxed, max_examples=700, derandomize=True, database=None)
    @given(message=messages, finish=st.sampled_from(["stop", "length"]))
    def collect(message: str, finish: Any) -> None:
        env.reset(task)
        seen.add(env.step(message, finish=finish).info.outcome)

    collect()
    # the dialect knows two tools, and only a preset without one of them could make it name an unknown tool
    assert seen == set(OUTCOMES) - {"unknown_tool"}, f"seen: {sorted(seen)}"
