from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from closeup.tools.base import ToolContext
from closeup.tools.rules import ToolRules
from closeup.tools.sample_video import write_sample_video
from closeup.tools.video.clip import Clip


@dataclass(frozen=True)
class FakeVideo:
    """What the window tools read of a video, without a file."""

    identity: str = "film"
    duration: float = 120.0
    fps: float = 25.0


@pytest.fixture(scope="session")
def sample_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds at 10 frames per second, 128x96, scene cuts at 3.0 and 5.5 seconds."""
    return write_sample_video(tmp_path_factory.mktemp("sample") / "sample.mp4")


@pytest.fixture(scope="session")
def context_of() -> Any:
    """Build a context over a `FakeVideo` with a 2 fps overview of 28x28 pixels, and clips seen since."""

    def build(*later: Clip, duration: float = 120.0, fps: float = 25.0, **changes: Any) -> ToolContext:
        video: Any = FakeVideo(duration=duration, fps=fps)
        overview = Clip(video="film", start=0, end=duration, fps=0.5, pixels=784)
        settings: dict[str, Any] = {"videos": (video,), "seen": (overview, *later)}
        settings["rules"] = ToolRules(zoom_frames=4, zoom_pixels=112 * 112, skim_pixels=784, resample_max_frames=64)
        return ToolContext(**(settings | changes))

    return build
