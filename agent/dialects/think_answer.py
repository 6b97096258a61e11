"""The `think_answer` dialect: an optional `<think>…</think>`, then `<answer>…</answer>`, and no other action.

For models that answer in one turn (LongVILA-R1, Video-R1). Whether they are asked to think is the prompt set's
business; whether they did is the step's thought, which a reward may look at.

Invariants
1. Only white space may stand outside the two blocks; a message that says more, less or twice is a `FormatError`.
2. `parse(write(thought, call))` gives the same thought and call back, but for whether an answer is a `choice` or a
   `text`: `fit` settles that by the task.
3. `plain` leaves no tag of this dialect in a text.
4. Reading takes time linear in the message, and `MAX_CHARS` bounds it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from closeup.agent.dialects.base import Dialect, FormatError, FormatOutcome, Parsed, ToolCall, View, asked, told
from closeup.agent.dialects.options import answer_call, answer_content, fit_answer
from closeup.agent.messages import Message
from closeup.tools.base import Tool

MAX_CHARS = 200_000
OPEN, CLOSE = "<answer>", "</answer>"
THINK, END_THINK = "<think>", "</think>"
SHAPE = f"{OPEN}…{CLOSE}"
_TAG = re.compile(r"<(/?(?:think|answer)>)")


class ThinkAnswer(Dialect):
    """One thought and one answer; see the module's invariants."""

    name: ClassVar[str] = "think_answer"

    def parse(self, text: str) -> Parsed:
        """Read one message strictly."""
        if len(text) > MAX_CHARS:
            return _wrong(
                "", "unfinished", f"the message is longer than {MAX_CHARS} characters; think less, then answer"
            )
        rest, thought = text.strip(), ""
        if rest.startswith(THINK):
            inside, closed, rest = rest[len(THINK) :].partition(END_THINK)
            thought, rest = inside.strip(), rest.strip()
            if not closed:
                return _wrong(thought, "no_call", f"the thought is not closed: write {END_THINK}, then {SHAPE}")
        answers = rest.count(OPEN)
        if answers > 1:
            return _wrong(thought, "several_calls", f"one message gives one answer, and this one gives {answers}")
        if answers == 0:
            where = "inside the thought does not count" if OPEN in thought else "is missing"
            return _wrong(thought, "no_call", f"an answer {where}; write {SHAPE}")
        before, _, body = rest.partition(OPEN)
        if before:
            return _wrong(
                thought, "broken_call", f"text stands before the answer; put it between {THINK} and {END_THINK}"
            )
        body, closed, after = body.partition(CLOSE)
        if not closed:
            return _wrong(thought, "broken_call", f"the answer is not closed; end it with {CLOSE}")
        if after.strip():
            return _wrong(thought, "broken_call", f"text stands after {CLOSE}; the answer ends the message")
        if not body.strip():
            return _wrong(thought, "broken_call", f"the answer is empty; write {SHAPE}")
        if _TAG.search(body):
            return _wrong(
                thought, "broken_call", f"a tag stands inside the answer; write {SHAPE} and nothing around it"
            )
        return Parsed(thought, answer_call(body))

    def start(self, view: View) -> tuple[Message, ...]:
        """One `user` message: overviews, clips seen before, and the question."""
        return asked(view)

    def observe(self, view: View) -> tuple[Message, ...]:
        """One `user` message with the news."""
        return told(view)

    def forced_prefix(self, tools: Sequence[type[Tool[Any]]]) -> str:
        """Nothing: every message of this dialect is an answer, and a thought may come before it."""
        return ""

    def write(self, thought: str, call: ToolCall) -> str:
        """The message that says `thought` (left out when empty) and answers.

        Raises:
            ValueError: a call other than `answer` with a choice or a text, or a tag in the thought or the answer.
        """
        if call.name != "answer":
            raise ValueError(f"the dialect 'think_answer' writes answer and no other call, got {call.name!r}")
        content = answer_content(call.arguments, self.name)
        for text in (thought, content):
            if _TAG.search(text):
                raise ValueError(f"neither thought nor answer can hold a tag such as {THINK} or {OPEN}: {text[:80]!r}")
        said = f"{THINK}{thought.strip()}{END_THINK}\n" if thought.strip() else ""
        return f"{said}{OPEN}{content}{CLOSE}"

    def fit(self, call: ToolCall, options: Sequence[str]) -> ToolCall:
        """An answer as `choice` or as `text`, as the task has options or not."""
        return fit_answer(call, options)

    def plain(self, text: str) -> str:
        """`text` with every tag of this dialect broken up by a space after its "<"."""
        return _TAG.sub(r"< \1", text)


def _wrong(thought: str, outcome: FormatOutcome, message: str) -> Parsed:
    return Parsed(thought, FormatError(outcome, message))
