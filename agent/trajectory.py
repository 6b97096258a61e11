"""`Trajectory`: the immutable, versioned record of an episode; one JSON object per line of a `.jsonl` file.

The trainer, the demo, the viewer, replay and export all read this one record.

Invariants
1. Token ids are exact: `full_prompt_ids(i) + steps[i].ids` is what the policy saw and sampled at step i, token for
   token.
2. `steps[i].parent` is the step whose prompt and completion are a prefix of step i's prompt, or None when the context
   was
   built anew: a rebuilt context is one more path from the root.
3. A reward that was not scored is None, never 0.
4. Clips are requests, by key; `clips[key]` says what each really became (times, size, tokens, bad packets).
5. A reader of version N reads every version <= N and refuses a later one by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from closeup.agent.messages import Message
from closeup.agent.task import Task
from closeup.tools.video.clip import Clip

VERSION = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ClipRecord(_Record):
    """What a clip became: real presentation times (seconds), frame size (height, width) in pixels, tokens, faults.

    `times` is empty when the policy looked at no frame of it (a scripted policy, or an episode that ended first).
    `digest` names the very pixels that were shown, 32 hexadecimal digits; "" when none were.
    """

    clip: Clip
    times: tuple[float, ...]
    size: tuple[int, int]
    tokens: int
    bad_packets: int = 0
    backend: str = "pyav"
    seconds: float = 0.0
    digest: str = ""


class VideoRecord(_Record):
    """A video of the episode: where it was, and what it is (seconds, pixels as displayed, frames per second)."""

    path: str
    duration: float
    width: int
    height: int
    fps: float
    codec: str


class CallRecord(_Record):
    """The action a step took, as written: tool and raw arguments."""

    name: str
    arguments: dict[str, Any]


class StepRecord(_Record):
    """One assistant message and what came of it.

    Attributes:
        parent: see invariant 2.
        messages: the messages this step's prompt added to its parent's context (the whole context when parent is None).
        prompt_ids: ids those messages became (assistant prefix included); None for policies without tokens.
        text, ids, logprobs, finish: the completion (see `policies.base.Completion`).
        thought, call: what the dialect read in it; `outcome` its format outcome, `note` the sentence told to the model.
        clips: keys of the clips the call gave.
        rewards: streams by name; None = not scored.
        forced: only an answer was taken at this step.
        context_tokens: tokens of the whole context with this message, as the policy counted them; None when it did not.
        generate_seconds, tool_seconds: wall time of the policy (an even share of its batch's) and of the tool, in
            seconds.
    """

    parent: int | None = None
    messages: tuple[Message, ...] = ()
    assistant_prefix: str = ""
    prompt_ids: tuple[int, ...] | None = None
    text: str = ""
    ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    finish: Literal["stop", "length", "cancelled", "error"] = "stop"
    thought: str = ""
    call: CallRecord | None = None
    outcome: str = "ok"
    note: str = ""
    clips: tuple[str, ...] = ()
    rewards: dict[str, float | None] = Field(default_factory=dict)
    forced: bool = False
    context_tokens: int | None = None
    generate_seconds: float = 0.0
    tool_seconds: float = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> StepRecord:
        if self.logprobs is not None and len(self.logprobs) != len(self.ids or ()):
            raise ValueError(f"{len(self.ids or ())} ids have {len(self.logprobs)} log-probabilities")
        return self


class Outcome(_Record):
    """How the episode ended.

    Attributes:
        terminated: the agent answered; truncated: a budget ran out (`reason` names it); failed: the episode broke
            (`reason` says how) and is data to be masked.
        answer: the option's exact text or the free text; choice: its letter.
        evidence: cited windows (seconds) inside windows that were watched closely.
        correct: the answer equals the gold answer; None when that cannot be told.
    """

    terminated: bool = False
    truncated: bool = False
    failed: bool = False
    reason: str = ""
    answer: str | None = None
    choice: str | None = None
    evidence: tuple[tuple[float, float], ...] = ()
    correct: bool | None = None
    steps: int = 0
    frames: int = 0
    visual_tokens: int = 0
    seconds: float = 0.0


class StartRecord(_Record):
    """How the episode began, beside its task: the arguments of `reset`."""

    seen_clips: tuple[Clip, ...] = ()
    history: tuple[Message, ...] = ()
    assistant_prefix: str = ""


class Trajectory(_Record):
    """The record of one episode. See the module's invariants.

    Attributes:
        id: the episode's id, unique in its run (`task.id/rollout`).
        settings: everything that shaped the episode: preset, geometry, prompts' fingerprint, policy, sampling, seeds,
            versions; and under "used" what it really used: frames, sizes, frames per second, tokens, digests of the
            templates and of the system message (`closeup.agent.used`).
        videos: the task's videos by content identity; clips: every clip asked for, by key.
    """

    version: int = VERSION
    id: str
    task: Task
    start: StartRecord = StartRecord()
    settings: dict[str, Any] = Field(default_factory=dict)
    videos: dict[str, VideoRecord] = Field(default_factory=dict)
    steps: tuple[StepRecord, ...] = ()
    clips: dict[str, ClipRecord] = Field(default_factory=dict)
    outcome: Outcome = Outcome()

    @model_validator(mode="after")
    def _consistent(self) -> Trajectory:
        for index, step in enumerate(self.steps):
            if step.parent is not None and not 0 <= step.parent < index:
                raise ValueError(f"the parent of step {index} is {step.parent}; a parent is an earlier step")
        return self

    def path_to(self, index: int) -> tuple[int, ...]:
        """Indices of the steps from the root of `index`'s path to `index` itself."""
        path = [index]
        while (parent := self.steps[path[0]].parent) is not None:
            path.insert(0, parent)
        return tuple(path)

    def full_prompt_ids(self, index: int) -> tuple[int, ...]:
        """Every id before step `index`'s completion. Raises `ValueError` when a step of its path has no ids."""
        ids: list[int] = []
        for i in self.path_to(index):
            step = self.steps[i]
            if step.prompt_ids is None or step.ids is None:
                raise ValueError(f"step {i} of trajectory {self.id!r} has no token ids (its policy gave none)")
            ids.extend(step.prompt_ids)
            if i != index:
                ids.extend(step.ids)
        return tuple(ids)

    def context(self, index: int) -> tuple[Message, ...]:
        """Every message before step `index`'s completion, assistant messages of its path included."""
        messages: list[Message] = []
        for i in self.path_to(index):
            messages.extend(self.steps[i].messages)
            if i != index:
                messages.append(Message.of("assistant", self.steps[i].text))
        return tuple(messages)


class TrajectoryError(ValueError):
    """A trajectory file that cannot be read; the message names file, line and fault."""


def write_trajectories(path: Path, trajectories: Iterable[Trajectory], *, append: bool = False) -> None:
    """Write one trajectory per line; with `append` after those already there, never onto a line without an end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = append and ends_in_a_line(path) is False
    with path.open("a" if append else "w", encoding="utf-8") as file:
        if torn:
            file.write("\n")
        for trajectory in trajectories:
            file.write(trajectory.model_dump_json() + "\n")
            file.flush()


def ends_in_a_line(path: Path) -> bool | None:
    """Whether a file's last line has its end; None when there is no file, or nothing in it."""
    if not path.is_file() or not path.stat().st_size:
        return None
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def read_trajectories(path: Path) -> Iterator[Trajectory]:
    """Yield the trajectories of a file.

    Raises `TrajectoryError` with file and line at the first that cannot be read.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise TrajectoryError(f"cannot read {path}: {error.strerror or error}") from None
    with file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                version = row.get("version") if isinstance(row, dict) else None
                if not isinstance(version, int) or version < 1:
                    raise TrajectoryError(
                        f"{path}, line {number}: not a trajectory: its version is {version!r}, not a whole number"
                    )
                if version > VERSION:
                    raise TrajectoryError(
                        f"{path}, line {number}: written in format {version}, and this closeup reads up to {VERSION};"
                        " upgrade closeup"
                    )
                yield Trajectory.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(p) for p in first["loc"])
                raise TrajectoryError(f"{path}, line {number}: not a trajectory: {where}: {first['msg']}") from None
            except TrajectoryError:
                raise
            except (ValueError, RecursionError) as error:  # broken JSON or text, an integer of thousands of digits
                raise TrajectoryError(f"{path}, line {number}: not JSON ({error})") from None
