"""Replaying a trajectory: its recorded messages through a fresh environment, compared with what was recorded.

What is compared: every context, prefix and forced turn, every outcome, note, call and clip, the immediate rewards, and
how the episode ended. Nothing is tolerated: a difference means that the environment, a prompt, a tool, a video or a
package is not what it was. No model is needed, and no frame is decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from closeup.agent.contract import Environment, Observation, StepResult
from closeup.agent.environment import VideoQAEnv
from closeup.agent.geometry import VisionGeometry
from closeup.agent.live import CANCELLED
from closeup.agent.messages import Message
from closeup.agent.preset import Preset
from closeup.agent.scoring import RewardFn
from closeup.agent.trajectory import StepRecord, Trajectory
from closeup.agent.versions import versions
from closeup.tools.registry import UnknownTool, registered_tools


class ReplayError(ValueError):
    """A trajectory that cannot be replayed at all; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that came out differently; `step` counts from 0 and is None for the whole episode."""

    step: int | None
    what: str
    recorded: str
    replayed: str

    def __str__(self) -> str:
        place = "episode" if self.step is None else f"step {self.step}"
        return f"{place}: {self.what}: recorded {self.recorded}, replayed {self.replayed}"


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What replaying one trajectory gave.

    Attributes:
        id: the trajectory's id; steps: steps replayed.
        differences: everything that came out differently; empty = the same.
        versions: packages whose version is another now, as name -> (recorded, now): where to look first.
    """

    id: str
    steps: int
    differences: tuple[Difference, ...]
    versions: Mapping[str, tuple[str, str]]

    @property
    def same(self) -> bool:
        """Nothing came out differently."""
        return not self.differences


def replay(
    trajectory: Trajectory,
    *,
    videos: Mapping[str, Path] | None = None,
    rewards: Mapping[str, RewardFn] | None = None,
    environment: Environment | None = None,
) -> ReplayReport:
    """Feed the recorded messages to a fresh environment and compare.

    Args:
        videos: where videos are now, by content identity; default: where they were.
        rewards: the immediate reward streams that were recorded, by name; one that is missing is a difference.
        environment: the environment to use; default: a `VideoQAEnv` with the recorded preset and geometry.

    Raises:
        ReplayError: the recorded settings make no `VideoQAEnv` and no environment is given.
        VideoError: a video is not there or cannot be opened.
    """
    found: list[Difference] = []
    env = environment or _environment(trajectory, rewards or {}, found)
    start = trajectory.start
    task = trajectory.task.model_copy(update={"videos": _paths(trajectory, videos or {})})
    try:
        try:
            observation = env.reset(
                task,
                seen_clips=start.seen_clips,
                history=start.history,
                assistant_prefix=start.assistant_prefix,
                seed=trajectory.settings.get("seed"),
                episode_id=trajectory.id,
            )
        except ValueError as error:
            raise ReplayError(f"trajectory {trajectory.id!r} cannot be started again: {error}") from None
        _compare(found, None, "videos", sorted(trajectory.videos), sorted(observation.videos))
        _compare(found, None, "settings", _shape(trajectory.settings), _shape(env.settings()))
        done = _steps(trajectory, env, observation, found)
    finally:
        env.close()
    now, recorded = versions(), trajectory.settings.get("versions")
    recorded = recorded if isinstance(recorded, Mapping) else {}
    changed = {name: (str(old), now.get(name, "unknown")) for name, old in recorded.items() if old != now.get(name)}
    return ReplayReport(trajectory.id, done, tuple(found), changed)


def _steps(trajectory: Trajectory, env: Environment, observation: Observation, found: list[Difference]) -> int:
    """Replay the steps; returns how many messages were fed to the environment."""
    result: StepResult | None = None
    fed = 0
    for index, step in enumerate(trajectory.steps):
        if result is not None and (result.terminated or result.truncated):
            _compare(found, index, "the episode", "goes on", "is over")
            break
        _compare_context(found, index, trajectory.context(index), observation.context)
        _compare(found, index, "assistant prefix", step.assistant_prefix, observation.assistant_prefix)
        _compare(found, index, "forced", step.forced, observation.forced)
        if step.finish not in ("stop", "length"):
            break
        result = env.step(step.text, finish=step.finish, spent_context_tokens=step.context_tokens)
        fed += 1
        _compare_step(found, index, step, result, trajectory.settings.get("rewards", []))
        observation = result.observation
    _compare_end(found, trajectory, env, result)
    return fed


