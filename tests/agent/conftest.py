"""What the tests of this room share: a task on a real little video, and messages in the `hermes` dialect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from closeup.agent.budget import Budget
from closeup.agent.dialects.base import ToolCall
from closeup.agent.dialects.hermes import Hermes
from closeup.agent.environment import VideoQAEnv
from closeup.agent.preset import Preset, get_preset

Say = Callable[..., str]


@pytest.fixture(scope="session")
def say() -> Say:
    """`say("zoom_clip", start=1, end=2, thought="red at 1s")` is the message that thinks and calls so."""

    def write(name: str, *, thought: str = "", **arguments: Any) -> str:
        return Hermes().write(thought, ToolCall(name, arguments))

    return write


@pytest.fixture(scope="session")
def preset() -> Preset:
    """The preset of the bundled model."""
    return get_preset("tiny")


@pytest.fixture
def make_env(preset: Preset) -> Iterator[Callable[..., VideoQAEnv]]:
    """`make_env(max_steps=3, rewards=…)`: an environment, its budget and preset changed as asked; closed afterwards."""
    made: list[VideoQAEnv] = []
    limits = set(Budget.model_fields)

    def make(*, of: Preset = preset, **changes: Any) -> VideoQAEnv:
        budget = of.budget.model_copy(update={k: v for k, v in changes.items() if k in limits})
        fields = {k: v for k, v in changes.items() if k in Preset.model_fields}
        rest = {k: v for k, v in changes.items() if k not in limits and k not in Preset.model_fields}
        if "tools" in changes and changes["tools"] and isinstance(changes["tools"][0], type):
            rest["tools"] = fields.pop("tools")
        made.append(VideoQAEnv(of.model_copy(update={"budget": budget, **fields}), **rest))
        return made[-1]

    yield make
    for env in made:
        env.close()
