"""The demo's page as HTML around the scenes: welcome, player, the question that runs, the questions before it.

Pure strings of a session's state, without Gradio; `closeup.app.page` puts them where they belong.

Invariants
1. What a visitor, a model or a file name wrote is escaped, and bounded where it is a title.
2. Nothing here gives an example's answer away before the agent has answered.
"""

from __future__ import annotations

import html
import logging
from typing import TYPE_CHECKING, Any

from closeup.app.asking import Run, sentence
from closeup.app.html import shown
from closeup.app.pictures import data_url
from closeup.app.timeline import clock
from closeup.tools.video import Video, VideoError

if TYPE_CHECKING:
    from closeup.agent.task import Task
    from closeup.app.demo import Demo
    from closeup.app.sessions import Session, Turn

log = logging.getLogger(__name__)
KINDS = {
    "digit": "Read a digit",
    "colour": "Find a colour",
    "when": "Find the moment",
    "count": "Count flashes",
}
MAX_TITLE = 160
"""Characters of a question that is folded away."""


class Page:
    """Draws one session: player, question that runs, questions before it."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self.welcome = WELCOME.format(cards="".join(_card(n, task) for n, task in enumerate(demo.examples)))

    def player(self, session: Session) -> str:
        """The film with its name, or an invitation."""
        film = session.film
        if film is None:
            return '<div class="cu cud-empty"><p>Click an example, upload a video, or pick one.</p></div>'
        record, name = film.record, html.escape(film.name)
        facts = f"{clock(record.duration)} · {record.width}×{record.height} · {record.fps:.4g} fps"
        return (
            f'<figure class="cu cu-player cud-player"><video controls muted playsinline preload="metadata"'
            f' src="closeup/film/{film.token}" aria-label="{name}"></video>'
            f'<p class="cud-unplayable" hidden>This browser cannot play this file. The agent can watch it all the'
            f" same; the frames it saw are shown beside.</p>"
            f"<figcaption><b>{name}</b> <span>{html.escape(facts)}</span></figcaption></figure>"
        )

    def running(self, run: Run, number: int) -> str:
        """A question that runs or is over, every arm of it."""
        return self._arms(run.question.model, run.scenes, [arm.label for arm in run.arms], number, self._above(run))

    def _above(self, run: Run) -> str:
        notes = self.demo.notes(run)
        if run.ahead:
            one = run.ahead == 1
            notes.append(f"{run.ahead} question{'' if one else 's'} {'is' if one else 'are'} ahead of yours.")
        return "".join(f'<p class="cud-note" role="status">{html.escape(note)}</p>' for note in notes)

    def _arms(self, model: str, scenes: Any, labels: list[str], number: int, above: str = "") -> str:
        several = len(scenes) > 1
        parts = []
        for index, (scene, label) in enumerate(zip(scenes, labels, strict=True)):
            title = f'<h2 class="cud-arm">{html.escape(label)}</h2>' if several else ""
            body = self.demo.draw(scene, f"cu-q{number}-{index}", level=3 if several else 2)
            parts.append(f'<div class="cud-column">{title}{body}</div>')
        kind = "cud-arms cud-two" if several else "cud-arms"
        return f'<div class="cu">{above}<div class="{kind}">{"".join(parts)}</div></div>'

    def earlier(self, session: Session) -> str:
        """The questions before the last one, newest first, each folded away."""
        turns = session.turns if session.run is not None else session.turns[:-1]
        first = session.asked - len(session.turns)
        return "".join(self._folded(turn, first + n) for n, turn in reversed(list(enumerate(turns))))

    def _folded(self, turn: Turn, number: int) -> str:
        answer = turn.scenes[0].answer if turn.scenes else None
        text = turn.question.text
        text = text if len(text) <= MAX_TITLE else f"{text[:MAX_TITLE]}…"
        title = shown(f"{text} — {answer if answer is not None else 'no answer'}")
        body = self._arms(turn.question.model, turn.scenes, [label for label, _ in turn.question.presets], number)
        return f'<details class="cu cud-earlier"><summary dir="auto">{html.escape(title)}</summary>{body}</details>'

    @staticmethod
    def complaint(error: BaseException, more: str = "") -> str:
        """A sentence where the answer would be, and maybe one more."""
        text = html.escape(f"{capital(sentence(error))}{more}")
        return f'<div class="cu"><p class="cud-alert" role="alert">{text}</p></div>'


HEADER = (
    '<header class="cu cud-header"><h1>closeup</h1><p>Ask a question about a video and see where the agent looks. One'
    " click on an example runs it.</p></header>"
)
WELCOME = (
    '<div class="cu cud-welcome"><h2>Watch the agent watch the film</h2><p>It skims the whole film first, then asks for'
    " close-ups of the seconds that matter. Every thought, every look and every cost appears here while it happens."
    ' Click an example, or ask about a film of yours.</p><ul class="cud-cards" aria-label="Examples">{cards}</ul></div>'
)


def _card(number: int, task: Task) -> str:
    """An example as a card: a frame, what is asked, the film's length. demo.js clicks the example's button for it."""
    picture = ""
    try:
        with Video(task.videos[0]) as video:
            duration, width, height = video.duration, video.width, video.height
            frame = video.frames([duration * 0.3], (height, width)).pixels[0]
            picture = f'<img src="{data_url(frame)}" width="{width}" height="{height}" alt="">'
        length = f" · {clock(duration)}"
    except VideoError:
        log.exception("the bundled example %s cannot be shown", task.id)
        length = ""
    kind = html.escape(KINDS.get(task.kind, task.kind))
    return (
        f'<li><button type="button" class="cud-card" data-cud-example="{number}">{picture}<span class="cud-card-text">'
        f"<b>{html.escape(task.question)}</b><span>{kind}{length}</span></span></button></li>"
    )


def capital(text: str) -> str:
    """A sentence as it stands alone: its first word with a capital, unless that is a name (film.mp4, --allow, 'x')."""
    first = text.split(" ", 1)[0].rstrip(",:;")
    return text[:1].upper() + text[1:] if first.isalpha() and first.islower() else text
