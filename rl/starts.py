"""Where the rollouts of a task begin, and under which preset: LOVE-R1's two kinds of sample.

A grounding sample (`is_grounding`: no gold answer, but gold windows) asks where to look. In the dialect `love_r1` its
one message is begun for the model with the sentence that forces a zoom, as LOVE-R1's trainer begins it, and the episode
is over when the window is chosen: what it is worth is what the window is worth (`rewards.love_r1_accuracy`). All other
tasks, and all tasks in dialects without such a sentence, begin with the question and run under the preset as it is.

Invariant: start and preset are pure functions of the task and the preset, so that a resumed run begins as before.
"""

from __future__ import annotations

from closeup.agent.dialects.love_r1 import ZOOM_PREFIX, LoveR1
from closeup.agent.preset import Preset
from closeup.agent.start import Start
from closeup.agent.task import Task


def is_grounding(task: Task) -> bool:
    """Whether a task asks where to look: its kind is "grounding", and windows are known but no answer in words."""
    return task.answer_kind == "grounding" and task.answer is None and bool(task.evidence)


def grounding_preset(preset: Preset) -> Preset:
    """`preset` for episodes of one free message, which is the look that is asked for."""
    budget = preset.budget.model_copy(update={"max_steps": 1})
    changes = {"name": f"{preset.name}-grounding", "budget": budget, "after_fault": "end", "last_message": "free"}
    return preset.model_copy(update=changes)


def opening(task: Task, preset: Preset, *, rollout: int = 0) -> tuple[Start, Preset]:
    """Where a rollout of a task begins, and the preset it runs under; see the module's text.

    A task's own windows (`Task.seen`) are shown by the environment, whatever the start.
    """
    looks = preset.tools is None or "zoom_clip" in preset.tools
    if preset.dialect == LoveR1.name and looks and is_grounding(task):
        return Start(task, assistant_prefix=ZOOM_PREFIX, rollout=rollout), grounding_preset(preset)
    return Start(task, rollout=rollout), preset
