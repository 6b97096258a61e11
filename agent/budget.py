"""`Budget`, what one episode may spend, and `Meter`, which counts and says no.

Invariants
1. Nothing that would break a limit is shown: `Meter.refusal` is asked before a clip, `Meter.show` counts after.
2. Visual tokens and frames are exact for the geometry in force. Context tokens are exact where the policy reports them;
   between reports what was added since is estimated from above (`LABEL_TOKENS`, `CHARS_PER_TOKEN`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from closeup.agent.geometry import VisionGeometry
from closeup.tools.video.clip import Clip

LABEL_TOKENS = 8  # a written time and the two marks around a frame pair
CHARS_PER_TOKEN = 3.0
SHORTEST_ANSWER = 32  # tokens without which not even an answer can be written


class Budget(BaseModel):
    """Limits of one episode.

    The last step is a forced answer: `max_steps = 3` is LOVE-R1's two free decisions and an answer.

    Attributes:
        max_steps: assistant messages.
        max_frames: frames shown, the overview included.
        max_visual_tokens: visual tokens shown, the overview included.
        max_context_tokens: tokens of prompt and completions together, where the policy counts them.
        max_new_tokens: tokens of one assistant message.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_steps: int = Field(default=6, ge=1, le=256)
    max_frames: int = Field(default=1024, ge=1)
    max_visual_tokens: int = Field(default=16_384, ge=1)
    max_context_tokens: int = Field(default=32_768, ge=1)
    max_new_tokens: int = Field(default=1024, ge=1)


@dataclass(slots=True)
class Spent:
    """What an episode has used of its budget so far (steps, frames, tokens)."""

    steps: int = 0
    frames: int = 0
    visual_tokens: int = 0
    context_tokens: int = 0

    def exceeded(self, budget: Budget, *, frames: int = 0, visual_tokens: int = 0) -> str | None:
        """Name of the limit that showing this much more would break, or None."""
        if self.frames + frames > budget.max_frames:
            return "max_frames"
        if self.visual_tokens + visual_tokens > budget.max_visual_tokens:
            return "max_visual_tokens"
        if self.context_tokens + visual_tokens > budget.max_context_tokens:
            return "max_context_tokens"
        return None


@dataclass(frozen=True, slots=True)
class Cost:
    """What clips take: frames, visual tokens, and context tokens with the labels around them."""

    frames: int = 0
    visual_tokens: int = 0
    context_tokens: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.frames + other.frames,
            self.visual_tokens + other.visual_tokens,
            self.context_tokens + other.context_tokens,
        )


def text_tokens(text: str) -> int:
    """Tokens that `text` takes, estimated from above by its length."""
    return math.ceil(len(text) / CHARS_PER_TOKEN)


def clip_cost(clip: Clip, *, width: int, height: int, geometry: VisionGeometry) -> Cost:
    """What showing `clip` takes, for a video of `width` x `height` displayed pixels."""
    frames = len(clip.times())
    tokens = geometry.tokens(frames, geometry.size(width, height, clip.pixels))
    return Cost(frames, tokens, tokens + LABEL_TOKENS * math.ceil(frames / geometry.temporal))


@dataclass(slots=True)
class Meter:
    """Counts what one episode spends. Mutable; one per episode."""

    budget: Budget
    spent: Spent = field(default_factory=Spent)

    def show(self, cost: Cost) -> None:
        """Count the frames and visual tokens of clips that were shown; their context tokens come with `context`."""
        self.spent.frames += cost.frames
        self.spent.visual_tokens += cost.visual_tokens

    def grow(self, context_tokens: int) -> None:
        """Count what joined the context."""
        self.spent.context_tokens += context_tokens

    def report(self, context_tokens: int) -> None:
        """Take a count of the whole context, which replaces the one kept so far."""
        self.spent.context_tokens = context_tokens

    @property
    def frames_left(self) -> int:
        """Frames that may still be shown."""
        return max(0, self.budget.max_frames - self.spent.frames)

    def broken(self, cost: Cost, *, messages: int = 0) -> str:
        """Name of the limit that `cost` would break, or ""; `messages` whole messages are kept free in the context."""
        budget, spent = self.budget, self.spent
        if spent.frames + cost.frames > budget.max_frames:
            return "max_frames"
        if spent.visual_tokens + cost.visual_tokens > budget.max_visual_tokens:
            return "max_visual_tokens"
        if spent.context_tokens + cost.context_tokens + messages * budget.max_new_tokens > budget.max_context_tokens:
            return "max_context_tokens"
        return ""

    def refusal(self, cost: Cost) -> str:
        """The sentence that refuses `cost`, telling what is left; "" when it fits with room for an answer after it."""
        limit = self.broken(cost, messages=1)
        if limit == "max_frames":
            return f"this would show {cost.frames} frames, and {self.frames_left} are left; ask for fewer, or answer"
        if limit == "max_visual_tokens":
            left = max(0, self.budget.max_visual_tokens - self.spent.visual_tokens)
            need = f"this would take {cost.visual_tokens} visual tokens, and {left} are left"
            return f"{need}; ask for fewer frames, or answer"
        if limit:
            return "this would not fit into what is left of the context; ask for fewer frames, or answer"
        return ""

    def must_answer(self, smallest: Cost) -> str:
        """Name of the limit because of which the next message has to be the answer, or "".

        `smallest` is the cheapest look there is: when not even that fits, looking is over.
        """
        if self.spent.steps + 1 >= self.budget.max_steps:
            return "max_steps"
        return self.broken(smallest, messages=2)

    @property
    def full(self) -> bool:
        """No room is left in the context for even a short answer."""
        return self.spent.context_tokens + SHORTEST_ANSWER > self.budget.max_context_tokens
