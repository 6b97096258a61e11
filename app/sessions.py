"""Who is asking what: `Line`, the queue for the model; `Session`, one visitor's conversation; `Sessions`, all of them.

Invariants
1. At most `places` questions run and `waiting` wait; first come, first served; leaving the line is always possible.
2. A session is reached by its key alone, and holds everything of its visitor: nothing is shared between sessions.
3. A session that is dropped (its page was closed, it was idle too long, or too many came) stops what it runs and gives
   back its uploads.
4. One question runs per session.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from closeup.app.errors import BadInput

if TYPE_CHECKING:
    from pathlib import Path

    from closeup.agent.trajectory import Trajectory, VideoRecord
    from closeup.app.asking import Question, Run
    from closeup.app.scene import Scene


class LineFull(BadInput):
    """Too many questions wait already."""


class Line:
    """A queue of tickets: the first `places` of them may run."""

    def __init__(self, places: int, waiting: int) -> None:
        self.places, self.waiting = places, waiting
        self._tickets: list[Ticket] = []
        self._lock = threading.Lock()

    def join(self) -> Ticket:
        """Take a ticket at the end of the line. Raises `LineFull`."""
        with self._lock:
            if len(self._tickets) >= self.places + self.waiting:
                raise LineFull(
                    f"{len(self._tickets)} questions are being answered or waiting already, and more do not fit; try"
                    " again in a moment"
                )
            ticket = Ticket(self)
            self._tickets.append(ticket)
            return ticket

    def ahead(self, ticket: Ticket) -> int:
        """How many have to leave before this ticket may run; 0: it may run now."""
        with self._lock:
            if ticket not in self._tickets:
                return 0
            return max(0, self._tickets.index(ticket) + 1 - self.places)

    def leave(self, ticket: Ticket) -> None:
        """Give the ticket back; harmless when that was done."""
        with self._lock:
            if ticket in self._tickets:
                self._tickets.remove(ticket)

    def __len__(self) -> int:
        """Questions that run or wait."""
        with self._lock:
            return len(self._tickets)


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A place in a `Line`."""

    line: Line

    @property
    def ahead(self) -> int:
        """See `Line.ahead`."""
        return self.line.ahead(self)

    def leave(self) -> None:
        """See `Line.leave`."""
        self.line.leave(self)


@dataclass(frozen=True, slots=True)
class Film:
    """The video a session asks about.

    Attributes:
        path: where it is. name: what the visitor calls it.
        token: unguessable name under which the page plays it.
        record: what it is (seconds, pixels). upload: it is this session's upload, deleted with it.
        generated: it comes from the bundled model's world.
    """

    path: Path
    name: str
    token: str
    record: VideoRecord
    upload: bool = False
    generated: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One question that is over: what was asked, and each arm's record and last scene (two arms when compared)."""

    question: Question
    trajectories: tuple[Trajectory, ...]
    scenes: tuple[Scene, ...]


@dataclass(slots=True, eq=False)
class Session:
    """One visitor: the film, the questions so far, the question that runs.

    Attributes:
        turns: finished questions, oldest first. run: what runs now, or None.
        cleared: how often it was cleared. asked: questions ever asked here.
        used: when it was last used (monotonic seconds).
    """

    key: str
    film: Film | None = None
    turns: list[Turn] = field(default_factory=list)
    run: Run | None = None
    cleared: int = 0
    asked: int = 0
    used: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)
    closed: bool = False

    def begin(self, run: Run) -> None:
        """Take `run` as the one that runs. Raises `BadInput` when there is one, or the session was dropped."""
        with self.lock:
            if self.closed:
                raise BadInput("this conversation was closed; load the page again")
            if self.run is not None:
                raise BadInput("a question is still being answered here; stop it first, or wait for its answer")
            self.run = run
            self.used = time.monotonic()

    def end(self, run: Run, turn: Turn | None, *, keep: int) -> None:
        """The run is over; its turn joins the conversation, of which the last `keep` turns stay."""
        with self.lock:
            if self.run is run:
                self.run = None
                if turn is not None:
                    self.turns = [*self.turns, turn][-keep:]
            self.used = time.monotonic()

    def stop(self) -> bool:
        """Stop what runs; tells whether anything did."""
        with self.lock:
            run = self.run
        if run is None:
            return False
        run.stop("stopped")
        return True

    def clear(self) -> None:
        """Stop what runs and forget the questions; the film stays."""
        with self.lock:
            run, self.run, self.turns = self.run, None, []
            self.cleared += 1
            self.used = time.monotonic()
        if run is not None:
            run.stop("stopped")

    def close(self) -> None:
        """Stop what runs, for good."""
        self.closed = True
        self.clear()


class Sessions:
    """Every visitor's session by key, bounded in number and age.

    Args:
        most: sessions kept. keep_seconds: how long one is kept after its last use.
        on_drop: told of every session that is dropped (to give back its uploads).
    """

    def __init__(self, most: int, keep_seconds: float, on_drop: Callable[[Session], None] = lambda session: None):
        self._most, self._keep = most, keep_seconds
        self._on_drop = on_drop
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> Session:
        """The session of this key, made when it is new. Raises `BadInput` for a key that is none.

        A new session takes the place of the one unused longest; one that is answering is never dropped for it.
        """
        if not key or len(key) > 200:
            raise BadInput("the request names no session; use the page, or gradio_client")
        dropped: list[Session] = []
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                if len(self._sessions) >= self._most:
                    idle = next((old for old in self._sessions.values() if old.run is None), None)
                    if idle is None:
                        raise LineFull("every place is taken by a visitor who is waiting for an answer; try again soon")
                    dropped.append(self._sessions.pop(idle.key))
                session = self._sessions[key] = Session(key)
            self._sessions.move_to_end(key)
            session.used = time.monotonic()
        self._drop(dropped)
        return session

    def drop(self, key: str) -> None:
        """Close a session; harmless when there is none."""
        with self._lock:
            session = self._sessions.pop(key, None)
        self._drop([session] if session else [])

    def sweep(self) -> None:
        """Drop every session that was idle too long."""
        now = time.monotonic()
        with self._lock:
            old = [s for s in self._sessions.values() if s.run is None and now - s.used > self._keep]
            for session in old:
                del self._sessions[session.key]
        self._drop(old)

    def stop(self) -> None:
        """Stop what runs in any of them; they stay."""
        with self._lock:
            every = list(self._sessions.values())
        for session in every:
            session.stop()

    def close(self) -> None:
        """Drop all of them."""
        with self._lock:
            every = list(self._sessions.values())
            self._sessions.clear()
        self._drop(every)

    def film(self, token: str) -> Film | None:
        """The film that a session plays under this token, or None."""
        with self._lock:
            films = [session.film for session in self._sessions.values()]
        return next((film for film in films if film is not None and film.token == token), None)

    def shows(self, path: Path) -> bool:
        """Whether any session's film is the one at this path."""
        with self._lock:
            return any(session.film is not None and session.film.path == path for session in self._sessions.values())

    def __len__(self) -> int:
        """Sessions there are."""
        with self._lock:
            return len(self._sessions)

    def _drop(self, sessions: list[Session]) -> None:
        for session in sessions:
            session.close()
            self._on_drop(session)
