"""`Budget` and its use: what one episode may spend, in steps, frames, visual tokens, context tokens and seconds."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field


class Budget(BaseModel):
    """Limits of one episode. The last step is a forced answer: `max_steps = 3` is LOVE-R1's two free decisions and an answer.

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
