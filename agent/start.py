"""`Start`, where an episode begins, and the seeds of its messages."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from closeup.agent.messages import Message
from closeup.agent.task import Task
from closeup.tools.video.clip import Clip


@dataclass(frozen=True, slots=True)
class Start:
    """A task and where in it an episode begins (the arguments of `Environment.reset`); `rollout` counts its repeats."""

    task: Task
    seen_clips: tuple[Clip, ...] = ()
    history: tuple[Message, ...] = ()
    assistant_prefix: str = ""
    rollout: int = 0

    @property
    def id(self) -> str:
        """The episode's id."""
        return f"{self.task.id}/{self.rollout}"


def step_seed(seed: int, task_id: str, rollout: int, step: int) -> int:
    """The 63-bit seed of one message: a pure function of its arguments, the same on every machine."""
    digest = hashlib.sha256(f"{seed}\0{task_id}\0{rollout}\0{step}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
