"""`Preset`: one name for a dialect, a prompt set, an overview, budgets and tool rules, as recorded in every trajectory.

The numbers of a preset are data, not code: unreported frame and pixel settings are why results in this field do not
reproduce, so whatever was really used is written beside every answer. The presets there are: `closeup.agent.preset`.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from closeup.agent.budget import LABEL_TOKENS, Budget
from closeup.tools.rules import ToolRules
from closeup.tools.video.clip import MAX_FRAMES, SWSCALE, Clip, Resizer
from closeup.tools.video.sampling import Placement, frame_count

PATCH = 28 * 28
"""Pixels of one patch in the papers' words: two by two of Qwen2-VL's patches, one token of a frame pair."""


class OverviewRule(BaseModel):
    """The dense low-resolution skim an episode opens with.

    Attributes:
        fps: frames per second, as long as they fit `max_frames`; else as many as fit, evenly.
        num_frames: this many frames from the first to the last instant, whatever the duration, instead of `fps`; all
            videos together.
        max_frames: most frames of the overview, all videos together.
        placement: where the frames lie that `num_frames` or `fps` gives (`Clip.placement`). With `fps` and without a
            placement there is a frame every `1/fps` seconds from the start on; with one, as many as whole frames fit,
            spread anew ("ends" is the field's `linspace(0, last, min(int(fps * T), max_frames))`).
        bound: the part of a video that is shown, from and to (seconds); None: all of it. An end past the video's end is
            cut there.
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
    num_frames: int | None = Field(default=None, ge=1, le=MAX_FRAMES)
    max_frames: int = Field(default=768, ge=1, le=MAX_FRAMES)
    placement: Placement | None = None
    bound: tuple[float, float] | None = None
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
        if self.placement is not None and self.whole_seconds:
            raise ValueError("whole_seconds chooses the spacing and placement another one: give one of them")
        if self.bound is not None and not 0 <= self.bound[0] < self.bound[1] < math.inf:
            raise ValueError(f"bound is two times in seconds, 0 <= start < end, got {list(self.bound)}")
        return self

    def clip(self, video: str, duration: float, *, share: int = 1) -> Clip:
        """The overview of a video of `duration` seconds, when `share` videos divide the frames.

        Raises:
            ValueError: `bound` begins after the video's end.
        """
        start, end = self.bound or (0.0, duration)
        if start >= duration > 0:
            raise ValueError(
                f"the overview's bound is {start:g} s to {end:g} s, and the video lasts {duration:g} s; give a bound"
                " that begins inside it"
            )
        end = min(end, duration)
        frames = max(1, (self.num_frames or self.max_frames) // share)
        fps: float | None = self.fps
        if self.whole_seconds:
            fps = 2.0 / max(1, math.ceil(2 * (end - start) / frames - 1e-6))
        elif self.num_frames is not None:
            fps = None
        elif self.placement is not None:
            fps, frames = None, frame_count(end - start, self.fps, max_frames=frames, whole=True)
        short = duration < self.short_seconds
        return Clip(
            video=video,
            start=start,
            end=end,
            num_frames=frames if fps is None else None,
            fps=fps,
            max_frames=frames,
            placement=self.placement or "ends",
            mode=self.mode,
            pixels=round(self.pixels * self.short_factor) if short else self.pixels,
            overlay=self.overlay,
            resizer=self.resizer,
        )


class Preset(BaseModel):
    """Everything that shapes an episode besides the task and the model's weights.

    Attributes:
        dialect: name of the dialect; prompts: name of the prompt set (a folder of `closeup.prompts`).
        timestamps: how a frame's time reaches the model: "native", the family's own way; "text" before each frame
            pair; or "position" (encoded in M-RoPE).
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
    timestamps: Literal["native", "text", "position"] = "native"
    overview: OverviewRule = OverviewRule()
    budget: Budget = Budget()
    rules: ToolRules = ToolRules()
    tools: tuple[str, ...] | None = None
    temperature: float = Field(default=0.0, ge=0)
    after_fault: Literal["tell", "answer", "look_and_answer", "end"] = "tell"
    last_message: Literal["prefixed", "asked", "free"] = "prefixed"

    def showing(
        self, *, fps: float | None = None, frames: int | None = None, bound: tuple[float, float] | None = None
    ) -> Preset:
        """This preset with another overview; its limits on frames and tokens grow by what a larger one may take.

        Args:
            fps: frames per second, as many as fit `max_frames`, or `frames` if that is given too.
            frames: so many frames whatever the duration; with `fps` at most so many.
            bound: only this part of a video, from and to (seconds).

        Raises:
            ValueError: values that no overview can have (pydantic's `ValidationError` is one).
        """
        old, changes = self.overview, dict[str, object]()
        if fps is not None or frames is not None:
            changes |= {"whole_seconds": False, "num_frames": frames if fps is None else None}
            changes["max_frames"] = frames if fps is not None and frames else max(old.max_frames, frames or 0)
        if fps is not None:
            changes["fps"] = fps
        if bound is not None:
            changes["bound"] = bound
        new = OverviewRule.model_validate({**dict(old), **changes})
        more = max(0, (new.num_frames or new.max_frames) - (old.num_frames or old.max_frames))
        area = new.pixels * (new.short_factor if new.short_seconds else 1)
        tokens = more * math.ceil(area / PATCH)  # a token for every patch of every frame: no family takes more
        budget = self.budget.model_copy(
            update={
                "max_frames": self.budget.max_frames + more,
                "max_visual_tokens": self.budget.max_visual_tokens + tokens,
                "max_context_tokens": self.budget.max_context_tokens + tokens + more * LABEL_TOKENS,
            }
        )
        return self.model_copy(update={"overview": new, "budget": budget})
