"""Questions with their answers beside windows drawn at random: what stage 1 of LOVE-R1 learns its template from.

A task becomes an episode of one message, the gold answer in the preset's dialect, without a thought; windows are shown
as watched before (`Task.seen`), in as many frames as the preset has for so many (`ToolRules.seen_frames`). Which ones
is drawn as LOVE-R1's `sft_video.py` draws them:

- with gold windows, in 60 % these (on whole seconds, overlapping ones merged, three at the most, each made longer by 0
  to 5 s on either side), in 20 % the whole video as one window, in 20 % none;
- without, in 10 % none to three windows of 16 s or up to an eighth of the video (at most one below 30 s, two below
  180 s), else the whole video as one window.

There they are drawn anew whenever a row is read; here once, before the run, which over its one epoch is the same.

Invariants
1. Task i of a file has windows that depend on (seed, the task's id) alone: more tasks never change earlier ones.
2. Windows are whole seconds inside the video, sorted, none empty; a video under a second has none.
3. A task without a gold answer, or one whose answer the dialect cannot write, is a named fault and no episode.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from closeup.agent.dialects import get_dialect
from closeup.agent.dialects.base import ToolCall
from closeup.agent.episode import run_episodes
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import Preset
from closeup.agent.task import Task, Window
from closeup.agent.trajectory import Trajectory
from closeup.rl.rewards import is_correct
from closeup.tools.video import Video, VideoError

GOLD, WHOLE = 0.6, 0.2
"""With gold windows: how often they are shown, and how often the whole video is."""
RANDOM = 0.1
"""Without: how often windows are drawn; else the whole video is shown."""
MOST, JITTER, SHORTEST = 3, 5, 16


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a task became no episode."""

    task: str
    reason: str


def template_episodes(
    tasks: Sequence[Task], preset: Preset, *, seed: int, progress: Callable[[int], None] | None = None
) -> Iterator[Trajectory | Fault]:
    """One episode per task, or why there is none, in the order of the tasks.

    Args:
        preset: dialect, overview and frames of windows seen before; one message must be allowed to answer.
        seed: of the windows. progress: called with the tasks done.
    """
    dialect = get_dialect(preset.dialect)
    for number, task in enumerate(tasks, 1):
        yield _episode(task, preset, dialect.write, seed)
        if progress is not None:
            progress(number)


def template_windows(duration: float, evidence: Sequence[Window], rng: np.random.Generator) -> tuple[Window, ...]:
    """Windows (whole seconds) shown with a question about a video of `duration` seconds with these gold windows."""
    last = int(duration)
    if last < 1:
        return ()
    chance = rng.random()
    if evidence:
        if chance < GOLD:
            return _near(evidence, last, rng)
        return ((0.0, float(last)),) if chance < GOLD + WHOLE else ()
    if chance >= RANDOM:
        return ((0.0, float(last)),)
    most = 1 if duration < 30 else 2 if duration < 180 else 3
    return tuple(sorted(_anywhere(last, rng) for _ in range(int(rng.integers(0, most + 1)))))


def _near(evidence: Sequence[Window], last: int, rng: np.random.Generator) -> tuple[Window, ...]:
    merged: list[list[int]] = []
    for start, end in sorted((int(start), int(end)) for start, end in evidence):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    if len(merged) > MOST:
        merged = [merged[i] for i in sorted(rng.choice(len(merged), MOST, replace=False))]
    found = []
    for start, end in merged:
        left = max(0, start - int(rng.integers(0, JITTER + 1)))
        right = min(last, end + int(rng.integers(0, JITTER + 1)))
        left = min(left, last - 1)  # gold windows of less than a second, and those at the very end
        found.append((float(left), float(max(right, left + 1))))
    return tuple(sorted(found))


def _anywhere(last: int, rng: np.random.Generator) -> Window:
    size = min(last, max(int(rng.integers(0, last // 8 + 1)), SHORTEST))
    start = int(rng.integers(0, max(1, last - size)))
    return float(start), float(start + size)


def _episode(task: Task, preset: Preset, write: Callable[[str, ToolCall], str], seed: int) -> Trajectory | Fault:
    if task.answer is None:
        return Fault(task.id, "it has no gold answer to learn")
    if not task.videos:
        return Fault(task.id, "it has no video to show windows of")
    answer = {"choice": task.gold_choice} if task.gold_choice else {"text": task.answer}
    try:
        message = write("", ToolCall("answer", answer))
        with Video(task.videos[0]) as video:
            duration = video.duration
    except (ValueError, VideoError) as error:
        return Fault(task.id, str(error))
    digest = hashlib.sha256(f"{seed}\0{task.id}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    asked = task.model_copy(update={"seen": template_windows(duration, task.evidence, rng)})
    (done,) = run_episodes([asked], ScriptedPolicy([message], name="template"), preset=preset, judge=is_correct)
    if done.outcome.failed:
        return Fault(task.id, done.outcome.reason)
    if done.steps[0].outcome != "ok":
        return Fault(task.id, f"the answer cannot be given ({done.steps[0].outcome}): {done.steps[0].note}")
    return done
