"""closeup: agents that watch long videos.

The rooms are `closeup.tools`, `closeup.agent`, `closeup.rl`, `closeup.prompts` and `closeup.app` (real folders at the
repository's root; `src/closeup/` holds links to them). Importing this package is cheap: nothing heavy is loaded before
a name below is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from closeup.agent.agent import Agent
    from closeup.agent.task import Task
    from closeup.tools.video import Clip, Video

__all__ = ["Agent", "Clip", "Task", "Video", "__version__"]

_LAZY = {
    "Agent": "closeup.agent.agent",
    "Task": "closeup.agent.task",
    "Clip": "closeup.tools.video",
    "Video": "closeup.tools.video",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'closeup' has no attribute {name!r}; it has: {', '.join(__all__)}")
