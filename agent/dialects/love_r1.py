r"""The `love_r1` dialect: one of two sentences, free reasoning, and one `\boxed{}`; the context is rebuilt each step.

    I need to zoom in on the video.        I get the answer.

    … \boxed{[12, 18]}                     … \boxed{C}

A window is two whole numbers of seconds of the first video. Every step is one fresh user message: the whole video, the
clips watched so far sorted by their time, and the question; what was said before is not in it. (LOVE-R1,
arXiv 2509.24786; its code's protocol is told in the reference on the seed systems.)

Invariants
1. The first sentence says which action it is, and exactly one box holds it. Neither sentence, another number of boxes,
   or
   a box that does not suit the sentence is a `FormatError`: LOVE-R1 gives a message with neither its full format
   reward, and this dialect does not.
2. `parse(write(thought, call))` gives the same thought and call back, but for whether an answer is a `choice` or a
   `text`: `fit` settles that by the task.
3. `plain` leaves no box in a text, so that a question or a subtitle cannot show the model one.
4. Reading takes time linear in the message, and `MAX_CHARS` bounds it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from closeup.agent.dialects.base import Dialect, FormatError, FormatOutcome, Parsed, ToolCall, View, shown
from closeup.agent.dialects.options import answer_call, answer_content, fit_answer
from closeup.agent.messages import Message
from closeup.tools.base import Tool
from closeup.tools.video.clip import Clip

MAX_CHARS = 200_000
ZOOM = "I need to zoom in on the video."
ANSWER = "I get the answer."
ZOOM_PREFIX = f"{ZOOM}\n\n"
"""What a message begins with that can only become a zoom: the `assistant_prefix` of LOVE-R1's grounding samples."""
ANSWER_PREFIX = f"{ANSWER}\n\n"
BOX = "\\boxed{"
_BOX = re.compile(r"\\(boxed\s*\{)")
_SENTENCE = re.compile(rf"^[ \t]*(?:{re.escape(ZOOM)}|{re.escape(ANSWER)})", re.MULTILINE)
_WINDOW = re.compile(r"\[\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*\]")


