"""`Preset`: one name for a dialect, a prompt set, an overview, budgets and tool rules, as recorded in every trajectory.

The numbers of a preset are data, not code: unreported frame and pixel settings are why results in this field do not
reproduce, so whatever was really used is written beside every answer.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from closeup.agent.budget import Budget
from closeup.tools.rules import ToolRules
from closeup.tools.video.clip import Clip


class PresetError(ValueError):
    """A preset that does not exist or cannot be read."""


class OverviewRule(BaseModel):
    """The dense low-resolution skim an episode opens with.

    Attributes:
        fps: frames per second, as long as they fit `max_frames`; else as many as fit, evenly.
        max_frames: most frames of the overview, all videos together.
        whole_seconds: choose the spacing so that every second frame falls on a whole second (readable time labels):
            pairs every `ceil(2 T / max_frames)` seconds.
        pixels: area of one frame in pixels.
        mode: "exact" or "keyframe".
        overlay: drawing put on every frame.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fps: float = Field(default=2.0, gt=0)
    max_frames: int = Field(default=768, ge=1)
    whole_seconds: bool = False
    pixels: int = Field(default=32 * 28 * 28, gt=0)
    mode: Literal["exact", "keyframe"] = "exact"
    overlay: Literal["seconds"] | None = None

    def clip(self, video: str, duration: float, *, share: int = 1) -> Clip:
        """The overview of a video of `duration` seconds, when `share` videos divide the frames."""
        frames = max(1, self.max_frames // share)
        fps = self.fps
        if self.whole_seconds:
            fps = 2.0 / max(1, math.ceil(2 * duration / frames - 1e-6))
        return Clip(
            video=video,
            start=0.0,
            end=duration,
            fps=fps,
            max_frames=frames,
            mode=self.mode,
            pixels=self.pixels,
            overlay=self.overlay,
        )


class Preset(BaseModel):
    """Everything that shapes an episode besides the task and the model's weights.

    Attributes:
        dialect: name of the dialect; prompts: name of the prompt set (a folder of `closeup.prompts`).
        timestamps: how a frame's time reaches the model: "text" before each frame pair, or "position" (encoded in
            M-RoPE).
        tools: names of the tools in force; None = every registered tool.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dialect: str = "hermes"
    prompts: str = "default"
    timestamps: Literal["text", "position"] = "text"
    overview: OverviewRule = OverviewRule()
    budget: Budget = Budget()
    rules: ToolRules = ToolRules()
    tools: tuple[str, ...] | None = None
    temperature: float = Field(default=0.0, ge=0)


_TINY = Preset(
    name="tiny",
    prompts="tiny",
    timestamps="text",
    overview=OverviewRule(max_frames=64, whole_seconds=True, pixels=28 * 28),
    budget=Budget(max_steps=8, max_frames=256, max_visual_tokens=640, max_context_tokens=2048, max_new_tokens=96),
    rules=ToolRules(
        min_seconds=0.2,
        max_overlap=0.9,
        zoom_frames=4,
        zoom_pixels=112 * 112,
        resample_max_frames=64,
        skim_pixels=28 * 28,
    ),
    tools=("zoom_clip", "resample_frames", "answer"),
)

PRESETS: dict[str, Preset] = {
    "default": Preset(name="default", timestamps="position"),
    "tiny": _TINY,
    "tiny-direct": _TINY.model_copy(update={"name": "tiny-direct", "tools": ("answer",)}),
}


def get_preset(name: str) -> Preset:
    """A preset by name, or from a JSON file by path. Raises `PresetError` naming what is accepted."""
    if name in PRESETS:
        return PRESETS[name]
    if name.endswith(".json"):
        try:
            return Preset.model_validate_json(Path(name).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise PresetError(f"cannot read the preset file {name}: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(p) for p in first["loc"])
            raise PresetError(f"{name} is not a preset: {where}: {first['msg']}") from None
    raise PresetError(f"no preset {name!r}; accepted: {', '.join(sorted(PRESETS))}, or the path of a .json preset")
