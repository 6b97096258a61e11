"""`closeup.tools` works, not only imports, where torch cannot be imported; and importing it loads next to nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from closeup import tools

WORK = """
import sys
for name in ("torch", "transformers"):
    sys.modules[name] = None
from closeup.tools import ToolContext, Video, registered_tools, run_tool
with Video(sys.argv[1]) as video:
    context = ToolContext(videos=(video,))
    clip = run_tool(registered_tools()["zoom_clip"], {"start": 1, "end": 3}, context).clips[0]
    assert video.frames(clip).pixels.shape[0] == 16
assert sys.modules["torch"] is None
"""


def run(code: str, *arguments: str, cwd: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=cwd, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_tool_runs_on_a_video_without_torch(sample_video: Path, tmp_path: Path) -> None:
    run(WORK, str(sample_video), cwd=tmp_path)


def test_importing_the_room_loads_no_library(tmp_path: Path) -> None:
    heavy = ("torch", "numpy", "av", "pydantic", "importlib.metadata")
    run(
        f"import closeup.tools, sys; loaded = set({heavy!r}) & set(sys.modules); assert not loaded, loaded",
        cwd=tmp_path,
    )


@pytest.mark.parametrize("name", tools.__all__)
def test_every_name_of_the_room_is_there(name: str) -> None:
    assert getattr(tools, name).__name__ == name


def test_a_name_that_is_not_there_is_refused_with_the_list() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Toool'; it has: Answer, "):
        tools.Toool  # noqa: B018
