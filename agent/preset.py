"""`Preset`: one name for a dialect, a prompt set, an overview, budgets and tool rules, as recorded in every trajectory.

The numbers of a preset are data, not code: unreported frame and pixel settings are why results in this field do not
reproduce, so whatever was really used is written beside every answer.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from closeup.agent.budget import Budget
from closeup.tools.rules import ToolRules
from closeup.tools.video.clip import SWSCALE, Clip, Resizer


class PresetError(ValueError):
    """A preset that does not exist or cannot be read."""


class OverviewRule(BaseModel):
    """The dense low-resolution skim an episode opens with.

    Attributes:
        fps: frames per second, as long as they fit `max_frames`; else as many as fit, evenly.
        num_frames: this many frames from the first to the last instant, whatever the duration, instead of `fps`; all
            videos together.
        max_frames: most frames of the overview, all videos together.
        whole_seconds: choose the spacing so that every second frame falls on a whole second (readable time labels):
            pairs every `ceil(2 T / max_frames)` seconds.
        pixels: area of one frame in pixels.
        short_seconds: a video shorter than this has frames of `short_factor` times the area; 0: none has.
        mode: "exact" or "keyframe".
        overlay: drawing put on every frame.
        resizer: how frames get their size, here and in every clip of a tool: "bicubic" as the families' stock
            processors do it, "swscale-bilinear" the cheaper default (docs/video.md).
        show: "frames", or "blank": black frames at the same times, or "nothing". Closer looks are measured against the
            overview all the same. (To ask what a model knows without having seen the overview.)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fps: float = Field(default=2.0, gt=0)
    num_frames: int | None = Field(default=None, ge=1)
    max_frames: int = Field(default=768, ge=1)
    whole_seconds: bool = False
    pixels: int = Field(default=32 * 28 * 28, gt=0)
    short_seconds: float = Field(default=0.0, ge=0)
    short_factor: float = Field(default=2.0, ge=1)
    mode: Literal["exact", "keyframe"] = "exact"
    overlay: Literal["seconds"] | None = None
    resizer: Resizer = SWSCALE
    show: Literal["frames", "blank", "nothing"] = "frames"

    @model_validator(mode="after")
    def _consistent(self) -> OverviewRule:
        if self.num_frames is not None and self.whole_seconds:
            raise ValueError("whole_seconds chooses the spacing and num_frames the number of frames: give one of them")
        if self.num_frames is not None and self.num_frames > self.max_frames:
            raise ValueError(f"num_frames ({self.num_frames}) is above max_frames ({self.max_frames})")
        return self

    def clip(self, video: str, duration: float, *, share: int = 1) -> Clip:
        """The overview of a video of `duration` seconds, when `share` videos divide the frames."""
        frames = max(1, (self.num_frames or self.max_frames) // share)
        fps: float | None = self.fps
        if self.whole_seconds:
            fps = 2.0 / max(1, math.ceil(2 * duration / frames - 1e-6))
        if self.num_frames is not None:
            fps = None
        short = duration < self.short_seconds
        return Clip(
            video=video,
            start=0.0,
            end=duration,
            num_frames=frames if fps is None else None,
            fps=fps,
            max_frames=frames,
            mode=self.mode,
            pixels=round(self.pixels * self.short_factor) if short else self.pixels,
            overlay=self.overlay,
            resizer=self.resizer,
        )


class Preset(BaseModel):
    """Everything that shapes an episode besides the task and the model's weights.

    Attributes:
        dialect: name of the dialect; prompts: name of the prompt set (a folder of `closeup.prompts`).
        timestamps: how a frame's time reaches the model: "text" before each frame pair, or "position" (encoded in
            M-RoPE).
        tools: names of the tools in force; None = every registered tool.
        after_fault: what follows a message that could not be carried out. "tell": the model is told and goes on;
            "answer": the next message is the forced answer; "look_and_answer": the same, and when nothing was watched
            closely yet the whole first video is shown closely before it; "end": the episode ends.
        last_message: how the last of `budget.max_steps` messages is. "prefixed": only an answer is taken, and the
            dialect's prefix begins it; "asked": only an answer is taken; "free": like any other, and the episode is
            truncated when it is no answer.
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
    after_fault: Literal["tell", "answer", "look_and_answer", "end"] = "tell"
    last_message: Literal["prefixed", "asked", "free"] = "prefixed"


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

# LOVE-R1 (arXiv 2509.24786): "fast" is the overview, "slow" a close look, N patches of 28 x 28 pixels per frame. The
# numbers are its code's. Two looks of 32 frames beside 768 frames of overview are 12,288 + 2 x 4,096 visual tokens; the
# 16,384 that its tables name are the overview and one of them.
_LOVE_R1 = Preset(
    name="love_r1",
    dialect="love_r1",
    prompts="love_r1",
    timestamps="position",
    overview=OverviewRule(fps=2.0, max_frames=768, pixels=32 * 28 * 28, short_seconds=60, overlay="seconds"),
    budget=Budget(max_steps=3, max_frames=768 + 2 * 32, max_visual_tokens=20_480, max_new_tokens=2048),
    rules=ToolRules.love_r1_evaluation(),
    tools=("zoom_clip", "answer"),
    after_fault="look_and_answer",
)
_LOVE_R1_GRPO = _LOVE_R1.model_copy(
    update={
        "name": "love_r1-grpo",
        "budget": Budget(max_steps=2, max_frames=768 + 4 * 16, max_visual_tokens=20_480, max_new_tokens=512),
        "rules": ToolRules.love_r1(),
        "temperature": 0.9,
        "after_fault": "end",
        "last_message": "free",
    }
)

# LongVILA-R1 (arXiv 2507.07966): one turn over 512 evenly spread frames; 257 tokens a frame in its own tower.
_LONGVILA_R1 = Preset(
    name="longvila_r1",
    dialect="think_answer",
    prompts="longvila_r1",
    timestamps="position",
    overview=OverviewRule(num_frames=512, max_frames=8192, pixels=128 * 28 * 28),
    budget=Budget(
        max_steps=1,
        max_frames=8192,
        max_visual_tokens=512 * 257,
        max_context_tokens=512 * 257 + 2 * 2048,
        max_new_tokens=2048,
    ),
    tools=("answer",),
)

_ALL = (
    Preset(name="default", timestamps="position"),
    _TINY,
    _TINY.model_copy(update={"name": "tiny-direct", "tools": ("answer",)}),
    _LOVE_R1,
    _LOVE_R1.model_copy(
        update={
            "name": "love_r1-mlvu",
            "overview": _LOVE_R1.overview.model_copy(update={"max_frames": 384, "pixels": 64 * 28 * 28}),
        }
    ),
    _LOVE_R1.model_copy(
        update={
            "name": "love_r1-longvideobench",
            "rules": ToolRules.love_r1_evaluation(zoom_frames=16, widen_to_seconds=0),
        }
    ),
    _LOVE_R1_GRPO,
    _LOVE_R1_GRPO.model_copy(
        update={
            "name": "love_r1-grpo-grounding",  # one zoom, begun for the model with `love_r1.ZOOM_PREFIX`
            "budget": _LOVE_R1_GRPO.budget.model_copy(update={"max_steps": 1}),
        }
    ),
    _LONGVILA_R1,
    _LONGVILA_R1.model_copy(update={"name": "longvila_r1-direct", "prompts": "longvila_r1_direct"}),
)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}


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
