"""What a recorded trajectory looked at closely, step by step, and how its answer is to be judged.

The late scorers ask the same questions of a record as the environment asked of the live episode, and get the same
answers.
"""

from __future__ import annotations

from closeup.agent.live import CANCELLED
from closeup.agent.trajectory import Trajectory
from closeup.tools.base import Answer
from closeup.tools.video.clip import Clip
from closeup.tools.windows import is_close_look, overview_of


def close_looks_by_step(trajectory: Trajectory) -> list[tuple[Clip, ...]]:
    """For each step, the close looks that its call gave; () for a step that was not carried out.

    The overview of a video is its first clip in the context of the first step, as the environment has it.
    """
    if not trajectory.steps:
        return []
    shown = [clip for message in trajectory.context(0) for clip in message.clips]
    looks: list[tuple[Clip, ...]] = []
    for step in trajectory.steps:
        clips = [trajectory.clips[key].clip for key in step.clips] if step.outcome == "ok" else []
        looks.append(tuple(clip for clip in clips if is_close_look(clip, overview_of(clip.video, shown))))
    return looks


def final_answer(trajectory: Trajectory) -> Answer | None:
    """The answer a trajectory ended with, or None."""
    outcome = trajectory.outcome
    return None if outcome.answer is None else Answer(outcome.choice, outcome.answer, outcome.evidence)


def judgeable(trajectory: Trajectory) -> bool:
    """The episode came to an end of its own: it answered or ran out of budget, and neither broke nor was called off."""
    outcome = trajectory.outcome
    return bool(trajectory.steps) and not outcome.failed and outcome.reason != CANCELLED
