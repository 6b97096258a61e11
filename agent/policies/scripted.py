"""`ScriptedPolicy`: a policy that says what it is told to; for tests, demos and examples, with no model and no tokens.

Invariants
1. The same script and requests give the same completions, whatever else is in the batch.
2. `generate` never raises: a script that runs out, or whose function raises, is a completion with `finish = "error"`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from closeup.agent.geometry import VisionGeometry
from closeup.agent.policies.base import Completion, Policy, Request, TokenCallback

Script = Sequence[str] | Mapping[str, Sequence[str]] | Callable[[Request], str]
_WORD = re.compile(r"\s*\S+\s*")


class ScriptedPolicy(Policy):
    """Writes the messages of a script.

    Args:
        script: the messages of every episode, one per step; or a mapping from an episode's id, or its task's id, to its
            messages; or a function from the request to the message (its `sampling.seed` makes it repeatable).
        name: recorded with every trajectory.
        geometry: recorded too, and what budgets are counted by.

    With an assistant prefix, a message that contains it is said from there on, and any other is taken as what follows
    it.
    """

    def __init__(self, script: Script, *, name: str = "scripted", geometry: VisionGeometry | None = None) -> None:
        if isinstance(script, str):
            raise TypeError("a script is a list of messages, a mapping to such lists, or a function; got one string")
        self.name = name
        self.geometry = geometry or VisionGeometry()
        self._script = script
        self._said: dict[str, int] = {}
        self._lock = threading.Lock()

    def generate(
        self,
        requests: Sequence[Request],
        *,
        on_token: TokenCallback | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Completion]:
        """The next scripted message of each episode, streamed word by word."""
        return [self._write(request, on_token, cancel) for request in requests]

    def forget(self, episode_id: str) -> None:
        """Start this episode's script anew."""
        with self._lock:
            self._said.pop(episode_id, None)

    def settings(self) -> dict[str, Any]:
        """The policy's name; a script is not recorded (the messages it said are)."""
        return {"policy": self.name}

    def _write(self, request: Request, on_token: TokenCallback | None, cancel: threading.Event | None) -> Completion:
        try:
            text = self._next(request)
        except Exception as error:  # whatever a caller's function raises is this episode's failure, not the batch's
            return Completion("", "error", error=f"the script failed: {type(error).__name__}: {error}")
        prefix = request.assistant_prefix
        rest = text[text.index(prefix) + len(prefix) :] if prefix in text else text
        said = prefix
        for word in _WORD.findall(rest) or [rest]:
            if cancel is not None and cancel.is_set():
                return Completion(said, "cancelled")
            said += word
            if on_token is not None and word:
                on_token(request.episode_id, word)
        return Completion(said)

    def _next(self, request: Request) -> str:
        with self._lock:
            step = self._said.get(request.episode_id, 0)
            self._said[request.episode_id] = step + 1
        if callable(self._script):
            return self._script(request)
        messages = self._script
        if isinstance(messages, Mapping):
            task_id = request.episode_id.rpartition("/")[0]
            key = request.episode_id if request.episode_id in messages else task_id
            if key not in messages:
                raise LookupError(f"it has no messages for episode {request.episode_id!r} or task {task_id!r}")
            messages = messages[key]
        if step >= len(messages):
            raise LookupError(f"it has {len(messages)} messages, and episode {request.episode_id!r} asks for one more")
        return messages[step]