def _compare_step(found: list[Difference], index: int, step: StepRecord, result: StepResult, streams: Any) -> None:
    info = result.info
    call = None if info.call is None else (info.call.name, dict(info.call.arguments))
    recorded = None if step.call is None else (step.call.name, step.call.arguments)
    _compare(found, index, "outcome", step.outcome, info.outcome)
    _compare(found, index, "note", step.note, info.note)
    _compare(found, index, "thought", step.thought, info.thought)
    _compare(found, index, "call", recorded, call)
    _compare(found, index, "clips", step.clips, tuple(clip.key for clip in info.clips))
    for name in streams:
        if name in result.rewards:
            _compare(found, index, f"reward {name}", step.rewards.get(name), result.rewards[name])


def _compare_end(found: list[Difference], trajectory: Trajectory, env: Environment, result: StepResult | None) -> None:
    outcome = trajectory.outcome
    if outcome.failed or (result is None and not trajectory.steps):
        return
    if any(step.finish not in ("stop", "length") for step in trajectory.steps) or outcome.reason == CANCELLED:
        return
    answer = result.info.answer if result else None
    _compare(found, None, "terminated", outcome.terminated, bool(result and result.terminated))
    _compare(found, None, "truncated", outcome.truncated, bool(result and result.truncated))
    _compare(found, None, "answer", outcome.answer, answer.text if answer else None)
    _compare(found, None, "choice", outcome.choice, answer.choice if answer else None)
    _compare(found, None, "evidence", outcome.evidence, answer.evidence if answer else ())
    _compare(found, None, "frames", outcome.frames, env.spent.frames)
    _compare(found, None, "visual tokens", outcome.visual_tokens, env.spent.visual_tokens)


def _compare(found: list[Difference], step: int | None, what: str, recorded: object, replayed: object) -> None:
    if recorded != replayed:
        found.append(Difference(step, what, _short(repr(recorded)), _short(repr(replayed))))


def _compare_context(
    found: list[Difference], step: int, recorded: tuple[Message, ...], replayed: tuple[Message, ...]
) -> None:
    for index in range(max(len(recorded), len(replayed))):
        old = recorded[index] if index < len(recorded) else None
        new = replayed[index] if index < len(replayed) else None
        if old != new:
            found.append(Difference(step, f"message {index} of the context", _said(old), _said(new)))
            return


def _said(message: Message | None) -> str:
    if message is None:
        return "none"
    parts = [part.text if part.type == "text" else f"[clip {part.clip.key}]" for part in message.content]
    return _short(f"{message.role}: {''.join(parts)!r}")


def _short(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _shape(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the settings that shapes observations; reward streams are compared by name on their own.

    A preset recorded before one of its settings existed has that setting's default, which is what was done then.
    """
    shape = {key: settings.get(key) for key in ("preset", "prompts", "geometry", "video_backend", "tools")}
    with suppress(ValueError):  # another environment's own preset is compared as it is
        shape["preset"] = Preset.model_validate(shape["preset"]).model_dump(mode="json")
    return shape


def _paths(trajectory: Trajectory, moved: Mapping[str, Path]) -> tuple[Path, ...]:
    """The task's videos where they are now."""
    by_path = {
        Path(record.path): moved[identity] for identity, record in trajectory.videos.items() if identity in moved
    }
    return tuple(by_path.get(path, path) for path in trajectory.task.videos)


def _environment(trajectory: Trajectory, rewards: Mapping[str, RewardFn], found: list[Difference]) -> VideoQAEnv:
    settings = trajectory.settings
    try:
        preset = Preset.model_validate(settings["preset"])
        geometry = VisionGeometry.model_validate(settings["geometry"])
        streams = tuple(settings.get("rewards", ()))
        backend = str(settings.get("video_backend", "pyav"))
        tools = tuple(registered_tools(settings.get("tools", preset.tools)).values())
        VideoQAEnv(preset, tools=tools, geometry=geometry, video_backend=backend).close()
    except (KeyError, TypeError, ValueError, UnknownTool) as error:  # pydantic's ValidationError is a ValueError
        raise ReplayError(
            f"trajectory {trajectory.id!r} cannot be set up again from its settings ({error});"
            " give the environment it came from to replay(..., environment=…)"
        ) from None
    scored = {name for step in trajectory.steps for name in step.rewards}
    for name in streams:
        if name in scored and name not in rewards:
            found.append(Difference(None, f"reward stream {name}", "recorded", "no function of that name is given"))
    chosen = {name: rewards[name] for name in streams if name in rewards}
    return VideoQAEnv(preset, tools=tools, rewards=chosen, geometry=geometry, video_backend=backend)
