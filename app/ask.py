"""`closeup ask`: one question about one video, shown as it happens or as one JSON object.

Exit codes: 0 = an answer; 1 = the agent gave none (said with the reason, in JSON too); 2 = bad input, found before any
model is loaded wherever it can be seen without one; also 2, after the answer was printed, when --save failed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from closeup.app.errors import NO_ANSWER, USAGE, BadInput, complain
from closeup.app.setup import BUNDLED, Overrides, check_overviews, choose_preset, open_policy
from closeup.tools.video import Video

if TYPE_CHECKING:
    from closeup.agent.preset import Preset
    from closeup.agent.task import Task
    from closeup.agent.trajectory import Trajectory

MAX_QUESTION = 4000
"""Characters of a question; longer ones are a pasted file, not a question."""


MAX_RECORD = 64 << 20
"""Bytes of a trajectory file's end that are looked at for half a record; no record is longer."""


@dataclass(frozen=True, slots=True)
class AskOptions:
    """The command's arguments, as typed."""

    video: Path
    question: str
    options: tuple[str, ...] = ()
    subtitles: Path | None = None
    model: str = "tiny"
    preset: str | None = None
    overrides: Overrides = Overrides()
    as_json: bool = False
    save: Path | None = None
    seed: int = 0


def run(options: AskOptions) -> int:
    """Answer, print, save; returns the exit code. Raises what the CLI turns into a sentence (exit code 2)."""
    task = _task(options)
    preset = choose_preset(options.model, options.preset, options.overrides)
    _check_save(options.save, options.video, options.subtitles)
    if options.model in BUNDLED:
        _warn_outside_world(options.video)
    check_overviews(options.model, preset, [task])
    trajectory = _episode(task, options, preset)
    if options.as_json:
        sys.stdout.write(json.dumps(answer_object(trajectory)) + "\n")
        sys.stdout.flush()
    if options.save is not None:
        from closeup.agent.trajectory import write_trajectories

        try:
            write_trajectories(options.save, [trajectory], append=True)
        except OSError as error:  # a full disk; the answer is out already
            complain(f"the answer stands, but its trajectory could not be saved to {options.save}: {error.strerror}")
            return USAGE
    return 0 if trajectory.outcome.answer is not None else NO_ANSWER


def answer_object(trajectory: Trajectory) -> dict[str, Any]:
    """What `--json` prints: the answer with its evidence and cost, or null with the reason."""
    outcome = trajectory.outcome
    found = {
        "answer": outcome.answer,
        "choice": outcome.choice,
        "evidence": [list(window) for window in outcome.evidence],
        "steps": outcome.steps,
        "visual_tokens": outcome.visual_tokens,
        "seconds": round(outcome.seconds, 3),
    }
    return found if outcome.answer is not None else {**found, "reason": outcome.reason or "the agent gave no answer"}


def _task(options: AskOptions) -> Task:
    from pydantic import ValidationError

    from closeup.agent.task import Cue, Task

    try:
        str(options.video).encode()
    except UnicodeEncodeError:
        raise BadInput(f"the name {str(options.video)!r} is not valid text (UTF-8); rename the file") from None
    for what, text in (("question", options.question), *(("--option", text) for text in options.options)):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadInput(
                f"the {what} {text!r} is not valid text (UTF-8); is the terminal's encoding UTF-8?"
            ) from None
    if not options.question.strip():
        raise BadInput('the question is empty; ask one, e.g. closeup ask film.mp4 "When does she open the letter?"')
    if len(options.question) > MAX_QUESTION:
        raise BadInput(f"the question has {len(options.question)} characters; at most {MAX_QUESTION} are accepted")
    if len(options.options) == 1:
        raise BadInput("one --option leaves nothing to choose; give two or more, or none for a free answer")
    if not all(text.strip() for text in options.options):
        raise BadInput("an --option is empty; give each a text")
    with Video(options.video):  # raises in a sentence when it cannot be opened
        pass
    cues: tuple[Cue, ...] = ()
    if options.subtitles is not None:
        from closeup.agent.subtitles import read_subtitles

        cues = read_subtitles(options.subtitles)
    try:
        return Task(
            id=options.video.stem or "ask",
            videos=(options.video,),
            question=options.question,
            options=options.options,
            answer_kind="choice" if options.options else "text",
            subtitles=cues,
        )
    except ValidationError as error:
        raise BadInput(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None


def _check_save(path: Path | None, *inputs: Path | None) -> None:
    if path is None:
        return
    if path.is_file() and path.stat().st_size and path.open("rb").read(1) != b"{":
        raise BadInput(f"--save appends to trajectory files (JSON Lines), and {path} is another kind of file")
    if path.is_file() and _last_line_is_torn(path):
        raise BadInput(
            f"the last line of {path} is half a record (a run was interrupted while it wrote); give --save another"
            " file, or delete that line"
        )
    if any(given is not None and path.exists() and path.samefile(given) for given in inputs):
        raise BadInput(f"--save {path} is one of the files the question is about; give another file")
    if path.is_dir():
        raise BadInput(f"--save takes a file, {path} is a folder; give e.g. {path / 'trajectories.jsonl'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; give another file to --save") from None


def _last_line_is_torn(path: Path) -> bool:
    """Whether a trajectory file ends in the middle of a record."""
    from closeup.agent.trajectory import ends_in_a_line

    if ends_in_a_line(path) is not False:
        return False
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, MAX_RECORD), 2)
        last = file.read().rpartition(b"\n")[2]
    try:
        json.loads(last)
    except ValueError:
        return True
    return False


def _warn_outside_world(video: Path) -> None:
    from closeup.rl.data.needles import is_needle

    if not is_needle(video):
        complain(
            "the bundled model knows only the videos of `closeup data needles`; for yours give a real one, "
            "e.g. --model Qwen/Qwen2.5-VL-7B-Instruct"
        )


def _episode(task: Task, options: AskOptions, preset: Preset) -> Trajectory:
    from closeup.agent.agent import Agent
    from closeup.app.terminal import View
    from closeup.rl.rewards import DEFAULT_REWARDS, is_correct

    agent = Agent(open_policy(options.model, preset), preset)
    view = None if options.as_json else View()
    return agent.run(task, rewards=DEFAULT_REWARDS, judge=is_correct, seed=options.seed, on_event=view)
