"""`closeup ask` with scripted agents: what it prints, what it returns, what it saves."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from closeup.agent.episode import run_episodes
from closeup.agent.policies.base import Policy
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import get_preset
from closeup.agent.task import load_tasks
from closeup.agent.trajectory import read_trajectories
from closeup.app.terminal import View, printable, thinned, visible_thought

ZOOM = (
    "<think>orange is at 18s</think>\n<tool_call>\n"
    '{"name": "zoom_clip", "arguments": {"start": 18, "end": 21}}\n</tool_call>'
)
ANSWER = (
    "<think>orange 6, C</think>\n<tool_call>\n"
    '{"name": "answer", "arguments": {"choice": "C", "evidence": [[18, 21], [60, 61]]}}\n</tool_call>'
)
ASK = ("Which digit is in the orange box?", "--option", "5", "--option", "1", "--option", "6", "--option", "7")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Let `ask` and `eval` load a scripted agent instead of a model."""

    def use(*messages: str) -> None:
        def load(model: str, preset: object) -> Policy:
            return ScriptedPolicy(list(messages))

        monkeypatch.setattr("closeup.app.ask.open_policy", load)
        monkeypatch.setattr("closeup.app.evaluate.open_policy", load)

    return use


def test_json_is_one_object_and_nothing_else(cli, script, examples: Path) -> None:  # type: ignore[no-untyped-def]
    script(ZOOM, ANSWER)
    ran = cli("ask", examples / "digit.mp4", *ASK, "--preset", "tiny", "--json")
    assert ran.code == 0
    found = json.loads(ran.out)
    assert set(found) == {"answer", "choice", "evidence", "steps", "visual_tokens", "seconds"}
    assert (found["answer"], found["choice"], found["steps"]) == ("6", "C", 2)
    assert found["evidence"] == [[18.0, 21.0]]  # [60, 61] was never watched closely
    assert found["visual_tokens"] == 26 + 32
    assert found["seconds"] > 0


def test_no_answer_is_exit_code_1_and_still_one_object(cli, script, examples: Path) -> None:  # type: ignore[no-untyped-def]
    script("I do not know")
    ran = cli("ask", examples / "digit.mp4", *ASK, "--preset", "tiny", "--max-steps", "2", "--json")
    assert ran.code == 1
    found = json.loads(ran.out)
    assert found["answer"] is None and found["choice"] is None and found["evidence"] == []
    assert found["reason"]


def test_the_trajectory_is_saved_after_those_already_there(  # type: ignore[no-untyped-def]
    cli, script, examples: Path, tmp_path: Path
) -> None:
    script(ZOOM, ANSWER)
    file = tmp_path / "new" / "t.jsonl"
    for _ in range(2):
        assert cli("ask", examples / "digit.mp4", *ASK, "--preset", "tiny", "--save", file).code == 0
    first, second = read_trajectories(file)
    assert first.outcome.answer == "6"
    assert [step.text for step in first.steps] == [ZOOM, ANSWER]
    assert first.steps == tuple(
        step.model_copy(update={"generate_seconds": a.generate_seconds, "tool_seconds": a.tool_seconds})
        for step, a in zip(second.steps, first.steps, strict=True)
    )


def test_the_story_in_plain_lines(cli, script, examples: Path) -> None:  # type: ignore[no-untyped-def]
    script(ZOOM, "nonsense", ANSWER)
    ran = cli("ask", examples / "digit.mp4", *ASK, "--preset", "tiny")
    assert ran.code == 0
    for line in (
        "digit.mp4  1:16, 112x112, 10 fps, h264",
        "   C. 6",
        "1  orange is at 18s",
        "   zoom_clip(start=18, end=21)",
        "Answer  C. 6",
        "evidence  0:18–0:21",
    ):
        assert line in ran.out.splitlines(), ran.out
    assert "no_call" in ran.out and "█" in ran.out


def test_another_video_than_the_bundled_world_is_said_in_one_line(  # type: ignore[no-untyped-def]
    cli, script, examples: Path, make_video
) -> None:
    script(ANSWER)
    ran = cli("ask", make_video(seconds=20), *ASK, "--preset", "tiny", "--model", "tiny", "--json")
    assert ran.err.count("\n") == 1 and "bundled model knows only" in ran.err
    assert cli("ask", examples / "digit.mp4", *ASK, "--preset", "tiny", "--json").err == ""


