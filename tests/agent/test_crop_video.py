"""The crop_video dialect: reads a crop or an answer, names every fault, and writes what it reads."""

from __future__ import annotations

import json
import time
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from closeup import prompts
from closeup.agent.acting import MEDIA_TOKENS
from closeup.agent.check import check_env
from closeup.agent.dialects.base import FormatError, FormatOutcome, ToolCall, View
from closeup.agent.dialects.crop_video import MAX_CHARS, CropVideo
from closeup.agent.environment import VideoQAEnv
from closeup.agent.episode import run_episodes
from closeup.agent.messages import Message
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import get_preset
from closeup.agent.replay import replay
from closeup.agent.task import Task
from closeup.tools.video.clip import Clip

DIALECT = CropVideo()
CLIP = Clip(video="v", start=0, end=1, num_frames=2, pixels=784)


def crop(path: Any = "video_0.mp4", start: Any = 12, end: Any = 18, **more: Any) -> str:
    arguments = {"video_path": path, "start_time": start, "end_time": end} | more
    return f"<tool_call>{json.dumps({'name': 'crop_video', 'arguments': arguments})}</tool_call>"


def fault(text: str) -> FormatError:
    action = DIALECT.parse(text).action
    assert isinstance(action, FormatError), f"read as {action}"
    assert len(action.message) > 20
    return action


@pytest.mark.parametrize(
    ("text", "thought", "call"),
    [
        (f"<think>late</think>\n{crop()}", "late", ToolCall("zoom_clip", {"start": 12, "end": 18})),
        (crop(start=1.5, end=2.25), "", ToolCall("zoom_clip", {"start": 1.5, "end": 2.25})),
        (crop("/data/films/video_0.mp4"), "", ToolCall("zoom_clip", {"start": 12, "end": 18})),
        (crop("video_12.mp4"), "", ToolCall("zoom_clip", {"start": 12, "end": 18, "video": 12})),
        (crop(start=20, end=-3), "", ToolCall("zoom_clip", {"start": 20, "end": -3})),  # for the tool to refuse
        ("<think>\nlate\n</think><answer> b </answer>\n", "late", ToolCall("answer", {"choice": "B"})),
        ("<answer>at the door</answer>", "", ToolCall("answer", {"text": "at the door"})),
        (f"<think>a {crop()} b</think><answer>B</answer>", f"a {crop()} b", ToolCall("answer", {"choice": "B"})),
    ],
)
def test_reads_a_crop_or_an_answer(text: str, thought: str, call: ToolCall) -> None:
    parsed = DIALECT.parse(text)
    assert (parsed.thought, parsed.action) == (thought, call)


@pytest.mark.parametrize(
    ("text", "outcome", "says"),
    [
        ("", "no_call", "missing"),
        ("It is B.", "no_call", "missing"),
        ("<think>hm", "no_call", "not closed"),
        (f"<think>{crop()}</think>", "no_call", "inside the thought"),
        (crop() + crop(), "several_calls", "2 calls and 0 answers"),
        (crop() + "<answer>B</answer>", "several_calls", "1 calls and 1 answers"),
        ("<answer>A</answer><answer>B</answer>", "several_calls", "2 answers"),
        (f"I look: {crop()}", "broken_call", "stands before <tool_call>"),
        (f"{crop()} there", "broken_call", "stands after </tool_call>"),
        ("<answer>B</answer> there", "broken_call", "stands after </answer>"),
        (crop()[:-12], "broken_call", "not closed"),
        ("<answer>B", "broken_call", "not closed"),
        ("<answer> </answer>", "broken_call", "empty"),
        ("<answer><think>a</think>B</answer>", "broken_call", "tag"),
        ("<tool_call>{'name': 1}</tool_call>", "broken_call", "not valid JSON"),
        ('<tool_call>{"name": "crop_video"}</tool_call>', "broken_call", '"name" and "arguments"'),
        ('<tool_call>{"name": "crop_video", "arguments": "{}"}</tool_call>', "broken_call", "is an object"),
        ("<tool_call>[1]</tool_call>", "broken_call", "is an object"),
        (crop().replace("crop_video", "zoom_clip"), "unknown_tool", "'zoom_clip'; the tool is crop_video"),
        (crop(fps=2), "bad_arguments", "end_time, fps, start_time, video_path"),
        ('<tool_call>{"name": "crop_video", "arguments": {}}</tool_call>', "bad_arguments", "got nothing"),
        (crop("/etc/passwd"), "bad_arguments", "'/etc/passwd'"),
        (crop("video_0.mp4.exe"), "bad_arguments", "no video"),
        (crop("video_0000.mp4"), "bad_arguments", "no video"),
        (crop(3), "bad_arguments", "no video at 3"),
        (crop(start="12"), "bad_arguments", "start_time is a number"),
        (crop(end=True), "bad_arguments", "end_time is a number"),
        (crop(end=None), "bad_arguments", "end_time is a number"),
        ("<answer>" + "x" * MAX_CHARS, "unfinished", "longer"),
    ],
)
def test_every_fault_is_named_and_explained(text: str, outcome: str, says: str) -> None:
    error = fault(text)
    assert error.outcome == outcome
    assert says in error.message


