"""`Asker`: the whole agent behind `ask_video`: a model that loads while the server already answers.

Invariants
1. One question is worked on at a time; the others wait. Each is an episode of its own.
2. A model that cannot be loaded is said on standard error at once and to everyone who asks.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from typing import TYPE_CHECKING, Any

from closeup.agent.events import Answered, Called, Event, Opened
from closeup.app.errors import complain
from closeup.app.setup import BUNDLED, Overrides, choose_preset
from closeup.tools.base import ToolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from closeup.agent.policies.base import Policy


class Asker:
    """A model and its preset."""

    def __init__(self, model: str, preset: str | None = None, overrides: Overrides | None = None) -> None:
        """Check the names now and load the model in the background.

        Raises what becomes a sentence: `ModelError`, `PresetError`, `BadInput`.
        """
        self.model = model
        self.preset = choose_preset(model, preset, overrides or Overrides())
        self._policy: Future[Policy] = Future()
        threading.Thread(target=self._load, name="closeup-mcp-model", daemon=True).start()

    def ask(
        self,
        video: Path,
        question: str,
        options: tuple[str, ...],
        *,
        stop: threading.Event,
        tell: Callable[[str], None] | None = None,
    ) -> dict[str, Any]:
        """Run one episode; the answer with evidence (seconds) and cost, as `closeup ask --json` prints it.

        Args:
            stop: setting it ends the episode within a token or so. tell: told each look and the answer, in words.

        Raises `ToolError` for a question that cannot be asked, a model that cannot be used, and no answer.
        """
        from pydantic import ValidationError

        from closeup.agent.episode import run_episodes
        from closeup.agent.task import Task
        from closeup.app.ask import answer_object
        from closeup.rl.data.needles import is_needle

        if not question.strip():
            raise ToolError("the question is empty; ask one.")
        if len(options) == 1:
            raise ToolError("one option leaves nothing to choose; give two or more, or none for a free answer.")
        try:
            task = Task(
                id="ask",
                videos=(video,),
                question=question,
                options=options,
                answer_kind="choice" if options else "text",
            )
        except ValidationError as error:
            raise ToolError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
        (trajectory,) = run_episodes(
            [task],
            self._loaded(stop),
            preset=self.preset,
            on_event=lambda event: _told(event, tell),
            cancel=stop,
        )
        if trajectory.outcome.failed:
            raise ToolError(f"the agent failed: {trajectory.outcome.reason}")
        answer = answer_object(trajectory)
        if self.model in BUNDLED and not is_needle(video):
            answer["note"] = (
                "the bundled model knows only the videos of `closeup data needles`; do not trust this answer"
            )
        return answer

    def _loaded(self, stop: threading.Event) -> Policy:
        while True:
            try:
                return self._policy.result(timeout=0.1)
            except ToolError as error:
                raise ToolError(str(error)) from None  # a fresh one: this one is shared by everyone who asks
            except NotYet:
                if stop.is_set():
                    raise ToolError("the call was cancelled while the model was being loaded.") from None

    def _load(self) -> None:
        from closeup.app.setup import open_policy

        try:
            self._policy.set_result(open_policy(self.model, self.preset))
        except Exception as error:
            sentence = f"the model {self.model!r} could not be loaded: {error}"
            complain(sentence)
            self._policy.set_exception(ToolError(sentence))


def _told(event: Event, tell: Callable[[str], None] | None) -> None:
    if tell is None:
        return
    if isinstance(event, Opened):
        tell("skimming the video")
    elif isinstance(event, Called):
        given = ", ".join(f"{name}={value!r}" for name, value in event.call.arguments.items())
        tell(f"step {event.step + 1}: {event.call.name}({given})"[:300])
    elif isinstance(event, Answered):
        tell("answered")
