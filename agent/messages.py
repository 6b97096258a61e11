"""Messages with text and clips: what the environment says and what a policy renders.

A `ClipPart` is a request for frames, not pixels; each policy resolves it at the size its model takes, so one
conversation serves every model family, the viewer and the record.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from closeup.tools.video.clip import Clip


def valid_text(text: str) -> str:
    """`text` with what no UTF-8 file can hold (halves of surrogate pairs) replaced by "?"."""
    return text.encode("utf-8", "replace").decode()


class TextPart(BaseModel):
    """Plain text.

    What it spells is never a control token of chat or vision: an adapter inserts those itself, and encodes `<|im_end|>`
    or `<|video_pad|>` in a text as ordinary characters. A dialect's own tags (`<think>`, `<tool_call>`,
    `<tool_response>`) keep their meaning; the environment breaks them up in text of tasks and tools.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: Literal["text"] = "text"
    text: str


class ClipPart(BaseModel):
    """A clip shown at this place of the message."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: Literal["clip"] = "clip"
    clip: Clip


Part = Annotated[TextPart | ClipPart, Field(discriminator="type")]
Role = Literal["system", "user", "assistant", "tool"]


class Message(BaseModel):
    """One message of a conversation; `tool` messages carry what a tool gave back."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Role
    content: tuple[Part, ...]

    @classmethod
    def of(cls, role: Role, *content: str | Clip) -> Message:
        """Build a message from strings and clips; neighbouring strings are joined, empty ones dropped."""
        parts: list[Part] = []
        for item in content:
            if isinstance(item, Clip):
                parts.append(ClipPart(clip=item))
            elif item:
                if parts and isinstance(parts[-1], TextPart):
                    parts[-1] = TextPart(text=parts[-1].text + item)
                else:
                    parts.append(TextPart(text=item))
        return cls(role=role, content=tuple(parts))

    @property
    def clips(self) -> tuple[Clip, ...]:
        """The clips of this message, in order."""
        return tuple(part.clip for part in self.content if isinstance(part, ClipPart))

    @property
    def text(self) -> str:
        """The text of this message, clips left out."""
        return "".join(part.text for part in self.content if isinstance(part, TextPart))
