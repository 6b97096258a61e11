"""A scripted agent that takes its time, and tells what it was stopped at."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from closeup.agent.policies.base import Completion, Policy, Request, TokenCallback

ZOOM = (
    "<think>orange is at 18s</think>\n<tool_call>\n"
    '{"name": "zoom_clip", "arguments": {"start": 18, "end": 21}}\n</tool_call>'
)
ANSWER = (
    "<think>orange 6, C</think>\n<tool_call>\n"
    '{"name": "answer", "arguments": {"choice": "C", "evidence": [[18, 21]]}}\n</tool_call>'
)


def zoom_and_answer(request: Request) -> str:
    """A zoom where nothing was zoomed for this question yet, else the answer C."""
    return ANSWER if request.messages[-1].role == "tool" or "tool_response" in request.messages[-1].text else ZOOM


class SlowPolicy(Policy):
    """Writes what `say` says, a character every `pause` seconds; a message of "…" never ends by itself.

    Attributes:
        begun, ended: messages begun and ended. cancelled: those that were stopped. asked: every request.
    """

    def __init__(self, say: Callable[[Request], str], pause: float = 0.0) -> None:
        self.name = "slow"
        self.say, self.pause = say, pause
        self.begun = self.ended = self.cancelled = 0
        self.asked: list[Request] = []
        self._lock = threading.Lock()

    def generate(
        self,
        requests: Sequence[Request],
        *,
        on_token: TokenCallback | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Completion]:
        return [self._write(request, on_token, cancel) for request in requests]

    def _write(self, request: Request, on_token: TokenCallback | None, cancel: threading.Event | None) -> Completion:
        with self._lock:
            self.begun += 1
            self.asked.append(request)
        text, said = self.say(request), ""
        prefix = request.assistant_prefix
        if prefix and prefix in text:  # a forced answer, whose beginning was written for the agent
            text = text[text.index(prefix) + len(prefix) :]
        deadline = time.monotonic() + 60
        try:
            while (text == "…" and time.monotonic() < deadline) or len(said) < len(text):
                if cancel is not None and cancel.is_set():
                    self.cancelled += 1
                    return Completion(prefix + said, "cancelled")
                piece = "…" if text == "…" else text[len(said)]
                said += piece
                if on_token is not None:
                    on_token(request.episode_id, piece)
                time.sleep(max(self.pause, 0.01 if text == "…" else 0.0))
            return Completion(prefix + said)
        finally:
            self.ended += 1
