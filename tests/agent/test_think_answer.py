"""The think_answer dialect and the presets of LongVILA-R1: one turn, a thought if there is one, and an answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from closeup.agent.acting import MEDIA_TOKENS
from closeup.agent.check import check_env
from closeup.agent.dialects import get_dialect
from closeup.agent.dialects.base import FormatError, FormatOutcome, ToolCall, View
from closeup.agent.dialects.think_answer import MAX_CHARS, ThinkAnswer
from closeup.agent.environment import VideoQAEnv
from closeup.agent.episode import run_episodes
from closeup.agent.messages import Message
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import get_preset
from closeup.agent.replay import replay
from closeup.agent.task import Task
from closeup.rl.reward_config import build_rewards
from closeup.tools.video.clip import Clip

DIALECT = ThinkAnswer()
CLIP = Clip(video="v", start=0, end=1, num_frames=2, pixels=784)


def fault(text: str) -> FormatError:
    action = DIALECT.parse(text).action
    assert isinstance(action, FormatError), f"read as {action}"
    assert len(action.message) > 20
    return action


@pytest.mark.parametrize(
    ("text", "thought", "arguments"),
    [
        ("<think>red at 12s</think>\n<answer>B</answer>", "red at 12s", {"choice": "B"}),
        (" <think>\nred\n</think><answer> b </answer>\n", "red", {"choice": "B"}),
        ("<answer>B</answer>", "", {"choice": "B"}),
        ("<think></think><answer>at the door</answer>", "", {"text": "at the door"}),
        ("<think>a <answer>A</answer> b</think><answer>B</answer>", "a <answer>A</answer> b", {"choice": "B"}),
    ],
)
def test_reads_an_answer_with_and_without_a_thought(text: str, thought: str, arguments: dict[str, str]) -> None:
    parsed = DIALECT.parse(text)
    assert (parsed.thought, parsed.action) == (thought, ToolCall("answer", arguments))


@pytest.mark.parametrize(
    ("text", "outcome", "says"),
    [
        ("", "no_call", "missing"),
        ("B", "no_call", "missing"),
        ("<think>hm", "no_call", "not closed"),
        ("<think>hm</think>B", "no_call", "missing"),
        ("<think><answer>B</answer></think>", "no_call", "inside the thought"),
        ("<answer>A</answer><answer>B</answer>", "several_calls", "gives 2"),
        ("It is <answer>B</answer>", "broken_call", "before"),
        ("<think>a</think> so <answer>B</answer>", "broken_call", "before"),
        ("<think>a</think><think>b</think><answer>B</answer>", "broken_call", "before"),
        ("<answer>B", "broken_call", "not closed"),
        ("<answer>B</answer> there", "broken_call", "after"),
        ("<answer> \n</answer>", "broken_call", "empty"),
        ("<answer><think>a</think>B</answer>", "broken_call", "tag"),
        ("x" * (MAX_CHARS + 1), "unfinished", "longer"),
    ],
)
def test_every_fault_is_named_and_explained(text: str, outcome: str, says: str) -> None:
    error = fault(text)
    assert error.outcome == outcome
    assert says in error.message


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<answer>", "</answer>", "<", "\n", " ", "a"])
def test_the_longest_hostile_repetitions_are_read_in_no_time(piece: str) -> None:
    for start in ("<answer>", "<think>", ""):
        began = time.process_time()
        fault((start + piece * MAX_CHARS)[:MAX_CHARS])
        assert time.process_time() - began < 5


texts = st.text(st.characters(exclude_characters="<", exclude_categories=("Cs",)), max_size=40)
calls = st.sampled_from("ABCXYZ").map(lambda letter: {"choice": letter}) | texts.map(str.strip).filter(
    lambda text: len(text) > 1
).map(lambda text: {"text": text})


@given(texts, calls)
def test_parse_inverts_write(thought: str, arguments: dict[str, str]) -> None:
    parsed = DIALECT.parse(DIALECT.write(thought, ToolCall("answer", arguments)))
    assert (parsed.thought, parsed.action) == (thought.strip(), ToolCall("answer", arguments))


def test_format_of_a_written_message() -> None:
    assert DIALECT.write("red", ToolCall("answer", {"choice": "B"})) == "<think>red</think>\n<answer>B</answer>"
    assert DIALECT.write("", ToolCall("answer", {"choice": "B"})) == "<answer>B</answer>"


@pytest.mark.parametrize(
    ("thought", "call", "says"),
    [
        ("</think>", ToolCall("answer", {"choice": "B"}), "tag"),
        ("", ToolCall("answer", {"text": "a</answer>"}), "tag"),
        ("", ToolCall("answer", {"choice": "B", "evidence": []}), "alone"),
        ("", ToolCall("zoom_clip", {"start": 1, "end": 2}), "no other call"),
    ],
)
def test_what_cannot_be_written_is_refused(thought: str, call: ToolCall, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DIALECT.write(thought, call)


@given(st.lists(st.sampled_from(["<", "/", "think>", "answer>", "</answer>", "<think>", "a", " "])).map("".join))
def test_plain_text_holds_no_tag_and_is_otherwise_untouched(text: str) -> None:
    plain = DIALECT.plain(text)
    assert not any(f"<{slash}{tag}>" in plain for slash in ("", "/") for tag in ("think", "answer"))
    assert plain.replace("< ", "<") == text.replace("< ", "<")
    assert DIALECT.plain(plain) == plain


def test_what_the_model_is_shown() -> None:
    view = View("Which?", overviews=(("", CLIP),), clips=(("Seen:", CLIP),), notice="Now.")
    assert DIALECT.start(view) == (Message.of("user", CLIP, "\nSeen:\n", CLIP, "\nWhich?\nNow."),)
    again = DIALECT.observe(View("Which?", news="Error: no", notice="Now."))
    assert again == (Message.of("user", "Error: no\nNow."),)
    assert DIALECT.forced_prefix(()) == "" and not DIALECT.rebuilds_context
    assert isinstance(get_dialect("think_answer"), ThinkAnswer)


# --- the presets -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def film(make_video: Callable[..., Path]) -> Task:
    path = make_video(seconds=20, size=(112, 112))
    return Task(id="film", videos=(path,), question="Which digit?", options=("3", "7"), answer="7")


@pytest.mark.parametrize("duration", [20.0, 3600.0])
def test_the_overview_is_512_frames_whatever_the_duration(duration: float) -> None:
    clip = get_preset("longvila_r1").overview.clip("film", duration)
    assert (len(clip.times()), clip.pixels, clip.overlay) == (512, 128 * 28 * 28, None)
    assert (clip.times()[0], clip.times()[-1]) == (0.0, duration)
    assert len(get_preset("longvila_r1").overview.clip("film", duration, share=2).times()) == 256


def test_the_limits() -> None:
    budget = get_preset("longvila_r1").budget
    assert (budget.max_steps, budget.max_frames, budget.max_new_tokens) == (1, 8192, 2048)
    assert budget.max_visual_tokens == 131_584, "512 frames of 257 tokens: the 132k of LOVE-R1's table"
    assert get_preset("longvila_r1").tools == ("answer",)


@pytest.mark.parametrize(("name", "asked"), [("longvila_r1", True), ("longvila_r1-direct", False)])
def test_thinking_is_asked_for_or_not(name: str, asked: bool, film: Task) -> None:
    with VideoQAEnv(get_preset(name)) as env:
        opened = env.reset(film)
        (message,) = opened.context
        assert ("<think>" in message.text) is asked
        assert "<answer>" in message.text and "A. 3\nB. 7\n" in message.text
        assert opened.forced and opened.assistant_prefix == "", "a forced answer may begin with a thought"


@pytest.mark.parametrize(
    ("message", "answer", "form"),
    [
        ("<think>red at 12s</think><answer>B</answer>", 1.0, 1.0),
        ("<think>red at 12s</think><answer>A</answer>", 0.0, 1.0),
        ("<answer>B</answer>", 1.0, 0.0),  # right, and not in its format: 0.9
        ("<think>red at 12s</think>B", 0.0, 0.0),
        ("B", 1.0, 0.0),  # read from the message itself
        ("<think>hm</think><answer>Q</answer>", 0.0, 1.0),  # its format does not ask whether there is such an option
    ],
)
def test_its_rewards(film: Task, message: str, answer: float, form: float) -> None:
    chosen = build_rewards("longvila_r1")
    assert dict(chosen.weights) == {"answer": 0.9, "format": 0.1} and chosen.scorers == ()
    (trajectory,) = run_episodes(
        [film], ScriptedPolicy([message]), preset=get_preset("longvila_r1"), rewards=chosen.immediate
    )
    (step,) = trajectory.steps
    assert step.rewards == {"answer": answer, "format": form}
    assert replay(trajectory, rewards=chosen.immediate).same


def test_the_direct_preset_wants_no_thought(film: Task) -> None:
    chosen = build_rewards("longvila_r1-direct")
    preset = get_preset("longvila_r1-direct")
    (trajectory,) = run_episodes(
        [film], ScriptedPolicy(["<answer>B</answer>"]), preset=preset, rewards=chosen.immediate
    )
    assert trajectory.steps[0].rewards == {"answer": 1.0, "format": 1.0}


@pytest.mark.parametrize("name", ["longvila_r1", "longvila_r1-direct"])
def test_the_environment_keeps_its_promises(name: str, film: Task) -> None:
    check_env(lambda: VideoQAEnv(get_preset(name)), film, messages=["<think>a</think><answer>B</answer>"])


# --- hostile messages ------------------------------------------------------------------------------------------------

anything = st.text(st.characters(exclude_categories=()), max_size=60)
pieces = st.sampled_from(("<think>", "</think>", "<answer>", "</answer>", "B", "Q", "\n", *MEDIA_TOKENS, "<", "\0"))
soup = st.lists(pieces | anything, max_size=10).map("".join)
whole = st.builds(
    "{}<answer>{}</answer>{}".format,
    st.sampled_from(("", "<think>a</think>", "<think>a", "so ")),
    st.sampled_from(("B", "Q", "", "7")) | anything,
    st.sampled_from(("", "", "x")),
)
messages = anything | soup | whole | st.builds("{}{}".format, whole, whole)
OUTCOMES = get_args(FormatOutcome)
relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def env() -> Any:
    preset = get_preset("longvila_r1")
    budget = preset.budget.model_copy(update={"max_steps": 3})
    with VideoQAEnv(preset.model_copy(update={"budget": budget})) as made:
        yield made


@settings(relaxed, max_examples=600, derandomize=True)
@given(episode=st.lists(st.tuples(messages, st.sampled_from(["stop", "length"])), min_size=1, max_size=3))
def test_hostile_messages(env: VideoQAEnv, film: Task, episode: list[tuple[str, Any]]) -> None:
    observation = env.reset(film)
    for text, finish in episode:
        result = env.step(text, finish=finish)
        info = result.info
        assert info.outcome in OUTCOMES and (info.outcome == "ok") == (info.note == "")
        assert not observation.forced or result.terminated or result.truncated
        observation = result.observation
        if result.terminated or result.truncated:
            return
        (told,) = observation.messages
        assert told.role == "user" and told.text == f"Error: {info.note}"


def test_the_fuzzing_reaches_every_outcome(env: VideoQAEnv, film: Task) -> None:
    seen: set[str] = set()

    @settings(relaxed, max_examples=500, derandomize=True, database=None)
    @given(message=messages, finish=st.sampled_from(["stop", "length"]))
    def collect(message: str, finish: Any) -> None:
        env.reset(film)
        seen.add(env.step(message, finish=finish).info.outcome)

    collect()
    # its one call always has a name and one text for an argument
    assert seen == set(OUTCOMES) - {"unknown_tool", "bad_arguments"}, f"seen: {sorted(seen)}"
