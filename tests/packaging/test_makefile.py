"""The Makefile's promises: `make help` tells the truth, and `make ask` asks what the bundled example answers."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

TARGETS = {
    *("help", "ask", "demo", "setup", "tiny", "screenshots", "clean"),
    *("test", "test-slow", "test-distributed", "test-browser", "check", "lint", "types", "imports"),
}


def make(root: Path, *arguments: str) -> str:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # as if not below make
    done = subprocess.run(["make", *arguments], cwd=root, capture_output=True, text=True, timeout=60, env=outside)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_lists_the_targets_and_make_knows_each(root: Path) -> None:
    listed = [line.split()[1] for line in make(root, "help").splitlines() if line.startswith("  make ")]
    assert set(listed) >= TARGETS
    for target in listed:
        make(root, "--dry-run", target)


def test_targets_name_programs_that_exist(root: Path) -> None:
    """A target whose script is missing would be a promise; `make` itself cannot tell."""
    text = (root / "Makefile").read_text(encoding="utf-8")
    scripts = {word for word in text.split() if word.startswith("benchmarks/") and word.endswith(".py")}
    assert scripts
    missing = sorted(script for script in scripts if not (root / script).is_file())
    assert not missing, missing


def test_ask_asks_the_first_bundled_example(root: Path) -> None:
    tasks = (root / "app" / "examples" / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
    task = json.loads(tasks[0])
    show = 'show: ; @printf \'%s\\n\' "$(VIDEO)" "$(QUESTION)" "$(OPTIONS)"'
    video, question, options = make(root, f"--eval={show}", "show").splitlines()
    assert video == f"app/examples/{task['video']}"
    assert question == task["question"]
    assert shlex.split(options) == [part for option in task["options"] for part in ("--option", option)]


def test_ask_takes_another_video_without_the_examples_options(root: Path) -> None:
    planned = make(root, "--dry-run", "ask", "VIDEO=my film.mp4", 'QUESTION=Who\'s "there"?')
    assert "--option" not in planned
    assert '"$VIDEO" "$QUESTION"' in planned, "values reach the shell through the environment, never as shell text"
