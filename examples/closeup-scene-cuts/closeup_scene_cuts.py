"""closeup-scene-cuts: lists the scene cuts inside a window, found by how much neighbouring frames differ."""

import numpy as np
from pydantic import Field

from closeup.tools import Tool, ToolArgs, ToolContext, ToolResult
from closeup.tools.video.sampling import by_fps
from closeup.tools.windows import resolve_window


class CutArgs(ToolArgs):
    start: float = Field(ge=0, description="start of the window, in seconds")
    end: float = Field(ge=0, description="end of the window, in seconds")


class SceneCuts(Tool[CutArgs]):
    """List the scene cuts inside a window of the video."""

    def run(self, args: CutArgs, context: ToolContext) -> ToolResult:
        video, start, end = resolve_window(context, 0, args.start, args.end)
        frames = video.frames(by_fps(start, end, fps=10, max_frames=1000), size=(36, 64))
        change = np.abs(np.diff(frames.pixels.astype(float), axis=0)).mean(axis=(1, 2, 3))
        cuts = [f"{time:.1f}" for time in frames.times[1:][change > 25]]
        return ToolResult(text=f"scene cuts (seconds): {', '.join(cuts) or 'none'}")
