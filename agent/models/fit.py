"""Whether an episode's first prompt fits, told exactly and before any frame is decoded or any weight is read.

An episode opens with a system message, the overview of every video and the question. The prompt is made by the very
code that makes it in an episode (`Session`) and written by the model's own adapter; only the frames are left out, as
their number, size and times are known without them. So the count of tokens is that of the prompt the model would read.

Invariants
1. Nothing is decoded and no weight is needed: the adapter may be an empty one (`load.empty_adapter`).
2. `first_prompt` counts what `Adapter.encode` gives for the episode's first context, token for token, except that a
   written time is that asked for, not the frame's own (a digit more or less).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from closeup.agent.budget import SHORTEST_ANSWER, clip_cost
from closeup.agent.dialects import get_dialect
from closeup.agent.geometry import VisionGeometry
from closeup.agent.models.adapter import Adapter
from closeup.agent.preset import Preset
from closeup.agent.session import Session
from closeup.agent.task import Task
from closeup.agent.trajectory import ClipRecord
from closeup.tools.registry import registered_tools
from closeup.tools.video import Video, VideoError
from closeup.tools.video.clip import Clip

SHAPES = {"16:9": (1920, 1080), "4:3": (1440, 1080)}
HOUR = 3600.0


class FitError(ValueError):
    """The first prompt of an episode does not fit; the message says what it takes, what there is and what to change."""


class Film(Video):
    """A video that is not there: its duration (s) and size (displayed pixels), and no frames."""

    def __init__(self, duration: float, width: int, height: int) -> None:
        self.path = Path("film.mp4")
        self._facts = (duration, width, height)

    @property
    def identity(self) -> str:
        return "film-{:g}-{}x{}".format(*self._facts)

    @property
    def duration(self) -> float:
        return self._facts[0]

    @property
    def width(self) -> int:
        return self._facts[1]

    @property
    def height(self) -> int:
        return self._facts[2]

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class FirstPrompt:
    """What an episode opens with.

    Attributes:
        frames, visual_tokens: of the overviews. tokens: of the whole prompt, these and all text.
        sizes: (height, width) in pixels of each overview's frames.
    """

    frames: int
    visual_tokens: int
    tokens: int
    sizes: tuple[tuple[int, int], ...]


def first_prompt(adapter: Adapter, preset: Preset, task: Task, videos: Sequence[Video]) -> FirstPrompt:
    """What the first prompt of a task takes, for its opened videos or for `Film`s in their place."""
    context = min(preset.budget.max_context_tokens, adapter.max_context)  # as `run_episodes` narrows it
    budget = preset.budget.model_copy(update={"max_context_tokens": context})
    tools = registered_tools(preset.tools)
    session = Session(
        task,
        task.id,
        preset=preset.model_copy(update={"budget": budget}),
        dialect=get_dialect(preset.dialect),
        tools=tuple(tools.values()),
        specs=tuple(tool.spec() for tool in tools.values()),
        geometry=adapter.geometry,
        videos=tuple(videos),
    )
    # What is over budget is to be told, not refused; the text still names the preset's own limits.
    session.meter.budget = budget.model_copy(update={"max_frames": 1 << 40, "max_visual_tokens": 1 << 40})
    seen = session.open((), (), "")
    writer = copy.copy(adapter)
    writer.records = _Undecoded(adapter.geometry)
    ids = writer.encode(seen.context, seen.videos, assistant_prefix=seen.assistant_prefix).ids
    spent = session.meter.spent
    sizes = [
        adapter.geometry.size(video.width, video.height, session.overviews[video.identity].pixels) for video in videos
    ]
    return FirstPrompt(spent.frames, spent.visual_tokens, len(ids), tuple(sizes))


def what_breaks(adapter: Adapter, preset: Preset, prompt: FirstPrompt) -> str:
    """The limit that a first prompt breaks, as a sentence without a full stop; "" when it fits with a short answer."""
    budget = preset.budget
    if prompt.frames > budget.max_frames:
        return f"it has {prompt.frames} frames, and the preset's budget.max_frames is {budget.max_frames}"
    if prompt.visual_tokens > budget.max_visual_tokens:
        return (
            f"its {prompt.frames} frames take {prompt.visual_tokens} visual tokens, and the preset's "
            f"budget.max_visual_tokens is {budget.max_visual_tokens}"
        )
    if prompt.tokens + SHORTEST_ANSWER > budget.max_context_tokens < adapter.max_context:
        return (
            f"its {prompt.frames} frames and the text take {prompt.tokens} tokens, and the preset's "
            f"budget.max_context_tokens is {budget.max_context_tokens}"
        )
    if prompt.tokens + SHORTEST_ANSWER > adapter.max_context:
        return (
            f"its {prompt.frames} frames and the text take {prompt.tokens} tokens, and the model's context is "
            f"{adapter.max_context} tokens, its answer included"
        )
    return ""


def with_overview(preset: Preset, frames: int) -> Preset:
    """The preset with an overview of exactly so many frames, whatever the duration."""
    changed = {"num_frames": frames, "max_frames": frames, "whole_seconds": False}
    return preset.model_copy(update={"overview": preset.overview.model_copy(update=changed)})


def largest_overview(adapter: Adapter, preset: Preset, task: Task, film: Film) -> int:
    """Most frames an overview of this film may have, at the preset's size, under every limit; 0 when none fits."""

    def prompt(frames: int) -> FirstPrompt:
        return first_prompt(adapter, with_overview(preset, frames), task, [film])

    def fits(frames: int) -> bool:
        return not what_breaks(adapter, preset, prompt(frames))

    step = adapter.geometry.temporal
    if not fits(step):
        return int(step > 1 and fits(1))
    few, more = prompt(step), prompt(65 * step)
    each, seen = (more.tokens - few.tokens) / 64, (more.visual_tokens - few.visual_tokens) / 64
    context = min(adapter.max_context, preset.budget.max_context_tokens) - SHORTEST_ANSWER - few.tokens
    room = min(context / each, (preset.budget.max_visual_tokens - few.visual_tokens) / seen)
    guess = 1 + math.floor(room)  # near, as written times and counts differ in length: search around it
    most = math.ceil(preset.budget.max_frames / step)
    low, high = 1, min(most, 2 * guess) + 1  # `low` pairs fit, `high` do not
    for near in (math.floor(0.95 * guess), math.ceil(1.05 * guess)):
        if low < near < high:
            low, high = (near, high) if fits(min(near * step, preset.budget.max_frames)) else (low, near)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(min(middle * step, preset.budget.max_frames)) else (low, middle)
    return min(low * step, preset.budget.max_frames)