@pytest.mark.parametrize("piece", ["<think>", "<answer>", "<tool_call>", "</tool_call>", "{", '{"a":', "<", "\n", "a"])
@pytest.mark.parametrize("start", ["", "<think>", "<tool_call>", "<answer>", crop()[:-40]])
def test_the_longest_hostile_repetitions_are_read_in_no_time(start: str, piece: str) -> None:
    began = time.process_time()
    fault((start + piece * MAX_CHARS)[:MAX_CHARS])
    assert time.process_time() - began < 5


texts = st.text(st.characters(exclude_characters="<", exclude_categories=("Cs",)), max_size=40)
seconds = st.integers(-5, 10**6) | st.floats(-5, 1e6)
windows = st.tuples(seconds, seconds, st.integers(0, 999)).map(
    lambda w: ToolCall("zoom_clip", {"start": w[0], "end": w[1]} | ({"video": w[2]} if w[2] else {}))
)
answers = st.sampled_from("ABCXYZ").map(lambda letter: {"choice": letter}) | texts.map(str.strip).filter(
    lambda text: len(text) > 1
).map(lambda text: {"text": text})


@given(texts, windows | answers.map(lambda arguments: ToolCall("answer", arguments)))
def test_parse_inverts_write(thought: str, call: ToolCall) -> None:
    parsed = DIALECT.parse(DIALECT.write(thought, call))
    assert (parsed.thought, parsed.action) == (thought.strip(), call)


