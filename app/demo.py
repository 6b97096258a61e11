"""`closeup demo`: the parts of the web demo put together: models, films, conversations, and what a visitor may ask.

`Demo` knows nothing of Gradio; `closeup.app.page` draws it, `closeup.app.guard` stands in front of it. The page and the
HTTP API call the same methods.

Invariants
1. Only the bundled examples, a visitor's own upload, and videos below the `--allow` folders are ever opened.
2. Whatever a visitor sends is checked here and refused in a sentence (`BadInput`).
3. Nothing of one visitor reaches another: everything hangs on the session's key.
4. A film that no session shows any more is held open by nobody: no decoder waits for it, and an upload's space is free.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from closeup.agent.environment import VideoQAEnv
from closeup.agent.models.load import default_preset
from closeup.agent.preset import PRESETS, Preset, get_preset
from closeup.agent.task import Task, load_tasks
from closeup.agent.trajectory import Trajectory, VideoRecord
from closeup.app import heap
from closeup.app.allow import Allowed
from closeup.app.asking import Question, Run
from closeup.app.errors import BadInput
from closeup.app.guard import PictureShelf
from closeup.app.html import render
from closeup.app.pictures import Pictures
from closeup.app.scene import Scene
from closeup.app.sessions import Film, Line, Session, Sessions, Turn
from closeup.app.settings import MB, DemoSettings
from closeup.app.setup import BUNDLED, open_policy
from closeup.app.timeline import clock
from closeup.app.uploads import Uploads
from closeup.app.wishes import Wish, default_memory, memory, number, shown, texts
from closeup.tools.registry import registered_tools
from closeup.tools.video import Video, close_readers

if TYPE_CHECKING:
    from closeup.agent.policies.base import Policy

log = logging.getLogger(__name__)
EXAMPLES = Path(__file__).resolve().parent / "examples"
SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".ogv")
MAX_LISTED = 500
"""Videos of the --allow folders that are offered by name; others are reached by typing their name."""


class Models:
    """The models that may be asked, each loaded when it is first needed, then kept.

    Args:
        names: as given on the command line. load: opens one (`closeup.app.setup.open_policy`).
    """

    def __init__(self, names: Sequence[str], preset: str | None, load: Callable[[str, Preset], Policy] = open_policy):
        self.names = tuple(names)
        self._load = load
        self._own = {name: get_preset(preset or default_preset(name)) for name in self.names}
        for own in self._own.values():
            _usable(own)
        self._policies: dict[str, Policy] = {}
        self._lock = threading.Lock()

    def preset(self, model: str) -> Preset:
        """The preset a model starts with."""
        return self._own[self.known(model)]

    def presets(self, model: str) -> dict[str, Preset]:
        """The presets a loaded model can work under, its own first: those that tell it the time in the same way."""
        own = self.preset(model)
        rest = {name: preset for name, preset in PRESETS.items() if preset.timestamps == own.timestamps}
        return {own.name: own} | rest

    def known(self, model: str) -> str:
        """The model's name. Raises `BadInput` when it is none of this demo's."""
        if model not in self._own:
            raise BadInput(f"no model {shown(model)} here; offered: {', '.join(self.names)}")
        return model

    def policy(self, model: str) -> Policy:
        """The loaded model; the first call takes as long as loading does."""
        with self._lock:
            if model not in self._policies:
                self._policies[model] = self._load(model, self._own[self.known(model)])
            return self._policies[model]


class Demo:
    """Everything behind the page. `close` it when done."""

    def __init__(self, settings: DemoSettings, load: Callable[[str, Preset], Policy] = open_policy) -> None:
        self.settings = settings
        self.models = Models(settings.models, settings.preset, load)
        self.examples: tuple[Task, ...] = tuple(load_tasks(EXAMPLES / "tasks.jsonl"))
        self.further: dict[str, tuple[Task, ...]] = _further(self.examples)
        self.allowed = Allowed(
            settings.allow,
            files=[task.videos[0] for task in self.examples],
            accepted="an upload of yours, a bundled example, or a video of a folder given with --allow",
        )
        self.uploads = Uploads(
            int(settings.max_disk_mb * MB), int(settings.max_upload_mb * MB), settings.keep_minutes * 60
        )
        self.line = Line(settings.at_once, settings.waiting)
        self.sessions = Sessions(settings.max_sessions, settings.keep_minutes * 60, self._forget)
        self.pictures = Pictures(film_side=480, max_bytes=128 << 20)
        self.shelf = PictureShelf()
        self._closing = threading.Event()
        threading.Thread(target=self._sweep, name="closeup-sweep", daemon=True).start()

    # ---- films -----------------------------------------------------------------------------------------------------

    def films(self) -> list[str]:
        """Names of the videos that may be picked: the examples', then those of the --allow folders."""
        names = [task.videos[0].name for task in self.examples]
        return list(dict.fromkeys([*names, *_listed(self.settings.allow)]))

    def pick(self, key: str, name: str) -> Film:
        """Make a bundled or allowed video the session's film. Raises `BadInput`, `VideoError`."""
        session = self.sessions.get(key)
        _not_running(session)
        path = self.allowed.path(name)
        if session.film is not None and session.film.path == path:
            return session.film
        return self._show(session, self._open(path, path.name))

    def take(self, key: str, path: str) -> Film:
        """Make an upload the session's film. Raises `BadInput`, `VideoError`."""
        session = self.sessions.get(key)
        _not_running(session)
        kept = self.uploads.take(path)
        try:
            film = self._open(kept, kept.name, upload=True)
        except BaseException:
            self.uploads.give_back(kept)
            raise
        return self._show(session, film)

    def _open(self, path: Path, name: str, *, upload: bool = False) -> Film:
        from closeup.rl.data.needles import is_needle

        with Video(path) as video:
            record = VideoRecord(
                path=str(path),
                duration=video.duration,
                width=video.width,
                height=video.height,
                fps=video.fps,
                codec=video.codec,
            )
        most = self.settings.max_minutes
        if record.duration > 60 * most:
            raise BadInput(
                f"{name} lasts {clock(record.duration)} and at most {clock(60 * most)} is accepted; cut it, or start"
                " the demo with a larger --max-minutes"
            )
        return Film(path, name, secrets.token_urlsafe(18), record, upload=upload, generated=is_needle(path))

    def _show(self, session: Session, film: Film) -> Film:
        with session.lock:
            old, session.film, session.turns = session.film, film, []
        self._let_go(old)
        return film

    # ---- questions -------------------------------------------------------------------------------------------------

    def ask(self, key: str, wish: Wish, *, seed: int = 0, afresh: bool = False) -> Run:
        """Begin to answer; the run is the session's until it is over. Raises `BadInput`.

        Args:
            afresh: forget the questions before it, as another film does.
        """
        session = self.sessions.get(key)
        _not_running(session)
        question = self.question(session, wish, seed=seed)
        return self._begin(session, question, afresh=afresh)

    def retry(self, key: str) -> Run:
        """Ask the last question again, with another seed, in the place of its answer. Raises `BadInput`."""
        session = self.sessions.get(key)
        _not_running(session)
        with session.lock:
            if not session.turns:
                raise BadInput("there is no question to ask again yet; ask one")
            last = session.turns[-1]
            session.turns = session.turns[:-1]
        return self._begin(session, replace(last.question, seed=last.question.seed + 1))

    def _begin(self, session: Session, question: Question, *, afresh: bool = False) -> Run:
        ticket = self.line.join()
        run = Run(
            question,
            ticket,
            turns=() if afresh else session.turns,
            policy=lambda: self.models.policy(question.model),
            max_seconds=self.settings.max_seconds,
            on_end=lambda run: self._over(session, run),
        )
        try:
            session.begin(run)
        except BadInput:
            ticket.leave()
            raise
        if afresh:
            with session.lock:
                session.turns = []
        session.asked += 1
        return run.start()

    def question(self, session: Session, wish: Wish, *, seed: int = 0) -> Question:
        """What a wish means for this session. Raises `BadInput`."""
        film = session.film
        if film is None:
            raise BadInput("there is no video yet; upload one, pick one, or click an example")
        wish.check()
        text, options = texts(wish)
        model = self.models.known(wish.model or self.models.names[0])
        preset = self.preset(model, wish)
        presets = [("", preset)]
        if wish.compare:
            if preset.tools == ("answer",):
                raise BadInput("comparing needs a tool to compare with; switch one on, or compare off")
            # One message, the answer: a model trained to look would otherwise spend its steps on refused calls.
            once = preset.budget.model_copy(update={"max_steps": 1})
            alone = preset.model_copy(update={"tools": ("answer",), "budget": once})
            presets = [("with zoom", preset), ("without zoom", _usable(alone))]
        known = self._known(film, text, options)
        return Question(
            film=film,
            text=text,
            options=options,
            model=model,
            presets=tuple(presets),
            memory=memory(wish.memory or default_memory(model)),
            gold=known.answer if known else None,
            evidence=known.evidence if known else (),
            seed=seed,
        )

    def preset(self, model: str, wish: Wish) -> Preset:
        """The preset of a wish with its changes put in. Raises `BadInput`."""
        presets = self.models.presets(model)
        name = wish.preset or self.models.preset(model).name
        if name not in presets:
            raise BadInput(f"no preset {shown(name)} for {model}; offered: {', '.join(presets)}")
        preset = presets[name]
        if wish.max_steps is not None:
            steps = number("max_steps", wish.max_steps, 1, 64)
            if not float(steps).is_integer():
                raise BadInput(f"max_steps is a whole number from 1 to 64, got {wish.max_steps!r}")
            budget = preset.budget.model_copy(update={"max_steps": int(steps)})
            preset = preset.model_copy(update={"budget": budget})
        if wish.temperature is not None:
            preset = preset.model_copy(update={"temperature": number("temperature", wish.temperature, 0, 10)})
        if wish.tools is not None:
            known = registered_tools()
            names = list(wish.tools) if not isinstance(wish.tools, str) else [wish.tools]
            unknown = [tool for tool in names if tool not in known]
            if unknown:
                raise BadInput(f"no tool named {', '.join(map(shown, unknown[:5]))}; known: {', '.join(known)}")
            ordered = tuple(dict.fromkeys([*(tool for tool in names if tool != "answer"), "answer"]))
            if set(ordered) != set(registered_tools(preset.tools)):
                preset = preset.model_copy(update={"tools": ordered})
        return _usable(preset)

    def tools_of(self, preset: Preset) -> list[str]:
        """The tools of a preset that a visitor may switch off."""
        return [name for name in registered_tools(preset.tools) if name != "answer"]

    def warning(self, film: Film | None, model: str) -> str:
        """What a visitor should know before asking this model about this film, or ""."""
        if film is None or film.generated or model not in BUNDLED:
            return ""
        return (
            "The bundled model knows only the videos of “closeup data needles”, so its answer about this one means"
            " nothing. For your own films start the demo with a real model, e.g. --model Qwen/Qwen2.5-VL-7B-Instruct."
        )

    def notes(self, run: Run) -> list[str]:
        """What a visitor should know about a question: how it began, and what its answer is worth."""
        question = run.question
        notes = [arm.note for arm in run.arms if arm.note]
        if run.turns and question.model in BUNDLED:
            if question.memory == "nothing":
                notes.append(
                    "Asked afresh, since the bundled model was never trained on second questions; Settings, “A"
                    " follow-up keeps”, lets it keep what was seen."
                )
            elif run.over and any(scene.answer is None for scene in run.scenes):
                notes.append(
                    "This question began with what was seen before, and the bundled model was never trained for that;"
                    " press Clear, or let a follow-up keep nothing (Settings), and ask again."
                )
        return [note for note in (*notes, self.warning(question.film, question.model)) if note]

    # ---- what is shown ---------------------------------------------------------------------------------------------

    def draw(self, scene: Scene, prefix: str, *, level: int = 2) -> str:
        """A scene as a fragment whose pictures are on the shelf."""
        return self.shelf.shelve(render(scene, self.pictures, level=level, prefix=prefix))

    def close(self) -> None:
        """Stop every question and delete every upload."""
        self._closing.set()
        self.sessions.close()
        self.uploads.close()

    def _known(self, film: Film, text: str, options: tuple[str, ...]) -> Task | None:
        tasks = [*self.examples, *(task for tasks in self.further.values() for task in tasks)]
        return next(
            (t for t in tasks if t.videos[0] == film.path and t.question == text and set(t.options) == set(options)),
            None,
        )

    def _forget(self, session: Session) -> None:
        self._let_go(session.film)

    def _let_go(self, film: Film | None) -> None:
        """A session shows this film no more."""
        if film is None:
            return
        if film.upload:
            self.uploads.give_back(film.path)
        if not self.sessions.shows(film.path):
            close_readers(film.path)

    def _over(self, session: Session, run: Run) -> None:
        """A question has ended, maybe after its session did."""
        session.end(run, _turn(run), keep=self.settings.max_turns)
        film = run.question.film
        if not self.sessions.shows(film.path):  # what read it gave its readers back after the film was let go
            close_readers(film.path)

    def _sweep(self) -> None:
        while not self._closing.wait(20):
            try:
                self.sessions.sweep()
                self.uploads.sweep()
                heap.give_back()
            except Exception:  # the sweeper outlives a bad moment of the disk
                log.exception("sweeping uploads failed")


