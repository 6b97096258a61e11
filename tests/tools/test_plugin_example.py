"""The example plugin is installed as a user would install it, found, checked and used; in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "closeup-scene-cuts"
USE = """
import json, sys
from closeup.tools import ToolContext, ToolError, Video, run_tool, tool_entries

entry = tool_entries()["scene_cuts"]
with Video(sys.argv[1]) as video:
    context = ToolContext(videos=(video,))
    whole = run_tool(entry.tool, {"start": 0, "end": 8}, context).text
    part = run_tool(entry.tool, {"start": 4, "end": 5}, context).text
    try:
        run_tool(entry.tool, {"start": 4, "end": 50}, context)
        refused = ""
    except ToolError as error:
        refused = str(error)
origin = {"package": entry.package, "version": entry.version}
print(json.dumps({**origin, "whole": whole, "part": part, "refused": refused}))
"""
CHECK = """
from closeup.tools.testing import check_tool
from closeup_scene_cuts import SceneCuts
report = check_tool(SceneCuts, examples=[{"start": 0, "end": 8}, {"start": 2.5, "end": 3.5}], cases=60)
assert 0 < report.refused < 60
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugin installed in it, by pip, from a copy, with no network."""
    folder = tmp_path_factory.mktemp("plugin")
    source, target = folder / "source", folder / "site"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [*pip, "--disable-pip-version-check", "--target", str(target), str(source)],
        check=True, cwd=folder, timeout=240, env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"},
    )  # fmt: skip
    return target


def run(code: str, *arguments: str, site: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, cwd=site, timeout=240, env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_installed_plugin_is_found_and_finds_the_cuts(site: Path, sample_video: Path) -> None:
    said: dict[str, Any] = json.loads(run(USE, str(sample_video), site=site).splitlines()[-1])
    assert (said["package"], said["version"]) == ("closeup-scene-cuts", "0.1.0")
    assert said["whole"] == "scene cuts (seconds): 3.0, 5.5"
    assert said["part"] == "scene cuts (seconds): none"
    assert "past the video's end" in said["refused"]


def test_the_installed_plugin_keeps_a_tools_promises(site: Path) -> None:
    run(CHECK, site=site)


def test_the_command_line_lists_it_with_its_package(site: Path) -> None:
    said = run(
        "import sys; from closeup.app.cli import main; sys.argv = ['closeup', 'tools', '--json']; main()", site=site
    )
    rows = {row["function"]["name"]: row for row in json.loads(said)}
    assert rows["scene_cuts"]["package"] == "closeup-scene-cuts"
    assert rows["scene_cuts"]["function"]["parameters"]["required"] == ["start", "end"]
    assert rows["zoom_clip"]["package"] == "closeup"


def test_the_plugin_is_at_most_twenty_lines_of_python() -> None:
    lines = [line for module in EXAMPLE.glob("*.py") for line in module.read_text(encoding="utf-8").splitlines()]
    assert 10 <= len(lines) <= 20, "blank lines and docstrings counted"
