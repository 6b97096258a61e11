"""What the repository promises about itself: links, extras, entry points, versions, sizes of files."""

from __future__ import annotations

import ast
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

import closeup
from closeup.extras import EXTRAS
from closeup.tools.registry import BUILTINS

ROOMS = ("agent", "app", "prompts", "rl", "tools")


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    """The parsed pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sources(root: Path) -> list[Path]:
    """Python files of the five rooms and of the package's root."""
    folders = [root / room for room in ROOMS] + [root / "src" / "closeup"]
    found = [file for folder in folders for file in folder.rglob("*.py")]
    assert len(found) > 50
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_linked_relatively(root: Path, room: str) -> None:
    link = root / "src" / "closeup" / room
    assert link.is_symlink()
    assert link.readlink() == Path("..", "..", room)
    assert (root / room).is_dir() and not (root / room).is_symlink()


def test_versions_agree(project: dict[str, Any]) -> None:
    assert project["project"]["version"] == closeup.__version__


def test_extras_are_those_the_code_can_name(project: dict[str, Any]) -> None:
    assert set(project["project"]["optional-dependencies"]) == set(EXTRAS)


def test_the_base_installs_nothing_that_pulls_another_torch(project: dict[str, Any]) -> None:
    base = project["project"]["dependencies"]
    assert "torch>=2.13,<2.14" in base
    assert not [need for need in base if need.startswith(("torchvision", "torchaudio", "torchcodec", "timm"))]


def test_built_in_tools_are_entry_points_too(project: dict[str, Any]) -> None:
    assert project["project"]["entry-points"]["closeup.tools"] == BUILTINS


def test_one_command_is_installed(project: dict[str, Any]) -> None:
    assert project["project"]["scripts"] == {"closeup": "closeup.app.cli:main"}


def test_no_file_is_two_ideas(sources: list[Path]) -> None:
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in sources}
    assert not {str(file): length for file, length in lengths.items() if length > 500}
    assert sorted(lengths.values())[len(lengths) // 2] < 200


def test_modules_state_their_design(sources: list[Path]) -> None:
    """Every module with code opens with a docstring."""
    silent = []
    for file in sources:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if tree.body and not ast.get_docstring(tree):
            silent.append(str(file))
    assert not silent, silent


def test_no_file_names_a_machine_or_a_package_index(root: Path) -> None:
    """Paths of somebody's machine, and hosts of package indexes, mean nothing to anybody else."""
    banned = [
        "/" + "work/",
        "/root" + "/",
        "pypi" + ".org",
        "files.python" + "hosted",
        "download.py" + "torch",
        "/opt/wh" + "eels",
    ]
    listed = subprocess.run(
        ["git", "grep", "-I", "-l", "-F", *[word for text in banned for word in ("-e", text)]],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if listed.returncode == 128:
        pytest.skip("needs a git checkout to tell the project's files from others")
    assert listed.stdout.split() == []
