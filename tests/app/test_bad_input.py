"""Bad input: exit code 2, one clear sentence on standard error, nothing on standard output, before a model loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from closeup.app import ask, evaluate, setup
from closeup.app.errors import complain, guarded

QUESTION = "Which digit is in the orange box?"


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong here must be found without a model."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was loaded before the input was checked")

    for module in (ask, evaluate, setup):  # all imported by now: none may take another's `refuse` for the real one
        monkeypatch.setattr(module, "open_policy", refuse)


def refused(ran, *words: str) -> None:  # type: ignore[no-untyped-def]
    assert ran.code == 2, ran
    assert ran.out == ""
    assert ran.err.startswith("closeup: ")
    assert ran.err.count("\n") == 1, ran.err
    assert "Traceback" not in ran.err
    for word in words:
        assert word in ran.err, (word, ran.err)


@pytest.fixture
def film(examples: Path) -> Path:
    return examples / "digit.mp4"


def test_a_missing_video(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    refused(cli("ask", tmp_path / "nope.mp4", QUESTION), "nope.mp4")


def test_a_folder(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    refused(cli("ask", tmp_path, QUESTION), "folder")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.mp4", b""),
        ("page.mp4", b"<!doctype html><html><body>404 Not Found</body></html>" * 40),
        ("noise.mp4", bytes(range(256)) * 64),
    ],
)
def test_files_that_are_no_videos(cli, tmp_path: Path, name: str, content: bytes) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / name
    path.write_bytes(content)
    refused(cli("ask", path, QUESTION), name)


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:9/film.mp4", "file:///etc/passwd", "concat:a.mp4|b.mp4", "pipe:0", "rtsp://127.0.0.1/x"],
)
def test_addresses_are_not_files(cli, address: str) -> None:  # type: ignore[no-untyped-def]
    refused(cli("ask", address, QUESTION))


def test_a_pipe_does_not_hang(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "pipe.mp4"
    os.mkfifo(path)
    refused(cli("ask", path, QUESTION))


def test_an_empty_and_an_endless_question(cli, film: Path) -> None:  # type: ignore[no-untyped-def]
    refused(cli("ask", film, "  "), "empty")
    refused(cli("ask", film, "x" * 5000), "4000")


def test_options_that_leave_nothing_to_choose(cli, film: Path) -> None:  # type: ignore[no-untyped-def]
    refused(cli("ask", film, QUESTION, "--option", "5"), "two or more")
    refused(cli("ask", film, QUESTION, "--option", "5", "--option", "5"), "same text")
    refused(cli("ask", film, QUESTION, "--option", "5", "--option", ""), "empty")


def test_unknown_names(cli, film: Path) -> None:  # type: ignore[no-untyped-def]
    refused(cli("ask", film, QUESTION, "--preset", "nope"), "nope", "tiny")
    refused(cli("ask", film, QUESTION, "--model", "no/such/folder"), "no/such/folder")
    refused(cli("ask", film, QUESTION, "--model", "tiny", "--preset", "tiny", "--tools", "zoom"), "zoom_clip")


def test_bad_numbers_and_missing_arguments(cli, film: Path) -> None:  # type: ignore[no-untyped-def]
    refused(cli("ask", film, QUESTION, "--max-steps", "0"), "max-steps")
    refused(cli("ask", film, QUESTION, "--seed", "x"), "seed")
    refused(cli("ask", film), "question")
    refused(cli("nope"), "nope")


def test_subtitles_that_cannot_be_read(cli, film: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    refused(cli("ask", film, QUESTION, "--subtitles", tmp_path / "nope.srt"), "nope.srt")
    broken = tmp_path / "broken.srt"
    broken.write_text("1\n00:00:05,000 --> soon\nhello\n")
    refused(cli("ask", film, QUESTION, "--subtitles", broken), "broken.srt")


def test_a_place_that_cannot_be_saved_to(cli, film: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    refused(cli("ask", film, QUESTION, "--preset", "tiny", "--save", tmp_path), "folder")


def test_what_is_saved_never_lands_in_another_kind_of_file(  # type: ignore[no-untyped-def]
    cli, film: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "film.mp4"
    copy.write_bytes(film.read_bytes())
    refused(cli("ask", copy, QUESTION, "--preset", "tiny", "--save", copy), "film.mp4")
    assert copy.read_bytes() == film.read_bytes()


@pytest.mark.parametrize(
    ("preset", "word"),
    [
        ('{"name": "x", "dialect": "nope"}', "hermes"),
        ('{"name": "x", "prompts": "../default"}', "prompt set"),
        ('{"name": "x", "tools": ["zoom_clip"]}', "answer"),
        ('{"name": "x", "tools": ["zoom", "answer"]}', "zoom_clip"),
        ('{"name": "x", "budget": {"max_steps": 0}}', "max_steps"),
        ("\xff", "x.json"),
    ],
)
def test_presets_that_cannot_be_used(  # type: ignore[no-untyped-def]
    cli, film: Path, tmp_path: Path, preset: str, word: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(preset, encoding="latin-1")
    refused(cli("ask", film, QUESTION, "--preset", path), word)


def test_names_that_are_no_text_and_homes_of_nobody(cli, film: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    odd.write_bytes(film.read_bytes())
    refused(cli("ask", odd, QUESTION, "--preset", "tiny"), "UTF-8")
    refused(cli("ask", "~nobody-of-this-name/film.mp4", QUESTION))


def test_task_files(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    refused(cli("eval", tmp_path / "nope.jsonl"), "nope.jsonl", "closeup data needles")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "?", "video": "a.mp4"}\n{"question": 3}\n')
    refused(cli("eval", broken), "line 2")
    broken.write_text('{"question": "?", "video": "a.mp4"}\n')
    refused(cli("eval", broken, "--preset", "tiny"), "closeup data validate")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    refused(cli("eval", empty), "no task")


def test_trajectory_files(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    refused(cli("replay", tmp_path / "nope.jsonl"), "nope.jsonl")
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{}\n")
    refused(cli("replay", broken), "line 1")
    for version in ("99", "-3", '"1"', "9" * 5000):
        broken.write_text(f'{{"version": {version}}}\n')
        refused(cli("replay", broken), "line 1")


def test_needles_that_cannot_be_made(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    refused(cli("data", "needles", "--count", "1", "--seed", "1", "--out", tmp_path, "--seconds", "5"), "A:B")
    refused(cli("data", "needles", "--count", "1", "--seed", "1", "--out", tmp_path, "--seconds", "5:9"), "16:120")
    refused(cli("data", "needles", "--count", "0", "--seed", "1", "--out", tmp_path), "count")
    occupied = tmp_path / "file"
    occupied.write_text("")
    refused(cli("data", "needles", "--count", "1", "--seed", "1", "--out", occupied), "folder")


def test_nothing_heavy_is_loaded_to_refuse(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['closeup', 'ask', sys.argv[1], 'q']\n"
        "from closeup.app.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 2, end.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "nope.mp4")], check=True, capture_output=True, timeout=60
    )


def test_a_bug_is_a_sentence_with_the_way_to_see_more(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> int:
        raise ZeroDivisionError("oops")

    assert guarded(broken) == 70
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err and "CLOSEUP_TRACEBACK" in err and "Traceback (most" not in err


def test_an_interrupt_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert guarded(interrupted) == 130
    assert capsys.readouterr().err == "closeup: interrupted\n"


def test_a_complaint_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    complain("a\nb   c")
    assert capsys.readouterr().err == "closeup: a b c\n"


@pytest.mark.parametrize("address", ["http://example.org/film.mp4", "https://example.org/film.mp4"])
def test_an_address_is_called_one(cli, address: str) -> None:  # type: ignore[no-untyped-def]
    ran = cli("ask", address, "What happens?")
    assert (ran.code, ran.out) == (2, "") and "address" in ran.err and "download" in ran.err


def test_a_question_that_is_no_text_and_an_out_that_is_a_file(cli, examples: Path) -> None:  # type: ignore[no-untyped-def]
    ran = cli("ask", examples / "digit.mp4", "\udcff?")
    assert (ran.code, ran.out) == (2, "") and "question" in ran.err and "UTF-8" in ran.err
    ran = cli("eval", examples / "tasks.jsonl", "--out", examples / "digit.mp4")
    assert (ran.code, ran.out) == (2, "") and "--out takes a folder" in ran.err
