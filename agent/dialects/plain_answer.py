"""The `plain_answer` dialect: the whole message is the answer, and there is no other action.

For chat models that are asked a question and answer it in words (InternVL3's video conversation), in as many rounds as
there are questions: an earlier round is the `history` of the next.

Invariants
1. Any text but white space is an answer; what is told apart is only whether it is a letter of an option or words, and
   that by the task (`fit`).
2. `parse(write("", call))` gives the same call back, but for whether an answer is a `choice` or a `text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from closeup.agent.dialects.base import Dialect, FormatError, Parsed, ToolCall, View, asked, told
from closeup.agent.dialects.options import answer_call, answer_content, fit_answer
from closeup.agent.messages import Message
from closeup.tools.base import Tool

MAX_CHARS = 200_000


class PlainAnswer(Dialect):
    """A message is an answer; see the module's invariants."""

    name: ClassVar[str] = "plain_answer"

    def parse(self, text: str) -> Parsed:
        """The message as an answer."""
        if len(text) > MAX_CHARS:
            said = f"the message is longer than {MAX_CHARS} characters; answer in fewer words"
            return Parsed("", FormatError("unfinished", said))
        if not text.strip():
            return Parsed("", FormatError("no_call", "the message is empty; write the answer"))
        return Parsed("", answer_call(text))

    def start(self, view: View) -> tuple[Message, ...]:
        """One `user` message: overviews, clips seen before, and the question."""
        return asked(view)

    def observe(self, view: View) -> tuple[Message, ...]:
        """One `user` message with the news."""
        return told(view)

    def forced_prefix(self, tools: Sequence[type[Tool[Any]]]) -> str:
        """Nothing: every message is an answer."""
        return ""

    def write(self, thought: str, call: ToolCall) -> str:
        """The answer.

        Raises:
            ValueError: a thought, for which there is no place; a call other than `answer` with a choice or a text.
        """
        if call.name != "answer":
            raise ValueError(f"the dialect 'plain_answer' writes answer and no other call, got {call.name!r}")
        if thought.strip():
            raise ValueError(f"a message of the dialect 'plain_answer' is an answer and no thought: {thought[:80]!r}")
        return answer_content(call.arguments, self.name)

    def fit(self, call: ToolCall, options: Sequence[str]) -> ToolCall:
        """An answer as `choice` or as `text`, as the task has options or not."""
        return fit_answer(call, options)
