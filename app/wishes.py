"""What a visitor of the demo asks, as typed, and its checks: `Wish`.

Values come from a page or from anybody's HTTP request, so every type is possible.

Invariants
1. Whatever is not of the accepted type is refused in a sentence (`BadInput`) that names the field and what it takes;
   nothing is read as something else, such as a number as a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from closeup.agent.task import LETTERS
from closeup.app.ask import MAX_QUESTION
from closeup.app.asking import Memory
from closeup.app.errors import BadInput
from closeup.app.setup import BUNDLED

MAX_OPTION = 400
"""Characters of one option."""
MAX_SHOWN = 80
"""Characters of a refused value that its sentence repeats."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a visitor asks, as typed; None leaves the preset's own."""

    question: str
    options: str | Sequence[str] = ""
    model: str | None = None
    preset: str | None = None
    max_steps: float | None = None
    temperature: float | None = None
    tools: Sequence[str] | None = None
    compare: bool = False
    memory: str | None = None

    def check(self) -> None:
        """Refuse values of another type. Raises `BadInput`."""
        if not isinstance(self.question, str):
            raise BadInput(f"question is a text, got {shown(self.question)}")
        if self.options is not None and not isinstance(self.options, str) and not _names(self.options):
            raise BadInput(f"options is a list of texts, or one text, an option per line, got {shown(self.options)}")
        for name in ("model", "preset", "memory"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise BadInput(f"{name} is a text, got {shown(value)}")
        if self.tools is not None and not isinstance(self.tools, str) and not _names(self.tools):
            raise BadInput(f"tools is a list of tools' names, got {shown(self.tools)}")
        if not isinstance(self.compare, bool):
            raise BadInput(f"compare is true or false, got {shown(self.compare)}")


def default_memory(model: str) -> Memory:
    """What a follow-up keeps unless the visitor chose.

    The bundled model was never trained on second questions: of 24 it answered 22 when asked afresh, 13 with the clips
    of the first kept, 4 with the whole conversation (docs/demo.md). Other models keep the conversation, clips and all.
    """
    return "nothing" if model in BUNDLED else "conversation"


def texts(wish: Wish) -> tuple[str, tuple[str, ...]]:
    """The question and its options, stripped. Raises `BadInput`."""
    text = wish.question.strip()
    if not text:
        raise BadInput("the question is empty; type one, e.g. When does she open the letter?")
    if len(text) > MAX_QUESTION:
        raise BadInput(f"the question has {len(text)} characters; at most {MAX_QUESTION} are accepted")
    lines = wish.options.splitlines() if isinstance(wish.options, str) else wish.options or ()
    options = tuple(line.strip() for line in lines if line.strip())
    if len(options) == 1:
        raise BadInput("one option leaves nothing to choose; give two or more, one per line, or none")
    if len(options) > len(LETTERS):
        raise BadInput(f"{len(options)} options are too many; at most {len(LETTERS)} are accepted")
    if len(set(options)) != len(options):
        raise BadInput("two options are the same; give each once")
    if any(len(option) > MAX_OPTION for option in options):
        raise BadInput(f"an option has more than {MAX_OPTION} characters; shorten it")
    for part in (text, *options):
        try:
            part.encode()
        except UnicodeEncodeError:
            raise BadInput("the question or an option is not valid text (UTF-8); type it anew") from None
    return text, options


def memory(name: str) -> Memory:
    """A kind of memory by name. Raises `BadInput`."""
    match name:
        case "conversation" | "clips" | "nothing":
            return name
    raise BadInput(f"a follow-up keeps 'conversation', 'clips' or 'nothing', got {shown(name)}")


def number(name: str, value: object, low: float, high: float) -> float:
    """A number of a range. Raises `BadInput`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadInput(f"{name} is a number from {low:g} to {high:g}, got {shown(value)}")
    return float(value)


def shown(value: object) -> str:
    """A value as a refusal repeats it: bounded, however large it is."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _names(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