def result(run: Run) -> dict[str, Any]:
    """A run as the HTTP API tells it: one JSON object, complete at every moment."""
    arms = [
        {"label": arm.label, "note": arm.note} | scene_object(scene)
        for arm, scene in zip(run.arms, run.scenes, strict=True)
    ]
    first = dict(arms[0])
    ahead = run.ahead
    if ahead:
        first["status"] = "waiting"
    return first | {"ahead": ahead, "arms": arms if len(arms) > 1 else []}


def scene_object(scene: Scene) -> dict[str, Any]:
    """A scene as JSON, without pictures and without paths."""
    return {
        "status": scene.status,
        "question": scene.question,
        "options": list(scene.options),
        "answer": scene.answer,
        "choice": scene.choice,
        "evidence": [list(window) for window in scene.evidence],
        "correct": scene.correct,
        "reason": scene.reason,
        "steps": [
            {
                "thought": step.thought,
                "outcome": step.outcome,
                "note": step.note,
                "calls": [
                    {
                        "tool": call.name,
                        "arguments": dict(call.arguments),
                        "state": call.state,
                        "seconds": call.seconds,
                        "note": call.note,
                        "windows": [[look.start, look.end] for look in call.looks],
                    }
                    for call in step.calls
                ],
            }
            for step in scene.steps
        ],
        "earlier": [[look.start, look.end] for look in scene.earlier],
        "budgets": {spent.name: {"used": spent.used, "allowed": spent.allowed} for spent in scene.budgets},
    }


