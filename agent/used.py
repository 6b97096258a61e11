"""What an episode really used, beside what its preset asked for: recorded as `settings["used"]` of its trajectory.

Two runs "with 768 frames at 2 fps" differ in what they showed as soon as a video is short, a budget is small or a model
resizes otherwise. Here is what came of the request: frames, their size, how dense they are in time, tokens, and digests
of every text a template gave. (Reports without these are why numbers of this field do not reproduce.)

Invariants
1. Everything is computed from the episode's own record and the templates it was rendered from; nothing is estimated
   where a policy said what was.
2. `shown` says which clips a policy looked at: of the others the numbers are what would have been shown.
3. A changed template changes its digest in `templates`, and one that is rendered into the system message `system`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from closeup import prompts
from closeup.agent.messages import Message
from closeup.agent.trajectory import ClipRecord, StepRecord


def used(
    clips: Mapping[str, ClipRecord],
    steps: Sequence[StepRecord],
    *,
    overviews: Collection[str],
    context: Sequence[Message],
    prompt_set: str | None,
) -> dict[str, Any]:
    """What an episode used, JSON-serialisable.

    Args:
        clips: every clip asked for, by key (`Trajectory.clips`). steps: what was said.
        overviews: keys of the overviews. context: messages of the first prompt.
        prompt_set: name of the prompt set; None for an environment that has none.

    Returns:
        `templates`: 16 digits of SHA-256 per template of the set; `system`: of the system message ("" without one);
        `frames`, `visual_tokens`: of all clips together, each once; `context_tokens`: of the longest context, None when
        the policy counted none; `clips`: by key what `_clip` says.
    """
    shown = {key: _clip(record, "overview" if key in overviews else "look") for key, record in clips.items()}
    system = next((message.text for message in context if message.role == "system"), "")
    counted = [step.context_tokens for step in steps if step.context_tokens is not None]
    return {
        "templates": prompts.template_digests(prompt_set) if prompt_set in prompts.prompt_sets() else {},
        "system": hashlib.sha256(system.encode()).hexdigest()[:16] if system else "",
        "frames": sum(clip["frames"] for clip in shown.values()),
        "visual_tokens": sum(clip["tokens"] for clip in shown.values()),
        "context_tokens": max(counted, default=None),
        "clips": shown,
    }


def _clip(record: ClipRecord, role: str) -> dict[str, Any]:
    """One clip: its role, whether a policy looked at it, frames (and how many are different ones), real frames per
    second (None for a single instant), height and width in pixels, pixels of a frame, tokens, resizer and overlay."""
    times = record.times or record.clip.times()
    seconds = times[-1] - times[0]
    height, width = record.size
    return {
        "role": role,
        "shown": bool(record.times),
        "frames": len(times),
        "different_frames": len(set(times)),
        "fps": round((len(times) - 1) / seconds, 4) if seconds > 0 else None,
        "height": height,
        "width": width,
        "pixels": height * width,
        "tokens": record.tokens,
        "resizer": record.clip.resizer,
        "overlay": record.clip.overlay,
    }
