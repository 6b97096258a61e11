"""Documents are kept true: their code runs, and what they name exists.

A block after the line `<!-- run -->` is executed in a folder that holds the bundled example videos: first a document's
shell blocks, in order, each of which stops at the first command that fails; then its Python blocks, as one program.
Everything else is checked by name.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "app" / "examples"
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
BLOCK = re.compile(r"(?P<run><!-- run -->\n+)?^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)[^)]*\)")
MODULE = re.compile(r"\bcloseup(?!\.json\b)(?:\.[a-z_][a-z0-9_]*)+(?:\.[A-Z]\w*)?")
ENTRY_POINT_GROUPS = {"closeup.rewards"}  # `closeup.tools` is one too, and a module
TARGET = re.compile(r"(?:^|`)make ([a-z][a-z-]*)", re.M)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: Path
    line: int
    language: str
    code: str
    run: bool


def blocks(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    return [
        Block(document, text.count("\n", 0, found.start("code")), found["language"], found["code"], bool(found["run"]))
        for found in BLOCK.finditer(text)
    ]


def name(value: Any) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder: the example videos under their names, and the commands of this environment."""
    for file in EXAMPLES.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


RUNNABLE = [document for document in DOCUMENTS if any(block.run for block in blocks(document))]


@pytest.mark.slow  # each command pays for a start of Python, torch and the model
@pytest.mark.parametrize("document", RUNNABLE, ids=name)
def test_marked_blocks_run(document: Path, folder: Path) -> None:
    marked = [block for block in blocks(document) if block.run]
    assert {block.language for block in marked} <= {"bash", "python"}, "a marked block is python or bash"
    for block in marked:
        if block.language == "bash":
            run(block, ["bash", "-euo", "pipefail", "-c", block.code], folder)
    lines: list[str] = []
    for block in marked:
        if block.language == "python":  # each at its own line, so that a traceback points into the document
            lines += [""] * (block.line - len(lines)) + block.code.splitlines()
    if lines:
        program = folder / f"{document.stem}_blocks.py"  # not "mcp.py": the program would import itself
        program.write_text("\n".join(lines) + "\n", encoding="utf-8")
        run(next(block for block in marked if block.language == "python"), [sys.executable, str(program)], folder)


