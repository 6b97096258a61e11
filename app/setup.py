"""What `ask`, `eval` and the demo share: one model name and a few flags become a preset and a policy.

Everything that can be refused without a model is refused before torch is imported.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from closeup.agent.environment import VideoQAEnv
from closeup.agent.models.load import default_preset
from closeup.agent.preset import Preset, get_preset
from closeup.app.errors import BadInput
from closeup.tools.registry import registered_tools

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from closeup.agent.policies.base import Policy
    from closeup.agent.task import Task

BUNDLED = ("tiny", "tiny-half")


@dataclass(frozen=True, slots=True)
class Overrides:
    """Flags that change single settings of a preset; None leaves the preset's own."""

    max_steps: int | None = None
    tools: str | None = None
    temperature: float | None = None
    fps: float | None = None
    frames: int | None = None
    bound: str | None = None


def choose_preset(model: str, name: str | None, overrides: Overrides) -> Preset:
    """The preset named, or else the model's own, with the overrides put in. Raises what becomes a sentence."""
    preset = get_preset(name or default_preset(model))
    if overrides.max_steps is not None:
        budget = preset.budget.model_copy(update={"max_steps": overrides.max_steps})
        preset = preset.model_copy(update={"budget": budget})
    if overrides.temperature is not None:
        preset = preset.model_copy(update={"temperature": overrides.temperature})
    if overrides.tools is not None:
        preset = preset.model_copy(update={"tools": _tool_names(overrides.tools)})
    if (overrides.fps, overrides.frames, overrides.bound) != (None, None, None):
        bound = None if overrides.bound is None else _window(overrides.bound)
        try:
            preset = preset.showing(fps=overrides.fps, frames=overrides.frames, bound=bound)
        except ValidationError as error:
            raise BadInput(f"no overview can be so: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    try:
        VideoQAEnv(preset).close()  # an unknown dialect, prompt set or tool shows here, before a model is loaded
    except ValueError as error:
        raise BadInput(f"the preset {preset.name!r} cannot be used: {error}") from None
    return preset


def _window(text: str) -> tuple[float, float]:
    """Two times in seconds from `START:END`. Raises `BadInput`."""
    start, colon, end = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return float(start), float(end)
    except ValueError:
        raise BadInput(f"--bound takes two times in seconds, START:END, such as 10:25.5; got {text!r}") from None


def _tool_names(text: str) -> tuple[str, ...]:
    names = [] if text.strip() == "none" else [name.strip() for name in text.split(",") if name.strip()]
    known = registered_tools()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BadInput(f"no tool named {', '.join(unknown)}; known: {', '.join(known)}, or 'none'. See: closeup tools")
    return tuple(dict.fromkeys([*names, "answer"]))


def open_policy(model: str, preset: Preset, *, feature_cache: Path | None = None) -> Policy:
    """Load the model, with a cache of vision features on disk where one is named (`closeup cache build` fills one).

    Raises `ModelError` (a sentence) when there is none to load, `CacheError` for a cache that cannot be used.
    """
    quiet_libraries()
    from closeup.agent.policies.transformers_policy import TransformersPolicy

    return TransformersPolicy(model, timestamps=preset.timestamps, feature_cache_dir=feature_cache)


def check_overviews(model: str, preset: Preset, tasks: Sequence[Task], *, trust_remote_code: bool = False) -> None:
    """Refuse tasks whose first prompt cannot fit the preset's limits or the model's context, before weights are read.

    Raises:
        FitError: says what it takes, and how many frames would fit. ModelError: no model to load.
    """
    quiet_libraries()
    from closeup.agent.models.fit import check_tasks
    from closeup.agent.models.load import empty_adapter

    adapter = empty_adapter(model, timestamps=preset.timestamps, trust_remote_code=trust_remote_code)
    check_tasks(adapter, preset, tasks)


def quiet_libraries() -> None:
    """Settings that libraries read when they are imported: no progress bars, no advice, threads that wait asleep."""
    # Threads that wait by spinning starve each other on a busy machine: generation was 20 times slower there.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()
