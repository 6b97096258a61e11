"""closeup-scene-cuts: lists the scene cuts inside a window, found by how much neighbouring frames differ."""

import numpy as np

from closeup.tools import Tool, ToolContext, ToolResult
from closeup.tools.video.sampling import by_fps
from closeup.tools.windows import resolve_window
from closeup.tools.zoom_clip import ZoomArgs


class SceneCuts(Tool[ZoomArgs]):
    """List the scene cuts inside a window of the video."""

    def run(self, args: ZoomArgs, context: ToolContext) -> ToolResult:
        video, start, end = resolve_window(context, args.video, args.start, args.end)
        frames = video.frames(by_fps(start, end, fps=10, max_frames=1000), size=(36, 64))
        change = np.abs(np.diff(frames.pixels.astype(float), axis=0)).mean(axis=(1, 2, 3))
        cuts = [f"{time:.1f}" for time in frames.times[1:][change > 25]]
        return ToolResult(text=f"scene cuts (seconds): {', '.join(cuts) or 'none'}")
