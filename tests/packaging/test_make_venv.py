"""`.ci/make-venv` on machines that lack something: one sentence with the remedy, and nothing left behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NEEDED = ("bash", "cat", "cksum", "dirname", "pwd", "rm", "env")


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Path:
    """A folder that looks like a checkout to the script, on a machine with no Python at all."""
    folder = tmp_path / "checkout"
    (folder / ".ci").mkdir(parents=True)
    shutil.copy(root / ".ci" / "make-venv", folder / ".ci" / "make-venv")
    shutil.copy(root / "pyproject.toml", folder / "pyproject.toml")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in NEEDED:
        found = shutil.which(name)
        assert found, name
        (programs / name).symlink_to(found)
    return folder


def program(folder: Path, name: str, text: str) -> None:
    """Put an executable shell script on the fake machine's path."""
    file = folder.parent / "bin" / name
    file.write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
    file.chmod(0o755)


def make_venv(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(folder.parent / "bin"), "LANG": "C.UTF-8", **variables}
    command = [str(folder / ".ci" / "make-venv"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def test_no_python(checkout: Path) -> None:
    done = make_venv(checkout, "base")
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stderr
    assert "apt install python3 python3-venv" in done.stderr
    assert not (checkout / ".venv").exists()


def test_an_old_python_is_passed_over(checkout: Path) -> None:
    program(checkout, "python3", 'if [ "$1" = --version ]; then echo "Python 3.9.2"; exit 0; fi; exit 1')
    done = make_venv(checkout, "base")
    assert done.returncode == 1
    assert "python3 is Python 3.9.2" in done.stderr


def test_a_python_that_was_asked_for_but_does_not_fit(checkout: Path) -> None:
    program(checkout, "mine", "exit 1")
    done = make_venv(checkout, "base", PYTHON="mine")
    assert done.returncode == 1
    assert "PYTHON=mine" in done.stderr


def test_debian_without_python3_venv(checkout: Path) -> None:
    program(checkout, "python3", f'case "$2" in *ensurepip*) exit 1;; esac; exec {sys.executable} "$@"')
    done = make_venv(checkout, "base")
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_failed_installation_leaves_no_stamp_and_says_so(checkout: Path) -> None:
    """The folder holds no package, so pip must fail: the next run has to try again."""
    program(checkout, "python3", f'exec {sys.executable} "$@"')
    (checkout / "pyproject.toml").write_text("this is not TOML", encoding="utf-8")
    done = make_venv(checkout, "base")
    assert done.returncode == 1
    assert "the installation failed" in done.stderr
    assert not list((checkout / ".venv").glob(".closeup-*"))


def test_an_unknown_part_is_refused(checkout: Path) -> None:
    done = make_venv(checkout, "everything")
    assert done.returncode == 2
    assert "'base', 'demo' or 'dev'" in done.stderr


def test_a_finished_part_is_not_installed_again(checkout: Path) -> None:
    """With a stand-in for the environment's Python that counts pip runs: one, none, and one again after a change."""
    runs = checkout.parent / "pip-runs"
    program(
        checkout,
        "python3",
        f'if [ "$2 $3" = "pip install" ]; then echo run >> {runs}; exit 0; fi; exec {sys.executable} "$@"',
    )
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(checkout.parent / "bin" / "python3")

    def count() -> int:
        return len(runs.read_text(encoding="utf-8").splitlines()) if runs.exists() else 0

    parts = [("base", 1), ("base", 1), ("demo", 2), ("base", 2), ("demo", 2), ("dev", 3), ("dev", 3), ("demo", 3)]
    for part, expected in [*parts, ("base", 3)]:
        done = make_venv(checkout, part)
        assert (done.returncode, count()) == (0, expected), (part, done.stderr)
    with (checkout / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("# a change\n")
    assert make_venv(checkout, "base").returncode == 0
    assert count() == 4
