"""Late reward streams: what a step earns once its episode is over. Those that ask a model have files of their own.

- `zoom_by_answer`: a close look earns what the answer it led to was worth (LOVE-R1's reward of a zoom).
- `gated`: another stream of the step, where the final answer was right, and 0 where it was wrong (Video-MTR, DeepEyes).
- `sufficiency` (`closeup.rl.sufficiency`) and `judge` (`closeup.rl.judge`).

A scorer that asks a model offers `score_many`, so that a whole group costs one batch; `score_group` uses it. What it
could not find out it counts (`Asking`), and `Unanswered` tells a trainer's log; `check_scorers` tries it at the start.

Invariants
1. None means "not scored", never 0: no close look, no gold answer, an episode that broke or was called off.
2. No scorer changes anything but its own stream.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from closeup.agent.scoring import Scorer, add_scores
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory
from closeup.rl.answers import answer_score, is_correct
from closeup.rl.looks import close_looks_by_step, final_answer, judgeable
from closeup.rl.reward_registry import RewardError
from closeup.tools.base import Answer

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


@runtime_checkable
class Asking(Protocol):
    """A scorer whose questions may stay without an answer; it counts all that it has asked since it was made."""

    @property
    def asked(self) -> int:
        """Questions so far."""
        ...

    @property
    def failures(self) -> Mapping[str, int]:
        """Those of them that got no answer, by a short reason."""
        ...


class Unanswered:
    """What the asking ones among some scorers have not found out, from one call of `since` to the next."""

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        named = {_name(scorer): _inner(scorer) for scorer in scorers}
        self._asking = {name: scorer for name, scorer in named.items() if isinstance(scorer, Asking)}
        self._before = {name: (scorer.asked, Counter(scorer.failures)) for name, scorer in self._asking.items()}

    def since(self) -> dict[str, float]:
        """`rewards/<stream>/asked` and `rewards/<stream>/failed` since the last call; failures are logged by reason."""
        numbers: dict[str, float] = {}
        for name, scorer in self._asking.items():
            asked, failures = self._before[name]
            self._before[name] = (scorer.asked, Counter(scorer.failures))
            number, failed = scorer.asked - asked, Counter(scorer.failures) - failures
            numbers |= {f"rewards/{name}/asked": float(number), f"rewards/{name}/failed": float(failed.total())}
            if failed:
                reasons = ", ".join(f"{reason}: {count}" for reason, count in failed.most_common())
                log.warning(
                    "%d of %d questions of the stream %r have no answer (%s): not scored there, and not 0",
                    failed.total(),
                    number,
                    name,
                    reasons,
                )
        return numbers


def check_scorers(scorers: Sequence[Scorer]) -> None:
    """Have every scorer that can (`check()`) say whether it works, before long work starts.

    Raises:
        RewardError: one of them does not, with its stream and the reason.
    """
    for scorer in scorers:
        check: Callable[[], Any] | None = getattr(_inner(scorer), "check", None)
        if check is None:
            continue
        try:
            check()
        except (RuntimeError, ValueError, OSError) as error:
            raise RewardError(
                f"the stream {_name(scorer)!r} cannot be scored: {error}. Mend that, or leave the stream out"
            ) from error


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


def _inner(scorer: Scorer) -> object:
    """The scorer itself where a configuration has given its stream another name."""
    return getattr(scorer, "scorer", scorer)


def _name(scorer: Scorer) -> str:
    return str(getattr(scorer, "name", type(scorer).__name__))