def close_looks(adapter: Adapter, preset: Preset, prompt: FirstPrompt, film: Film) -> int:
    """Close looks that fit beside the first prompt, counted from above, a message of the agent's with each."""
    rules, budget = preset.rules, preset.budget
    end = min(film.duration, rules.window_seconds(film.duration)[1])
    look = rules.close_look(film.identity, film.duration, (0.0, end), preset.overview.overlay, preset.overview.resizer)
    cost = clip_cost(look, width=film.width, height=film.height, geometry=adapter.geometry)
    context = min(adapter.max_context, budget.max_context_tokens) - prompt.tokens - SHORTEST_ANSWER
    counts = (
        (budget.max_frames - prompt.frames) // cost.frames,
        (budget.max_visual_tokens - prompt.visual_tokens) // cost.visual_tokens,
        context // (cost.context_tokens + budget.max_new_tokens),
        budget.max_steps - 1,
    )
    return max(0, min(counts))


def check_tasks(adapter: Adapter, preset: Preset, tasks: Sequence[Task]) -> None:
    """Refuse tasks whose first prompt cannot fit, before anything is run. Videos that cannot be opened are left out.

    Films of an hour are tried first, in several shapes and with the longest of the tasks' texts: where they fit, no
    video has to be opened.

    Raises:
        FitError: names the first such task, what breaks, and the largest overview that fits.
    """
    if not tasks:
        return
    longest = max(tasks, key=lambda task: len(task.model_dump_json()))
    most = max(len(task.videos) for task in tasks)
    shapes = [*SHAPES.values(), (1080, 1920), (1080, 1080)]
    films = [[Film(HOUR + 60 * i, *shape) for i in range(most)] for shape in shapes]
    if not longest.seen and not any(
        what_breaks(adapter, preset, first_prompt(adapter, preset, longest, some)) for some in films
    ):
        return
    for task in tasks:
        with ExitStack() as stack:
            try:
                videos = [stack.enter_context(Video(path, threads=1)) for path in task.videos]
                prompt = first_prompt(adapter, preset, task, videos)
            except (VideoError, ValueError):
                continue  # the episode itself says what is wrong with it
            if wrong := what_breaks(adapter, preset, prompt):
                film = Film(videos[0].duration, videos[0].width, videos[0].height) if videos else None
                said = refusal(adapter, preset, task, film, wrong)
                raise FitError(f"{said}. See: closeup doctor --model {adapter.checkpoint.model} --preset {preset.name}")


def refusal(adapter: Adapter, preset: Preset, task: Task, film: Film | None, wrong: str) -> str:
    """The sentence that refuses a task's first prompt, with what to change; `film`: in the place of its first video."""
    most = largest_overview(adapter, preset, task, film) if film is not None else 0
    if film is None:
        advice = "shorten the question, or choose a model with a longer context"
    elif not most:
        advice = "not even one frame fits: choose another preset, or a model with a longer context"
    else:
        other = "choose a model with a longer context" if "model's context" in wrong else "raise the limit"
        advice = (
            f"at most {most} frames of this size fit: lower overview.max_frames (or overview.pixels) in a .json "
            f"preset, or {other}"
        )
    what = "overview" if film is not None else "prompt"
    return (
        f"the {what} of {task.id!r} does not fit (preset {preset.name}, model {adapter.checkpoint.model}): {wrong}; "
        f"{advice}"
    )


class _Undecoded:
    """Knows of every clip what it will be, without its frames (`Adapter.records`)."""

    def __init__(self, geometry: VisionGeometry) -> None:
        self._geometry = geometry

    def find(self, clip: Clip, video: Video, size: tuple[int, int]) -> ClipRecord | None:
        times = clip.times()
        return ClipRecord(
            clip=clip, times=times, size=size, tokens=self._geometry.tokens(len(times), size), digest=clip.key
        )

    def remember(self, record: ClipRecord, video: Video) -> Any:
        """What is made up is not kept."""