def run(block: Block, command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{name(block.document)}:{block.line}\n{block.code}\n{done.stdout}\n{done.stderr}"


def test_the_transcript_in_the_readme_is_what_make_ask_shows(folder: Path) -> None:
    """The file, the question, the overview and the answer; a retrained model may think in other words."""
    (shown,) = re.findall(
        r"<!-- shown by: make ask -->\n```text\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S
    )
    task = json.loads((folder / "tasks.jsonl").read_text(encoding="utf-8").splitlines()[0])
    options = [part for option in task["options"] for part in ("--option", option)]
    done = subprocess.run(
        ["closeup", "ask", task["video"], task["question"], *options], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    real = done.stdout.splitlines()
    fixed = [line for line in shown.splitlines() if not re.match(r"\d  |   (0:00|\w+\()|evidence", line)]
    assert len(fixed) > 6
    assert [line for line in fixed if line not in real] == []
    assert f"Answer  {'ABCD'[task['options'].index(task['answer'])]}. {task['answer']}" in fixed


def test_the_readme_has_blocks_that_run() -> None:
    marked = [block.language for block in blocks(ROOT / "README.md") if block.run]
    assert {"bash", "python"} <= set(marked)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    missing = [
        link for link in LINK.findall(document.read_text(encoding="utf-8")) if not (document.parent / link).exists()
    ]
    assert not missing, missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_modules_and_names_exist(document: Path) -> None:
    missing = [dotted for dotted in sorted(set(MODULE.findall(document.read_text(encoding="utf-8")))) if absent(dotted)]
    assert not missing, missing


def absent(dotted: str) -> bool:
    """Whether `dotted` is neither a module of the package nor a name in one."""
    if dotted in ENTRY_POINT_GROUPS:
        return False
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return True
            found = getattr(found, part)
        return False
    return True


def test_the_architecture_page_shows_every_room_and_stays_one_page() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {link.name for link in (ROOT / "src" / "closeup").iterdir() if link.is_symlink()}
    assert rooms == {"agent", "app", "prompts", "rl", "tools"}
    assert all(f"`closeup.{room}`" in text for room in rooms)
    assert len(text.splitlines()) <= 80


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_make_targets_exist(document: Path) -> None:
    known = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = set(TARGET.findall(document.read_text(encoding="utf-8")))
    assert named <= known, sorted(named - known)


def commands(document: Path) -> list[list[str]]:
    """Every `closeup …` line of a document's shell blocks, split into words."""
    found = []
    for block in blocks(document):
        if block.language in ("bash", "sh", "console"):
            for line in block.code.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words[:1] == ["closeup"]:
                    found.append(words[1:])
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_commands_and_their_options_exist(document: Path) -> None:
    from closeup.app.cli import app

    for words in commands(document):
        command: Any = typer.main.get_command(app)
        rest = list(words)
        while rest and hasattr(command, "commands"):
            if rest[0].startswith("-"):
                break
            assert rest[0] in command.commands, f"closeup {shlex.join(words)}: there is no command {rest[0]!r}"
            command = command.commands[rest.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        unknown = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]
        assert not unknown, f"closeup {shlex.join(words)}: there is no {unknown}"


def test_the_readme_has_commands_to_check() -> None:
    assert {words[0] for words in commands(ROOT / "README.md")} >= {"ask", "eval", "replay", "tools", "data"}


def test_contributing_stays_short() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 60


@pytest.fixture(scope="module")
def results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_readme", ROOT / "benchmarks" / "readme.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_numbers_in_documents_are_committed_results(results: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert results.main(["--check"]) == 0, capsys.readouterr().err


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """A small repository with one result and one README."""
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    result = {"agent": {"accuracy": 0.914, "interval": [0.88, 0.94]}, "arms": [{"ratio": 2.25}]}
    (tmp_path / "benchmarks" / "results" / "tiny.json").write_text(json.dumps(result), encoding="utf-8")
    return tmp_path


def test_a_number_is_filled_in_and_a_stale_one_noticed(results: ModuleType, pages: Path) -> None:
    readme = pages / "README.md"
    readme.write_text(
        "# Measured results\nHere <!-- result tiny.json agent/accuracy percent -->80.0 %<!-- /result --> and "
        "<!-- result tiny.json arms/0/ratio times --><!-- /result -->, "
        "<!-- result tiny.json agent/interval interval --><!-- /result --> (95 %).\n",
        encoding="utf-8",
    )
    assert results.main(["--check"], pages) == 1
    assert results.main([], pages) == 0
    plain = re.sub(r"<!--.*?-->", "", readme.read_text(encoding="utf-8"))
    assert plain == "# Measured results\nHere 91.4 % and 2.2×, 88.0–94.0 % (95 %).\n"
    assert results.main(["--check"], pages) == 0


def test_a_whole_table_is_filled_in(results: ModuleType, pages: Path) -> None:
    table = {"columns": ["", "one"], "rows": [["speed", "yes"], ["size", 3]]}
    (pages / "benchmarks" / "results" / "families.json").write_text(json.dumps({"table": table}), encoding="utf-8")
    readme = pages / "README.md"
    text = "# Families\n<!-- result families.json table table -->| old |<!-- /result -->\n"
    readme.write_text(text, encoding="utf-8")
    assert results.main(["--check"], pages) == 1
    assert results.main([], pages) == 0
    expected = "# Families\n\n|  | one |\n| --- | --- |\n| speed | yes |\n| size | 3 |\n"
    assert re.sub(r"<!--.*?-->", "", readme.read_text(encoding="utf-8")).rstrip("\n") == expected.rstrip("\n")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("## Measured results\nIt reaches 97 % of them.\n## Next\n", "97 is no committed result"),
        ("<!-- result gone.json a percent -->1 %<!-- /result -->", "there is no benchmarks/results/gone.json"),
        ("<!-- result tiny.json agent/speed percent -->1 %<!-- /result -->", "'speed' is not among accuracy"),
        ("<!-- result tiny.json agent/accuracy stars -->1<!-- /result -->", "no format 'stars'"),
        ("<!-- result tiny.json agent percent -->1<!-- /result -->", "cannot be written as 'percent'"),
    ],
)
def test_an_unfounded_number_is_named(
    results: ModuleType, pages: Path, capsys: pytest.CaptureFixture[str], text: str, fault: str
) -> None:
    (pages / "README.md").write_text(text, encoding="utf-8")
    assert results.main(["--check"], pages) == 1
    assert fault in capsys.readouterr().err
