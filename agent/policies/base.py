"""`Policy`: anything that writes the next assistant message, for many live episodes at once.

Contract
1. The request holds the whole context as messages. A policy that tokenises keeps, per `episode_id`, the exact ids of
   what it rendered and sampled; a request whose context extends the last one is continued from those ids (sampled
   text is never tokenised again), any other is a new path from the root.
2. `Completion.text` is the whole assistant message, `assistant_prefix` included.
3. Seeds are per request: a request's sample does not depend on what else is in the batch.
4. `generate` never raises for one episode's sake: a failed request comes back with `finish = "error"` and the reason.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from closeup.agent.geometry import VisionGeometry
from closeup.agent.messages import Message
from closeup.agent.trajectory import ClipRecord
from closeup.tools.video.reader import Video

TokenCallback = Callable[[str, str], None]
"""Called as `on_token(episode_id, piece_of_text)` while a message is written."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. `temperature = 0` is greedy; `top_p = 1` and `top_k = 0` switch those cuts off."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 1024
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One episode's turn.

    Attributes:
        episode_id: names the live episode; the key of the policy's per-episode state.
        messages: the whole context, oldest first; it ends with a user or tool message.
        videos: opened videos by identity, enough to resolve every clip in `messages`.
        assistant_prefix: text the message must begin with.
        tools: OpenAI function schemas of the tools in force, for policies that pass them natively.
        sampling: how to draw tokens; the seed belongs to this request alone.
    """

    episode_id: str
    messages: tuple[Message, ...]
    videos: Mapping[str, Video] = field(default_factory=dict)
    assistant_prefix: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    sampling: Sampling = field(default_factory=Sampling)


Finish = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class Completion:
    """What a policy wrote.

    Attributes:
        text: the whole assistant message, prefix included, without end-of-message tokens.
        finish: "stop" (the model ended it), "length" (cut at the token limit), "cancelled", "error".
        ids: the sampled token ids, end-of-message token included; None when the policy has no tokens.
        logprobs: log-probability of each sampled id under the distribution really sampled from (temperature, suppressed
            tokens), same length as `ids`; None when unknown.
        prompt_ids: ids that precede `ids`: all of them, or only those after the parent step's when `extends`. The
            assistant prefix's ids belong here.
        extends: the context continued the episode's previous one, ids and all.
        clips: what each clip of the newly rendered messages became (real times, size, tokens), by `Clip.key`.
        context_tokens: tokens of the whole context with this message.
        error: why, when `finish` is "error".
    """

    text: str
    finish: Finish = "stop"
    ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    prompt_ids: tuple[int, ...] | None = None
    extends: bool = False
    clips: Mapping[str, ClipRecord] = field(default_factory=dict)
    context_tokens: int = 0
    error: str | None = None


class Policy(ABC):
    """Writes assistant messages. `name` and `geometry` are recorded with every trajectory.

    `max_context` is the most tokens a context may have, or None when the policy knows no limit.
    """

    name: str = "policy"
    geometry: VisionGeometry = VisionGeometry()
    max_context: int | None = None

    @abstractmethod
    def generate(
        self,
        requests: Sequence[Request],
        *,
        on_token: TokenCallback | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Completion]:
        """One completion per request, in order, generated together. Setting `cancel` ends it within a token or so."""

    async def agenerate(
        self,
        requests: Sequence[Request],
        *,
        on_token: TokenCallback | None = None,
    ) -> list[Completion]:
        """`generate` off the event loop's thread; cancelling the awaiting task stops the generation."""
        cancel = threading.Event()
        work = asyncio.get_running_loop().run_in_executor(
            None, lambda: self.generate(requests, on_token=on_token, cancel=cancel)
        )
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            cancel.set()
            await asyncio.wait([work])
            raise

    def forget(self, episode_id: str) -> None:  # noqa: B027  # optional: a policy without state has nothing to forget
        """Drop what is kept for this episode (ids, KV cache)."""

    def settings(self) -> dict[str, Any]:
        """What must be known to reproduce this policy's outputs (checkpoint, dtype, …), JSON-serialisable."""
        return {"policy": self.name}