def run(settings: DemoSettings) -> int:
    """`closeup demo`: serve until interrupted. Raises what the CLI turns into a sentence."""
    from closeup.extras import require

    require("demo", "gradio")
    heap.few_arenas()
    demo = Demo(settings)
    try:
        demo.models.policy(settings.models[0])  # a model that cannot be loaded is said now, not at the first question
        from closeup.app.serving import serve

        serve(demo)
    finally:
        demo.close()
    return 0


def _turn(run: Run) -> Turn | None:
    trajectories: list[Trajectory] = [arm.trajectory for arm in run.arms if arm.trajectory is not None]
    return Turn(run.question, tuple(trajectories), run.scenes)


def _usable(preset: Preset) -> Preset:
    try:
        VideoQAEnv(preset).close()
    except ValueError as error:
        raise BadInput(f"the preset {preset.name!r} cannot be used: {error}") from None
    return preset


def _not_running(session: Session) -> None:
    if session.run is not None:
        raise BadInput("a question is still being answered here; stop it first, or wait for its answer")


def _further(examples: Sequence[Task]) -> dict[str, tuple[Task, ...]]:
    """Further questions about the examples' videos, by file name."""
    further: dict[str, tuple[Task, ...]] = {}
    for task in load_tasks(EXAMPLES / "further.jsonl"):
        name = task.videos[0].name
        further[name] = (*further.get(name, ()), task)
    return further


def _listed(folders: Sequence[Path]) -> Iterator[str]:
    """Plain video files below the folders, by name relative to theirs; no links, pipes, devices or hidden files.

    A link that leads to an allowed film can still be typed; what leads elsewhere is refused and not even named.
    """
    found = 0
    for folder in folders:
        for parent, below, names in os.walk(folder):
            below[:] = sorted(name for name in below if not name.startswith("."))
            for name in sorted(names):
                if name.lower().endswith(SUFFIXES) and not name.startswith(".") and _plain(Path(parent, name)):
                    found += 1
                    if found > MAX_LISTED:
                        return
                    yield str(Path(parent, name).relative_to(folder))


def _plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:  # it went away meanwhile
        return False
