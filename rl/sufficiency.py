"""The late stream `sufficiency`: is what was retrieved enough? The question again, with the close looks alone.

The policy is put where it stood when it had made its looks, but without the overview's pictures and without its own
words: the same calls in the same order, the clips they gave, and then one greedy message in which only an answer is
taken. It earns 1 when that answer is right and 0 when it is not, whatever the episode itself answered. No gold windows
are needed. (REVISOR, arXiv 2511.13026, rewards the answer from its window alone.)

Where the context is rebuilt each step there are no calls to repeat: the prompt shows the clips and asks.

Why black frames: a policy trained on conversations that open with an overview answers badly when there is none, and
would be told that every window is useless. (Seen by hand on `tiny-half`; no committed measurement yet.)

Invariants
1. The answer comes from the clips alone: nothing that the policy saw or said elsewhere is in the prompt, unless
   `thoughts` asks for its words.
2. None means "not scored", never 0: no close look, an answer that cannot be judged, an episode that broke or was called
   off. A question that could not be asked is None, logged, and counted.
3. The policy's state of the live episodes is not touched.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from closeup.agent.dialects import get_dialect
from closeup.agent.dialects.base import ToolCall
from closeup.agent.episode import run_episodes
from closeup.agent.policies.base import Completion, Policy, Request, Sampling, TokenCallback
from closeup.agent.preset import Preset
from closeup.agent.start import Start
from closeup.agent.trajectory import Trajectory
from closeup.rl.answers import is_correct
from closeup.rl.looks import close_looks_by_step, judgeable
from closeup.rl.scorers import Scores
from closeup.tools.video.clip import Clip

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Question:
    """Which trajectory's which step is scored by an answer from these looks."""

    trajectory: int
    step: int
    start: Start
    clips: tuple[tuple[Clip, ...], ...]
    calls: tuple[str, ...]


class SufficiencyScorer:
    """Whether the close looks of an episode are enough to answer; see the module's docstring.

    Args:
        policy: answers; as a rule the policy that is being trained.
        preset: the one the trajectories were made under: dialect, prompts, rules and budget.
        name: of the stream.
        credit: "last": one answer from all looks, credited to the last step that looked (return-to-go carries it to the
            earlier ones). "each": every step that looked is asked about on its own, from its own looks.
        overview: "blank": black frames stand where the overview was. "nothing": they are left out, which saves their
            tokens, for models that do not depend on them.
        thoughts: the words around each look are kept. A policy can then write its guess there, and be paid for it.
        max_live: questions asked at the same time.

    Attributes:
        asked: questions so far. failures: those that could not be asked, by reason: "failed" (the episode broke) or
            "not repeated" (a look did not come out as it had). A trainer logs both (`scorers.Unanswered`).

    Raises:
        ValueError: an unknown credit or overview, or thoughts where the context is rebuilt and has none.
    """

    def __init__(
        self,
        policy: Policy,
        preset: Preset,
        *,
        name: str = "sufficiency",
        credit: Literal["last", "each"] = "last",
        overview: Literal["blank", "nothing"] = "blank",
        thoughts: bool = False,
        max_live: int = 32,
    ) -> None:
        if credit not in ("last", "each"):
            raise ValueError(f"credit is 'last' or 'each', got {credit!r}")
        if overview not in ("blank", "nothing"):
            raise ValueError(f"overview is 'blank' or 'nothing', got {overview!r}")
        self._dialect = get_dialect(preset.dialect)
        if thoughts and self._dialect.rebuilds_context:
            raise ValueError(f"the dialect {preset.dialect!r} rebuilds its context, and no thought is ever in it")
        self.name = name
        self.asked = 0
        self.failures: Counter[str] = Counter()
        self._policy, self._preset, self._overview = policy, preset, overview
        self._credit, self._thoughts, self._max_live = credit, thoughts, max_live

    def score(self, trajectory: Trajectory) -> Scores:
        """The stream for every step of one trajectory."""
        (scores,) = self.score_many([trajectory])
        return scores

    def score_many(self, trajectories: Sequence[Trajectory]) -> list[Scores]:
        """The streams of many trajectories; all questions after equally many calls are asked in one run.

        Raises:
            ValueError: two trajectories have one id.
        """
        scores: list[Scores] = [[{self.name: None} for _ in trajectory.steps] for trajectory in trajectories]
        questions = [q for index, trajectory in enumerate(trajectories) for q in self._questions(index, trajectory)]
        for calls in sorted({len(question.calls) for question in questions}):
            batch = [question for question in questions if len(question.calls) == calls]
            for question, asked in zip(batch, self._ask(batch, calls), strict=True):
                self.asked += 1
                reason, fault = _fault(question, asked)
                if reason:
                    self.failures[reason] += 1
                    log.warning("%s of %s is not scored: %s", self.name, trajectories[question.trajectory].id, fault)
                    continue
                correct = asked.outcome.correct
                scores[question.trajectory][question.step] = {self.name: None if correct is None else float(correct)}
        return scores

    def _ask(self, batch: Sequence[_Question], calls: int) -> list[Trajectory]:
        scripts = {question.start.id: question.calls for question in batch}
        return run_episodes(
            [question.start for question in batch],
            _Continued(self._policy, scripts),
            preset=alone_preset(self._preset, calls, overview=self._overview),
            judge=is_correct,
            sampling=Sampling(temperature=0.0, max_new_tokens=self._preset.budget.max_new_tokens),
            max_live=self._max_live,
        )

    def _questions(self, index: int, trajectory: Trajectory) -> list[_Question]:
        if not judgeable(trajectory) or is_correct(trajectory.task, None) is None:
            return []
        looks = close_looks_by_step(trajectory)
        looked = [step for step, clips in enumerate(looks) if clips]
        if not looked:
            return []
        asked = [[step] for step in looked] if self._credit == "each" else [looked]
        return [self._question(index, trajectory, steps, looks) for steps in asked]

    def _question(
        self, index: int, trajectory: Trajectory, steps: Sequence[int], looks: Sequence[tuple[Clip, ...]]
    ) -> _Question:
        # an id of its own: the policy may still hold the state of the live episode
        task = trajectory.task.model_copy(update={"id": f"{trajectory.id}#{self.name}-{steps[-1]}", "seen": ()})
        clips = tuple(looks[step] for step in steps)
        if self._dialect.rebuilds_context:
            seen = tuple(dict.fromkeys(clip for of_step in clips for clip in of_step))
            return _Question(index, steps[-1], Start(task, seen_clips=seen), (), ())
        calls = tuple(self._call(trajectory, step) for step in steps)
        return _Question(index, steps[-1], Start(task), clips, calls)

    def _call(self, trajectory: Trajectory, step: int) -> str:
        record = trajectory.steps[step]
        assert record.call is not None  # a step that gave close looks made a call
        if self._thoughts:
            return record.text
        return self._dialect.write("", ToolCall(record.call.name, record.call.arguments))