@pytest.mark.parametrize(
    ("thought", "call", "says"),
    [
        ("</think>", ToolCall("answer", {"choice": "B"}), "tag"),
        ("<tool_call>", ToolCall("zoom_clip", {"start": 1, "end": 2}), "tag"),
        ("", ToolCall("answer", {"text": "a</answer>"}), "tag"),
        ("", ToolCall("answer", {"choice": "B", "evidence": []}), "alone"),
        ("", ToolCall("zoom_clip", {"start": "1", "end": 2}), "in seconds"),
        ("", ToolCall("zoom_clip", {"start": 1}), "in seconds"),
        ("", ToolCall("zoom_clip", {"start": 1, "end": 2, "video": 1000}), "0 to 999"),
        ("", ToolCall("resample_frames", {"start": 1, "end": 2}), "zoom_clip and answer"),
    ],
)
def test_what_cannot_be_written_is_refused(thought: str, call: ToolCall, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DIALECT.write(thought, call)


TAGS = ("think", "answer", "tool_call", "tool_response", "tools")


@given(st.lists(st.sampled_from([*(f"<{t}>" for t in TAGS), *(f"</{t}>" for t in TAGS), "<", "/", "a", " "])))
def test_plain_text_holds_no_tag_and_is_otherwise_untouched(parts: list[str]) -> None:
    text = "".join(parts)
    plain = DIALECT.plain(text)
    assert not any(f"<{slash}{tag}>" in plain for slash in ("", "/") for tag in TAGS)
    assert plain.replace("< ", "<") == text.replace("< ", "<") and DIALECT.plain(plain) == plain


def test_what_the_model_is_shown() -> None:
    view = View("Which?", overviews=(("", CLIP),), clips=(("Seen:", CLIP),), notice="Now.")
    assert DIALECT.start(view) == (Message.of("user", CLIP, "\nSeen:\n", CLIP, "\nWhich?\nNow."),)
    again = DIALECT.observe(View("Which?", news="no", new_clips=(("", CLIP),), notice="Now."))
    assert again == (Message.of("tool", "<tool_response>\nno\n", CLIP, "\n</tool_response>\nNow."),)
    assert DIALECT.forced_prefix(()) == "" and not DIALECT.rebuilds_context


def test_the_prompt_teaches_what_the_dialect_reads() -> None:
    values: dict[str, Any] = {"tools": [], "timestamps": "text", "max_steps": 6, "max_frames": 9, "overlay": None}
    system = prompts.render("longvt", "system", looks=True, **values)
    schema = json.loads(next(line for line in system.splitlines() if line.startswith('{"type"')))["function"]
    assert set(schema["parameters"]["required"]) == set(schema["parameters"]["properties"])
    for index, videos in ((0, 1), (2, 3)):
        asked = prompts.render("longvt", "question", question="?", options=[], kind="text", looks=True, videos=videos)
        path = f"video_{index}.mp4"
        assert path.replace("2", "K") in asked
        filled = {"video_path": path, "start_time": 1, "end_time": 2}
        assert set(filled) == set(schema["parameters"]["properties"])
        written = json.dumps({"name": schema["name"], "arguments": filled})
        parsed = DIALECT.parse(f"<think>a</think><tool_call>\n{written}\n</tool_call>").action
        assert isinstance(parsed, ToolCall) and parsed.arguments.get("video", 0) == index
    assert prompts.render("longvt", "system", looks=False, **values).strip() == ""


# --- in the environment ----------------------------------------------------------------------------------------------

anything = st.text(st.characters(exclude_categories=()), max_size=40)
pieces = st.sampled_from(
    (*(f"<{tag}>" for tag in TAGS), *(f"</{tag}>" for tag in TAGS), *MEDIA_TOKENS, crop(), crop(start=3, end=5))
    + (
        "<answer>B</answer>",
        "<answer>x</answer>",
        "{",
        '"',
        "\\",
        "\ud800",
        "\0",
        "video_0.mp4",
        crop("x"),
        crop(fps=1),
    )
)
messages = anything | st.lists(pieces | anything, max_size=5).map("".join)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(messages, st.sampled_from(["stop", "length"])), min_size=1, max_size=4))
@example([(crop(start=10**39, end=10**40), "stop"), (crop("video_999.mp4"), "stop")])
def test_hostile_messages(task: Task, episode: list[tuple[str, Any]]) -> None:
    with VideoQAEnv(get_preset("longvt")) as env:
        env.reset(task)
        for text, finish in episode:
            result = env.step(text, finish=finish)
            assert result.info.outcome in get_args(FormatOutcome)
            assert (result.info.outcome == "ok") == (result.info.note == "")
            if result.terminated or result.truncated:
                return
            (told,) = result.observation.messages
            assert told.role == "tool" and told.text.count("</tool_response>") == 1


def test_a_video_that_is_not_there_is_refused_by_the_tool(task: Task) -> None:
    with VideoQAEnv(get_preset("longvt")) as env:
        env.reset(task)
        info = env.step(crop("video_3.mp4")).info
        assert info.outcome == "refused" and "no video 3" in info.note


def test_an_episode_runs_and_replays(task: Task) -> None:
    script = [f"<think>Late.</think>{crop(start=10, end=15)}", "<think>A seven.</think><answer>B</answer>"]
    (trajectory,) = run_episodes([task], ScriptedPolicy(script), preset=get_preset("longvt"))
    assert trajectory.outcome.correct and [step.outcome for step in trajectory.steps] == ["ok", "ok"]
    assert trajectory.steps[0].call is not None and trajectory.steps[0].call.name == "zoom_clip"
    assert replay(trajectory).same
    check_env(lambda: VideoQAEnv(get_preset("longvt")), task, messages=script)
