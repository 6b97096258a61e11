"""Prompt sets: complete, strict about values, deaf to template syntax in values, and fingerprinted."""

from __future__ import annotations

import subprocess
import sys

import jinja2
import pytest

from closeup import prompts

QUESTION = {"question": "Which digit is in the red box?", "options": []}
OPTIONS = [{"letter": letter, "text": text} for letter, text in zip("ABCD", "3719", strict=True)]


def test_every_set_has_every_template() -> None:
    known = "default internvl3 longvila_r1 longvila_r1_direct longvt love_r1 openai tiny video_r1"
    assert prompts.prompt_sets() == tuple(known.split())
    environment = prompts._environment()
    for name in prompts.prompt_sets():
        found = {t for t in environment.list_templates(["jinja"]) if t.startswith(f"{name}/")}
        assert found == {f"{name}/{template}.jinja" for template in prompts.TEMPLATES}


def test_the_tiny_question_is_text_and_lettered_lines() -> None:
    text = prompts.render("tiny", "question", question="Which digit is in the red box?", options=OPTIONS)
    assert text == "Which digit is in the red box?\nA. 3\nB. 7\nC. 1\nD. 9"
    assert prompts.render("tiny", "question", **QUESTION) == "Which digit is in the red box?"


def test_the_tiny_set_says_nothing_where_its_model_was_trained_on_nothing() -> None:
    values = {
        "video": 0,
        "videos": 1,
        "start": "0",
        "end": "9",
        "duration": "9",
        "frames": 4,
        "cues": [],
        "cues_left_out": 0,
    }
    assert prompts.render("tiny", "overview", **values) == prompts.render("tiny", "clip", **values) == ""
    system = {"tools": [], "looks": True, "timestamps": "text", "max_steps": 8, "max_frames": 9}
    assert prompts.render("tiny", "system", **system) == prompts.render("tiny", "forced") == ""


def test_the_default_system_prompt_names_tools_times_and_budget() -> None:
    text = prompts.render(
        "default", "system", tools=['{"name": "zoom"}'], looks=True, timestamps="text", max_steps=5, max_frames=77
    )
    assert '<tools>\n{"name": "zoom"}\n</tools>' in text
    for part in ("seconds", "5 messages", "77 frames", "<think>", "<tool_call>", "`answer`", "written before"):
        assert part in text
    without = prompts.render(
        "default", "system", tools=[], looks=False, timestamps="position", max_steps=5, max_frames=1
    )
    assert "written before" not in without and "closely" not in without


@pytest.mark.parametrize("name", ["default", "tiny"])
def test_subtitles_stand_with_their_times_and_the_left_out_are_counted(name: str) -> None:
    values = {"video": 1, "videos": 2, "start": "2", "end": "4", "duration": "2", "frames": 4, "cues_left_out": 0}
    cues = [{"start": "2", "end": "3", "text": "Hello"}, {"start": "3", "end": "3.5", "text": "there"}]
    text = prompts.render(name, "clip", cues=cues, **values)
    assert "[2 s to 3 s] Hello\n[3 s to 3.5 s] there" in text
    if name == "default":
        assert text.startswith("Video 1, 2 s to 4 s, 4 frames:")
        assert "7 more subtitles" in prompts.render(name, "overview", cues=cues, **(values | {"cues_left_out": 7}))


def test_a_missing_value_raises() -> None:
    with pytest.raises(jinja2.UndefinedError, match="options"):
        prompts.render("tiny", "question", question="Which?")


def test_template_syntax_in_a_value_is_text() -> None:
    hostile = "{{ 7 * 7 }}{% for x in y %}{# gone #}<b>&amp;"
    assert prompts.render("tiny", "question", question=hostile, options=[]) == hostile


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(prompts.PromptError, match="'nowhere'.*default, .*tiny"):
        prompts.render("nowhere", "question", **QUESTION)
    with pytest.raises(prompts.PromptError, match="'farewell'.*question"):
        prompts.render("tiny", "farewell")
    with pytest.raises(prompts.PromptError, match="'nowhere'"):
        prompts.fingerprint("nowhere")
    with pytest.raises(prompts.PromptError):
        prompts.render("../tiny", "question", **QUESTION)


def test_fingerprints_tell_sets_apart_and_are_the_same_in_every_process() -> None:
    here = [prompts.fingerprint(name) for name in prompts.prompt_sets()]
    assert len(set(here)) == len(here) and all(len(digest) == 16 for digest in here)
    code = "from closeup import prompts; print(*[prompts.fingerprint(n) for n in prompts.prompt_sets()])"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert there == here


def test_fingerprint_follows_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(templates: dict[str, str]) -> str:
        loader = jinja2.DictLoader(templates)
        monkeypatch.setattr(prompts, "_environment", lambda: jinja2.Environment(loader=loader))
        return prompts.fingerprint("a")

    one = {"a/x.jinja": "hello", "b/x.jinja": "other"}
    assert of(one) == of(one | {"b/x.jinja": "changed"})
    assert len({of(one), of(one | {"a/x.jinja": "hello "}), of({"a/y.jinja": "hello"})}) == 3