def alone_preset(preset: Preset, calls: int, *, overview: Literal["blank", "nothing"]) -> Preset:
    """`preset` without the overview's pictures, for an episode that repeats `calls` looks and must then answer.

    Where the context grows the answer may begin with a thought: not every dialect's prefix leaves room for one.
    """
    rebuilt = get_dialect(preset.dialect).rebuilds_context
    changes: dict[str, Any] = {
        "name": f"{preset.name}-alone",
        "overview": preset.overview.model_copy(update={"show": overview}),
        "budget": preset.budget.model_copy(update={"max_steps": calls + 1}),
        "last_message": "prefixed" if rebuilt else "asked",
    }
    if rebuilt:
        changes["tools"] = ("answer",)
    return preset.model_copy(update=changes)


def _fault(question: _Question, asked: Trajectory) -> tuple[str, str]:
    """Why an answer does not count, to count by and in words: the episode broke, or a look was not the same."""
    if asked.outcome.failed:
        return "failed", asked.outcome.reason
    for step, (record, clips) in enumerate(zip(asked.steps, question.clips, strict=False)):
        given = {asked.clips[key].clip for key in record.clips}
        if record.outcome != "ok" or not given.issuperset(clips):
            return "not repeated", f"look {step} could not be repeated ({record.outcome}: {record.note})"
    return "", ""


class _Continued(Policy):
    """A policy that repeats given messages first, episode by episode, and writes its own after them."""

    def __init__(self, policy: Policy, scripts: Mapping[str, Sequence[str]]) -> None:
        self.name = policy.name
        self.geometry = policy.geometry
        self.max_context = policy.max_context
        self._policy = policy
        self._scripts = scripts
        self._said: Counter[str] = Counter()

    def generate(
        self,
        requests: Sequence[Request],
        *,
        on_token: TokenCallback | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Completion]:
        """The next message of every script; the policy's where a script is over."""
        done: dict[int, Completion] = {}
        for index, request in enumerate(requests):
            script, said = self._scripts[request.episode_id], self._said[request.episode_id]
            if said < len(script):
                done[index] = Completion(script[said])
            self._said[request.episode_id] += 1
        own = [index for index in range(len(requests)) if index not in done]
        if own:
            written = self._policy.generate([requests[i] for i in own], on_token=on_token, cancel=cancel)
            done |= dict(zip(own, written, strict=True))
        return [done[index] for index in range(len(requests))]

    def forget(self, episode_id: str) -> None:
        self._policy.forget(episode_id)

    def settings(self) -> dict[str, Any]:
        return self._policy.settings()
