"""`Agent`: a model and a preset, ready to be asked; the whole of the library in two lines.

    agent = Agent.from_pretrained("tiny")
    result = agent.ask("film.mp4", "Which digit is in the red box?", options=["3", "7"])

Everything here is put together from public parts (`Task`, `run_episodes`, a `Policy`); who needs more uses the parts.
Importing this module loads neither torch nor transformers; `from_pretrained` does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from closeup.agent.episode import run_episodes
from closeup.agent.events import OnEvent
from closeup.agent.models.load import default_preset
from closeup.agent.policies.base import Policy, Sampling
from closeup.agent.preset import Preset, get_preset
from closeup.agent.scoring import Judge, RewardFn, exact_option
from closeup.agent.subtitles import read_subtitles
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory
from closeup.tools.video import Video

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class AskResult:
    """What came of a question.

    Attributes:
        answer: the option's exact text, or free text; None when the agent gave no answer (see `reason`).
        choice: letter of the option ("A" is the first), or None.
        evidence: windows (seconds) the agent cites, inside windows it watched closely.
        steps: messages the agent wrote. visual_tokens: visual tokens it was shown.
        seconds: wall time. reason: why there is no answer; "" when there is one.
        trajectory: the whole record, token for token.
    """

    answer: str | None
    choice: str | None
    evidence: tuple[tuple[float, float], ...]
    steps: int
    visual_tokens: int
    seconds: float
    reason: str
    trajectory: Trajectory


class Agent:
    """A policy with the preset it works under."""

    def __init__(self, policy: Policy, preset: Preset | str = "default") -> None:
        self.policy = policy
        self.preset = get_preset(preset) if isinstance(preset, str) else preset

    @classmethod
    def from_pretrained(cls, model: str = "tiny", *, preset: Preset | str | None = None, **settings: Any) -> Agent:
        """Load a model.

        Args:
            model: "tiny" (bundled), a checkpoint folder, or a hub id.
            preset: a preset, its name, or a .json file; default: the one the checkpoint names.
            settings: for `TransformersPolicy`: dtype, device, max_batch, kv_cache_bytes and so on.

        Raises:
            ModelError: the model cannot be used. PresetError: no such preset.
        """
        chosen = preset if isinstance(preset, Preset) else get_preset(preset or default_preset(model))
        from closeup.agent.policies.transformers_policy import TransformersPolicy

        return cls(TransformersPolicy(model, timestamps=chosen.timestamps, **settings), chosen)

    def ask(
        self,
        video: PathLike | Sequence[PathLike],
        question: str,
        *,
        options: Sequence[str] = (),
        subtitles: PathLike | None = None,
        max_steps: int | None = None,
        temperature: float | None = None,
        seed: int = 0,
        on_event: OnEvent | None = None,
    ) -> AskResult:
        """Answer one question about one video, or about several together.

        Args:
            video: path of a video file, or several.
            options: possible answers; empty for a free answer.
            subtitles: an .srt or .vtt file, shown with the frames it belongs to.
            max_steps: messages at most, the last one a forced answer; default: the preset's.
            temperature: 0 is greedy; default: the preset's. seed: of the sampling.
            on_event: told what happens, as it happens (`closeup.agent.events`).

        Raises:
            VideoError: a video cannot be opened. SubtitleError: the subtitles cannot be read.
            ValueError: an empty question, one option or options that repeat (pydantic's `ValidationError` is one).
        """
        if isinstance(options, str) or len(options) == 1:
            raise ValueError(f"options are two or more texts, or none for a free answer; got {options!r}")
        if not question.strip():
            raise ValueError("the question is empty; ask one")
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps is at least 1, got {max_steps}")
        paths = (video,) if isinstance(video, str | os.PathLike) else tuple(video)
        for path in paths:
            with Video(path):  # raises in a sentence when it cannot be opened
                pass
        task = Task(
            id="ask",
            videos=tuple(Path(os.fsdecode(path)) for path in paths),
            question=question,
            options=tuple(options),
            answer_kind="choice" if options else "text",
            subtitles=() if subtitles is None else read_subtitles(Path(os.fsdecode(subtitles))),
        )
        preset = self.preset
        if max_steps is not None:
            budget = preset.budget.model_validate(preset.budget.model_dump() | {"max_steps": max_steps})
            preset = preset.model_copy(update={"budget": budget})
        if temperature is not None:
            preset = preset.model_copy(update={"temperature": temperature})
        trajectory = Agent(self.policy, preset).run(task, seed=seed, on_event=on_event)
        outcome = trajectory.outcome
        reason = "" if outcome.answer is not None else outcome.reason or "the agent gave no answer"
        return AskResult(
            answer=outcome.answer,
            choice=outcome.choice,
            evidence=outcome.evidence,
            steps=outcome.steps,
            visual_tokens=outcome.visual_tokens,
            seconds=outcome.seconds,
            reason=reason,
            trajectory=trajectory,
        )

    def run(
        self,
        task: Task,
        *,
        rewards: Mapping[str, RewardFn] | None = None,
        judge: Judge = exact_option,
        seed: int = 0,
        on_event: OnEvent | None = None,
    ) -> Trajectory:
        """One episode of a task, as the preset says.

        Args:
            rewards: streams to score each step by (`closeup.rl.rewards` has some); without them no step is scored.
            judge: tells whether the answer is right.
            seed, on_event: as in `ask`.
        """
        sampling = Sampling(temperature=self.preset.temperature, max_new_tokens=self.preset.budget.max_new_tokens)
        (trajectory,) = run_episodes(
            [task],
            self.policy,
            preset=self.preset,
            rewards=rewards,
            judge=judge,
            sampling=sampling,
            seed=seed,
            on_event=on_event,
        )
        return trajectory
