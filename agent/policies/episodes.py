"""What a token policy remembers of each live episode, and how much of it.

Ids and messages are small and kept for every live episode; keys and values are large and kept as long as they fit. An
episode whose keys and values were dropped is read again from its exact ids: slower, never different.

Every method is safe under threads and returns at once: an episode may be forgotten while its message is being
written, and the message then leaves nothing behind.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch

from closeup.agent.messages import Message
from closeup.agent.models.adapter import Media

MAX_EPISODES = 8192


@dataclass(slots=True, eq=False)
class EpisodeState:
    """An episode up to its last message.

    Attributes:
        messages: everything said so far, the policy's own last message included.
        ids: the exact ids of all of it. media: the clips among them, in order.
        kept: keys and values of all ids but the last, or None when they were dropped.
    """

    messages: tuple[Message, ...]
    ids: list[int]
    media: list[Media]
    kept: torch.Tensor | None

    def continued_by(self, messages: tuple[Message, ...]) -> bool:
        """These messages begin with all of this episode's and go on."""
        known = len(self.messages)
        return len(messages) > known and messages[:known] == self.messages


class EpisodeBook:
    """States by episode id; keys and values bounded by `max_bytes`, those longest unused dropped first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._states: OrderedDict[str, EpisodeState] = OrderedDict()
        self._writing: set[str] = set()
        self._lock = threading.RLock()
        self.bytes = 0
        self.dropped = 0  # how often keys and values were dropped for space

    def get(self, episode_id: str) -> EpisodeState | None:
        """The state of an episode, or None."""
        with self._lock:
            return self._states.get(episode_id)

    def begin(self, episode_id: str) -> EpisodeState | None:
        """The state a message is written from, or None; `put` or `forget` follows."""
        with self._lock:
            self._writing.add(episode_id)
            return self._states.get(episode_id)

    def put(self, episode_id: str, state: EpisodeState) -> None:
        """Remember a state in the place of an older one, unless the episode was forgotten since `begin`."""
        with self._lock:
            if episode_id not in self._writing:
                return
            self.forget(episode_id)
            self._states[episode_id] = state
            self.bytes += _size(state)
            for old in list(self._states.values()):
                if self.bytes <= self._max_bytes:
                    break
                if old.kept is not None:
                    self.bytes -= _size(old)
                    old.kept = None
                    self.dropped += 1
            while len(self._states) > MAX_EPISODES:
                self.forget(next(iter(self._states)))

    def forget(self, episode_id: str) -> None:
        """Drop all that is known of an episode."""
        with self._lock:
            self._writing.discard(episode_id)
            state = self._states.pop(episode_id, None)
            if state is not None:
                self.bytes -= _size(state)

    def drop_kept(self) -> None:
        """Drop every episode's keys and values (the weights have changed); ids stay."""
        with self._lock:
            for state in self._states.values():
                state.kept = None
            self.bytes = 0


def _size(state: EpisodeState) -> int:
    return 0 if state.kept is None else state.kept.numel() * state.kept.element_size()
