"""What a set of trajectories says: accuracy with intervals, zoom hits, steps and tokens, overall and per kind of task.

Every accuracy in this project is computed here, from recorded trajectories alone, so a result can be recomputed from
its file. Failed episodes (a broken video, a policy error) are counted apart, never as wrong; truncated ones are wrong
and counted, because truncation before the answer is the most common silent failure of such agents.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from closeup.agent.task import Window
from closeup.agent.trajectory import Trajectory

HIT_FRACTION = 1 / 8
"""A zoom hits when its window overlaps the gold evidence and is at most this fraction of the video."""


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927), 95 % by default; (0, 1) when nothing was observed."""
    if n == 0:
        return (0.0, 1.0)
    p, z2 = successes / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return (max(0.0, centre - half), min(1.0, centre + half))


class Group(BaseModel):
    """Figures of one kind of task, or of all.

    Attributes:
        n: episodes judged; failed: episodes that broke and are left out of everything else.
        accuracy, low, high: share answered correctly with its 95 % Wilson interval.
        hit_rate: of the episodes with known evidence, the share with a zoom hit; None when no evidence is known.
        truncated: share that ended without an answer; forced: share whose answer was forced.
        steps, frames, visual_tokens: means per episode.
        format_errors: share of steps whose message could not be carried out.
        calls: how often each tool ran, per episode.
    """

    model_config = ConfigDict(frozen=True)

    n: int
    failed: int
    correct: int
    accuracy: float
    low: float
    high: float
    hit_rate: float | None
    truncated: float
    forced: float
    steps: float
    frames: float
    visual_tokens: float
    format_errors: float
    calls: dict[str, float]


class Summary(BaseModel):
    """`Group` figures over all episodes and by the tasks' `kind`."""

    model_config = ConfigDict(frozen=True)

    overall: Group
    by_kind: dict[str, Group]


def is_hit(window: Window, gold: Sequence[Window], duration: float) -> bool:
    """Whether a window (seconds) is at most `HIT_FRACTION` of the video's `duration` and overlaps a gold window."""
    start, end = window
    short = end - start <= duration * HIT_FRACTION + 1e-6
    return short and any(start < gold_end and gold_start < end for gold_start, gold_end in gold)


def zoom_hit(trajectory: Trajectory) -> bool | None:
    """Whether any tool's clip is at most T/8 long and overlaps gold evidence; None without known evidence or video."""
    gold = trajectory.task.evidence
    if not gold or not trajectory.videos:
        return None
    for step in trajectory.steps:
        for key in step.clips:
            clip = trajectory.clips[key].clip if key in trajectory.clips else None
            if clip is None or clip.video not in trajectory.videos:
                continue
            if is_hit((clip.start, clip.end), gold, trajectory.videos[clip.video].duration):
                return True
    return False


def summarise(trajectories: Iterable[Trajectory]) -> Summary:
    """Figures over all trajectories and per kind."""
    everything = list(trajectories)
    kinds: dict[str, list[Trajectory]] = {}
    for trajectory in everything:
        kinds.setdefault(trajectory.task.kind, []).append(trajectory)
    by_kind = {kind: _group(kinds[kind]) for kind in sorted(kinds) if kind} if len(kinds) > 1 or "" not in kinds else {}
    return Summary(overall=_group(everything), by_kind=by_kind)


def _group(trajectories: Sequence[Trajectory]) -> Group:
    judged = [t for t in trajectories if not t.outcome.failed and t.outcome.correct is not None]
    n = len(judged)
    correct = sum(bool(t.outcome.correct) for t in judged)
    low, high = wilson(correct, n)
    hits = [hit for t in judged if (hit := zoom_hit(t)) is not None]
    steps = [s for t in judged for s in t.steps]
    calls = Counter(s.call.name for s in steps if s.call is not None and s.outcome == "ok")
    return Group(
        n=n,
        failed=sum(t.outcome.failed for t in trajectories),
        correct=correct,
        accuracy=_mean(bool(t.outcome.correct) for t in judged),
        low=low,
        high=high,
        hit_rate=_mean(hits) if hits else None,
        truncated=_mean(not t.outcome.terminated for t in judged),
        forced=_mean(any(s.forced for s in t.steps) for t in judged),
        steps=_mean(t.outcome.steps for t in judged),
        frames=_mean(t.outcome.frames for t in judged),
        visual_tokens=_mean(t.outcome.visual_tokens for t in judged),
        format_errors=_mean(s.outcome not in ("ok", "refused") for s in steps),
        calls={name: count / n for name, count in sorted(calls.items())} if n else {},
    )


def _mean(values: Iterable[Any]) -> float:
    numbers = [float(v) for v in values]
    return sum(numbers) / len(numbers) if numbers else 0.0