def test_a_colour_terminal_shows_pictures_and_streams_the_thought(examples: Path) -> None:
    console = Console(file=StringIO(), force_terminal=True, color_system="truecolor", width=100)
    (task, *_) = load_tasks(examples / "tasks.jsonl")
    run_episodes([task], ScriptedPolicy([ZOOM, ANSWER]), preset=get_preset("tiny"), on_event=View(console))
    assert isinstance(console.file, StringIO)
    text = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())
    assert text.count("▀") > 6 * 14 * 6
    assert "orange is at 18s" in text
    assert "tool_call" not in text


def test_nothing_a_model_writes_steers_the_terminal(examples: Path) -> None:
    console = Console(file=StringIO(), force_terminal=True, color_system="truecolor", width=100)
    (task, *_) = load_tasks(examples / "tasks.jsonl")
    evil = ANSWER.replace("orange 6", "\x1b]0;owned\x07\x1b[2J [red]markup[/red]")
    run_episodes([task], ScriptedPolicy([evil]), preset=get_preset("tiny"), on_event=View(console))
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert "\x1b]0" not in text and "\x1b[2J" not in text and "[red]markup[/red]" in text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("<think>red is", "red is"),
        ("<think>red</think>\n<tool_call>{", "red"),
        ("<think>red</thi", "red"),
        ("<thi", ""),
        ("<tool_call>\n{", ""),
        ("plain words", "plain words"),
        ("a < b", "a < b"),
    ],
)
def test_only_the_thought_is_shown_while_it_is_written(raw: str, shown: str) -> None:
    assert visible_thought(raw) == shown


def test_control_characters_are_made_visible() -> None:
    assert printable("a\x1b[1mb\u202e\n") == "a\N{REPLACEMENT CHARACTER}[1mb\N{REPLACEMENT CHARACTER}\n"


def test_thinning_keeps_both_ends() -> None:
    assert thinned([0.0, 1.0, 2.0, 3.0, 4.0], 3) == [0.0, 2.0, 4.0]
    assert thinned([0.0, 1.0], 3) == [0.0, 1.0]
    assert thinned([5.0, 6.0], 1) == [5.0]


def test_a_torn_record_is_never_written_onto(cli, script, examples: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    script(ZOOM, ANSWER)
    kept = tmp_path / "runs.jsonl"
    assert cli("ask", examples / "digit.mp4", *ASK, "--preset", "tiny", "--save", kept).code == 0
    whole = kept.read_bytes()
    kept.write_bytes(whole.rstrip(b"\n"))  # whole, only without its end
    assert cli("ask", examples / "digit.mp4", *ASK, "--preset", "tiny", "--save", kept).code == 0
    assert len(list(read_trajectories(kept))) == 2
    kept.write_bytes(whole[:-200])
    ran = cli("ask", examples / "digit.mp4", *ASK, "--preset", "tiny", "--save", kept, "--json")
    assert (ran.code, ran.out) == (2, "") and "half a record" in ran.err
    assert kept.read_bytes() == whole[:-200]


def test_an_answer_that_cannot_be_saved_is_still_given(cli, script, examples: Path) -> None:  # type: ignore[no-untyped-def]
    script(ZOOM, ANSWER)
    ran = cli("ask", examples / "digit.mp4", *ASK, "--preset", "tiny", "--save", "/dev/full", "--json")
    assert ran.code == 2 and json.loads(ran.out)["answer"] == "6"
    assert "could not be saved to /dev/full" in ran.err and "report it" not in ran.err


def test_eval_says_what_is_no_part_of_the_accuracy(cli, script, examples: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    script(ZOOM, ANSWER)
    rows = [json.loads(line) for line in (examples / "tasks.jsonl").read_text().splitlines()[:1]]
    row = rows[0] | {"video": str(examples / rows[0]["video"])}
    page = tmp_path / "page.mp4"
    page.write_text("<html>404</html>")
    ungraded = {k: v for k, v in row.items() if k not in ("answer", "evidence")}
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(
        "\n".join(json.dumps(r | {"id": f"t{i}"}) for i, r in enumerate((row, ungraded, row | {"video": str(page)})))
    )
    ran = cli("eval", tasks, "--preset", "tiny", "--out", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["overall"]["n"] == 1
    assert "2 of 3 tasks are no part of the accuracy: 1 failed, 1 could not be judged" in ran.err
