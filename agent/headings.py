"""The words around clips: which window it is, and the subtitles of its seconds.

Subtitles stand with the frames they belong to, at most `limit` characters of them per clip. When a window has more,
cues spread evenly over it are kept and the number of the others is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from closeup import prompts
from closeup.agent.preset import Preset
from closeup.agent.subtitles import cues_between
from closeup.agent.task import Cue
from closeup.tools.video.clip import Clip

MAX_CUE_CHARS = 4000  # characters of subtitles in one heading, where the context budget allows that many
CUE_OVERHEAD = 24  # characters of the times around a cue


def heading(
    template: str,
    clip: Clip,
    *,
    preset: Preset,
    index: int,
    videos: int,
    cues: Sequence[Cue] = (),
    plain: Callable[[str], str] = str,
) -> str:
    """The text before a clip: template "overview" or "clip" of the preset's prompt set; may be empty.

    Args:
        index: which of the task's `videos` it shows, from 0.
        cues: subtitles of that video; those outside the window are left out.
        plain: what task text passes through (`Dialect.plain`).
    """
    limit = min(MAX_CUE_CHARS, preset.budget.max_context_tokens // 4)
    here = cues_between(cues, clip.start, clip.end)
    shown = fitting(here, limit)
    values: dict[str, Any] = {
        "video": index,
        "videos": videos,
        "start": seconds(clip.start),
        "end": seconds(clip.end),
        "duration": seconds(clip.seconds),
        "frames": len(clip.times()),
        "cues": [
            {"start": seconds(cue.start), "end": seconds(cue.end), "text": plain(" ".join(cue.text.split()))}
            for cue in shown
        ],
        "cues_left_out": len(here) - len(shown),
    }
    return prompts.render(preset.prompts, template, **values)


def fitting(cues: Sequence[Cue], limit: int) -> list[Cue]:
    """As many cues as `limit` characters hold, evenly spread over the list when that is not all of them."""
    sizes = [len(cue.text) + CUE_OVERHEAD for cue in cues]
    if sum(sizes) <= limit:
        return list(cues)
    low, high = 0, len(cues)  # the largest count whose even spread fits; sizes vary, so this is near it from below
    while low < high:
        count = (low + high + 1) // 2
        if sum(sizes[i] for i in _spread(len(cues), count)) <= limit:
            low = count
        else:
            high = count - 1
    return [cues[i] for i in _spread(len(cues), low)]


def _spread(total: int, count: int) -> list[int]:
    return [i * total // count for i in range(count)]


def seconds(value: float) -> str:
    """A time for a text: at most two decimals, no trailing zeros ("12", "0.25")."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