class LoveR1(Dialect):
    """Two sentences and a box; see the module's invariants."""

    name: ClassVar[str] = "love_r1"
    rebuilds_context: ClassVar[bool] = True

    def parse(self, text: str) -> Parsed:
        """Read one message strictly."""
        if len(text) > MAX_CHARS:
            return _wrong("", "unfinished", f"the message is longer than {MAX_CHARS} characters; reason less, then box")
        said = text.strip()
        sentence = next((s for s in (ZOOM, ANSWER) if said.startswith(s)), None)
        if sentence is None:
            return _wrong(
                said, "no_call", f"a message begins with {ZOOM!r} or with {ANSWER!r}, and this one with neither"
            )
        rest = said[len(sentence) :]
        boxes = rest.count(BOX)
        thought = rest.partition(BOX)[0].strip()
        if boxes > 1 or _SENTENCE.search(rest):
            what = f"holds {boxes} boxes" if boxes > 1 else "says a second time what it will do"
            return _wrong(
                thought, "several_calls", f"one message makes one step, and this one {what}; make the first now"
            )
        if boxes == 0:
            return _wrong(thought, "broken_call", f"no box is there: end with {_shape(sentence)}")
        content, after = _boxed(rest[rest.index(BOX) + len(BOX) :])
        if content is None:
            return _wrong(thought, "broken_call", f"the box is not closed: end with {_shape(sentence)}")
        if not content.strip():
            return _wrong(thought, "broken_call", f"the box is empty: end with {_shape(sentence)}")
        if after.strip():
            thought = f"{thought}\n{after.strip()}".strip()
        return Parsed(thought, answer_call(content)) if sentence == ANSWER else _zoom(thought, content)

    def start(self, view: View) -> tuple[Message, ...]:
        """One `user` message: whole videos, clips by time, the question, and what went wrong, if that matters now."""
        order = {clip.video: index for index, (_, clip) in enumerate(view.overviews)}
        clips = sorted(view.clips, key=lambda shown: (order.get(shown[1].video, 0), shown[1].start, shown[1].end))
        content: list[str | Clip] = [*shown((*view.overviews, *clips)), view.question]
        if view.news and not view.forced:
            content.append("\n" + view.news)
        if view.notice:
            content.append("\n" + view.notice)
        return (Message.of("user", *content),)

    def observe(self, view: View) -> tuple[Message, ...]:
        """The whole new context, as `start` makes it."""
        return self.start(view)

    def forced_prefix(self, tools: Sequence[type[Tool[Any]]]) -> str:
        """The sentence that begins an answer."""
        return ANSWER_PREFIX

    def write(self, thought: str, call: ToolCall) -> str:
        """The message that reasons `thought` (left out when empty) and makes `call`.

        Raises:
            ValueError: a thought with a box or one of the two sentences; a call other than `zoom_clip` of the first
                video with whole seconds and `answer` with a choice or a text; an answer with unbalanced braces.
        """
        if _BOX.search(thought) or _SENTENCE.search(thought.strip()):
            raise ValueError(f"a thought cannot hold a box, or a line that begins as a step does: {thought[:80]!r}")
        if call.name == "zoom_clip":
            sentence, content = ZOOM, _window_text(call)
        elif call.name == "answer":
            sentence, content = ANSWER, answer_content(call.arguments, self.name)
            if _BOX.search(content) or _SENTENCE.search(content) or _boxed(content + "}") != (content, ""):
                raise ValueError(f"an answer in a box has balanced braces, no box and no step in it: {content[:80]!r}")
        else:
            raise ValueError(f"the dialect 'love_r1' writes zoom_clip and answer, got {call.name!r}")
        reasoning = f"{thought.strip()}\n" if thought.strip() else ""
        return f"{sentence}\n\n{reasoning}{BOX}{content}}}"

    def fit(self, call: ToolCall, options: Sequence[str]) -> ToolCall:
        """An answer as `choice` or as `text`, as the task has options or not."""
        return fit_answer(call, options)

    def plain(self, text: str) -> str:
        r"""`text` with every `\boxed{` broken up by a space after its backslash."""
        return _BOX.sub(r"\\ \1", text)


def _boxed(rest: str) -> tuple[str | None, str]:
    """What stands in a box, up to the brace that closes it, and what follows; None when nothing closes it."""
    depth = 1
    for index, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[:index], rest[index + 1 :]
    return None, ""


def _zoom(thought: str, content: str) -> Parsed:
    window = _WINDOW.fullmatch(content.strip())
    if window is None:
        return _wrong(
            thought,
            "broken_call",
            f"a zoom boxes two whole numbers of seconds, not {content.strip()[:40]!r}: {_shape(ZOOM)}",
        )
    return Parsed(thought, ToolCall("zoom_clip", {"start": int(window[1]), "end": int(window[2])}))


def _window_text(call: ToolCall) -> str:
    arguments = dict(call.arguments)
    if arguments.pop("video", 0) != 0 or set(arguments) != {"start", "end"}:
        raise ValueError(f"a zoom in 'love_r1' has a start and an end, in the first video; got {dict(call.arguments)}")
    start, end = arguments["start"], arguments["end"]
    if any(isinstance(at, bool) or not isinstance(at, int | float) or at % 1 != 0 for at in (start, end)):
        raise ValueError(f"a zoom in 'love_r1' has whole seconds, got {start!r} and {end!r}; round them outwards")
    return f"[{int(start)}, {int(end)}]"


def _shape(sentence: str) -> str:
    return (
        f"{BOX}[start_time, end_time]}} in whole seconds" if sentence == ZOOM else f"{BOX}…}} around the final answer"
    )


def _wrong(thought: str, outcome: FormatOutcome, message: str) -> Parsed:
    return Parsed(thought, FormatError(outcome, message))
