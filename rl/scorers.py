"""Late reward streams: what a step earns once its episode is over. The judge has a file of its own
(`closeup.rl.judge`).

- `zoom_by_answer`: a close look earns what the answer it led to was worth (LOVE-R1's reward of a zoom).
- `gated`: another stream of the step, where the final answer was right, and 0 where it was wrong (Video-MTR, DeepEyes).
- `sufficiency`: the question is asked again with the retrieved clips alone; 1 when that answer is right. It needs no
  gold windows (REVISOR's causal reward).

A scorer that asks a model offers `score_many`, so that a whole group costs one batch; `score_group` uses it.

Invariants
1. None means "not scored", never 0: no close look, no gold answer, an episode that broke or was called off.
2. No scorer changes anything but its own stream.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

from closeup.agent.episode import run_episodes
from closeup.agent.policies.base import Policy, Sampling
from closeup.agent.preset import Preset
from closeup.agent.scoring import Scorer, add_scores
from closeup.agent.start import Start
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory
from closeup.rl.answers import answer_score, is_correct
from closeup.rl.looks import close_looks_by_step, final_answer, judgeable
from closeup.tools.base import Answer
from closeup.tools.video.clip import Clip

log = logging.getLogger(__name__)
Scores = list[dict[str, float | None]]
Worth = Callable[[Task, Answer | None], float | bool | None]
"""How much an answer is worth, 0 to 1; None when that cannot be told. `is_correct` and `answer_score` are two."""


@runtime_checkable
class GroupScorer(Scorer, Protocol):
    """A scorer that scores many trajectories at once, in less time than one by one."""

    def score_many(self, trajectories: Sequence[Trajectory]) -> list[Scores]:
        """What `score` gives for each, in order."""
        ...


def score_group(trajectories: Sequence[Trajectory], scorers: Sequence[Scorer]) -> list[Trajectory]:
    """The trajectories with the late streams of `scorers` added, each scorer asked once for all; failed ones unchanged.

    Raises:
        ValueError: a scorer gives another number of trajectories or steps than there are, a stream that is there
            already, or no number.
    """
    done = list(trajectories)
    sound = [index for index, trajectory in enumerate(done) if not trajectory.outcome.failed]
    for scorer in scorers:
        batch = [done[index] for index in sound]
        scores = scorer.score_many(batch) if isinstance(scorer, GroupScorer) else [scorer.score(one) for one in batch]
        if len(scores) != len(batch):
            raise ValueError(f"{type(scorer).__name__} scored {len(scores)} of {len(batch)} trajectories")
        for index, given in zip(sound, scores, strict=True):
            done[index] = add_scores(done[index], given, by=type(scorer).__name__)
    return done


class ZoomByAnswer:
    """Each close look earns the worth of the final answer: 1 right, 0 wrong or none given, None when it cannot be told.

    With several looks every one of them is credited. Source: LOVE-R1, whose step with a zoom takes over the correctness
    of the step that answers.

    Args:
        name: of the stream.
        by: "correct" (right or wrong) or "score" (right by degree, `closeup.rl.answers`).
    """

    def __init__(self, name: str = "zoom_by_answer", *, by: Literal["correct", "score"] = "correct") -> None:
        self.name = name
        self._worth = worth_by(by)

    def score(self, trajectory: Trajectory) -> Scores:
        """The stream for every step."""
        worth = _worth_of(trajectory, self._worth)
        return [{self.name: worth if looks else None} for looks in close_looks_by_step(trajectory)]


class Gated:
    """Another stream of each step times the worth of the final answer: a look is paid only when it led somewhere.

    Args:
        of: the immediate stream to gate (give it the weight 0 when the gated one is to take its place).
        name: of the new stream; default: "gated_" and the name of the other.
        by: as for `ZoomByAnswer`.
    """

    def __init__(self, of: str, name: str = "", *, by: Literal["correct", "score"] = "correct") -> None:
        self.name = name or f"gated_{of}"
        self._of = of
        self._worth = worth_by(by)

    def score(self, trajectory: Trajectory) -> Scores:
        """The stream for every step. Raises `ValueError` when the steps do not have the other stream."""
        worth = _worth_of(trajectory, self._worth)
        scores: Scores = []
        for step in trajectory.steps:
            if self._of not in step.rewards:
                raise ValueError(
                    f"the stream {self._of!r}, which {self.name!r} gates, is not there; the steps have"
                    f" {', '.join(sorted(step.rewards)) or 'none'}. Name one of them, or add that stream before this"
                )
            value = step.rewards[self._of]
            scores.append({self.name: None if value is None or worth is None else value * worth})
        return scores


class SufficiencyScorer:
    """Whether what was retrieved is enough: the question again, with the close looks alone, and the answer forced.

    The policy sees the clips, the question and no overview, and must answer in one greedy message. 1.0 when that answer
    is right, 0.0 when it is wrong or none; None for steps without a close look, and where rightness cannot be told.

    Args:
        policy: answers; as a rule the policy that is being trained.
        preset: the one the trajectories were made under: dialect, prompts, clips and their budget.
        name: of the stream.
        credit: "last": one answer from all looks, credited to the last step that looked (return-to-go carries it to the
            earlier ones). "each": every step that looked is asked about on its own, from its own looks.
        max_live: questions asked at the same time.

    Attributes:
        failures: questions that could not be asked so far.
    """

    def __init__(
        self,
        policy: Policy,
        preset: Preset,
        *,
        name: str = "sufficiency",
        credit: Literal["last", "each"] = "last",
        max_live: int = 32,
    ) -> None:
        if credit not in ("last", "each"):
            raise ValueError(f"credit is 'last' or 'each', got {credit!r}")
        self.name = name
        self._policy = policy
        self._preset = alone_preset(preset)
        self._credit = credit
        self._max_live = max_live
        self.failures = 0

    def score(self, trajectory: Trajectory) -> Scores:
        """The stream for every step of one trajectory."""
        (scores,) = self.score_many([trajectory])
        return scores

    def score_many(self, trajectories: Sequence[Trajectory]) -> list[Scores]:
        """The streams of many trajectories, all questions asked in one run.

        A question that could not be asked (a video that is gone, a policy that broke) is None, logged, and counted in
        `failures`. Raises `ValueError` when two trajectories have one id.
        """
        starts: list[Start] = []
        places: list[tuple[int, int]] = []
        for index, trajectory in enumerate(trajectories):
            for step, clips in self._questions(trajectory):
                # an id of its own: the policy may still hold the state of the live episode
                task = trajectory.task.model_copy(update={"id": f"{trajectory.id}#{self.name}-{step}"})
                starts.append(Start(task, seen_clips=clips))
                places.append((index, step))
        scores: list[Scores] = [[{self.name: None} for _ in trajectory.steps] for trajectory in trajectories]
        sampling = Sampling(temperature=0.0, max_new_tokens=self._preset.budget.max_new_tokens)
        answers = run_episodes(
            starts, self._policy, preset=self._preset, judge=is_correct, sampling=sampling, max_live=self._max_live
        )
        for (index, step), asked in zip(places, answers, strict=True):
            if asked.outcome.failed:
                self.failures += 1
                log.warning("%s of %s is not scored: %s", self.name, trajectories[index].id, asked.outcome.reason)
                continue
            correct = asked.outcome.correct
            scores[index][step] = {self.name: None if correct is None else float(correct)}
        return scores

    def _questions(self, trajectory: Trajectory) -> list[tuple[int, tuple[Clip, ...]]]:
        """Which step is asked about with which clips."""
        if not judgeable(trajectory) or is_correct(trajectory.task, None) is None:
            return []
        looked = [(step, clips) for step, clips in enumerate(close_looks_by_step(trajectory)) if clips]
        if self._credit == "each" or not looked:
            return [(step, _distinct(clips)) for step, clips in looked]
        return [(looked[-1][0], _distinct([clip for _, clips in looked for clip in clips]))]


def alone_preset(preset: Preset) -> Preset:
    """`preset` with nothing to see but what is given: no overview, one message, and only `answer` to call."""
    return preset.model_copy(
        update={
            "name": f"{preset.name}-alone",
            "overview": preset.overview.model_copy(update={"shown": False}),
            "budget": preset.budget.model_copy(update={"max_steps": 1}),
            "tools": ("answer",),
            "force_answer": True,
        }
    )


def worth_by(by: str) -> Worth:
    """`is_correct` for "correct", `answer_score` for "score". Raises `ValueError` for anything else."""
    if by not in ("correct", "score"):
        raise ValueError(f"an answer is worth what it is by 'correct' or by 'score', got {by!r}")
    return is_correct if by == "correct" else answer_score


def _worth_of(trajectory: Trajectory, worth: Worth) -> float | None:
    if not judgeable(trajectory):
        return None
    value = worth(trajectory.task, final_answer(trajectory))
    return None if value is None else float(value)


def _distinct(clips: Sequence[Clip]) -> tuple[Clip, ...]:
    return tuple(dict.fromkeys(clips))
