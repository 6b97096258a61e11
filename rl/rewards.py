"""Immediate reward streams: what a step earns the moment it is taken. Injected into the environment by name.

Each stream is a pure function of `StepFacts`; weights belong to the training configuration, never in here.

- `format`: 1.0 for a message that held one well-formed call which ran, 0.0 for everything else. A refused call (a
  window outside the video, one that was seen already) scores 0.0 as well: LOVE-R1 treats a window that breaks its rules
  like a message that cannot be read, and a call that cannot be carried out is no action.
- `zoom`: for a close look at a video whose evidence is known, 1.0 for a hit and 0.0 for a miss. A hit is a window of at
  most an eighth of the video that overlaps a gold window (`statistics.is_hit`). The bound on length is what keeps the
  reward from being farmed by looking at everything; overlap alone is LOVE-R1's rule, whose only bound is 60 s.
- `answer`: 1.0 for a right answer, 0.0 for a wrong one, and 0.0 when the last, forced message gave none.

Invariants
1. None means "this stream says nothing about this step", and is never 0: no gold answer, no evidence, no close look.
2. Deterministic: replaying a trajectory gives the same numbers.
3. Evidence windows do not say which video they belong to, so with several videos `zoom` is None rather than a guess.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

from closeup.agent.evidence import merge
from closeup.agent.scoring import RewardFn, StepFacts
from closeup.agent.task import Task, Window
from closeup.rl.statistics import is_hit
from closeup.tools.base import Answer
from closeup.tools.video.clip import window_iou

_NUMBER = re.compile(
    r"(?:(?<!\w)[-+])?(?:(?:\d{1,3}(?:,\d{3})+|\d{1,30})(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][-+]?\d{1,3})?"
)
MAX_ANSWER = 10_000
"""Longer free answers (characters) are wrong without being read: no gold answer is a book."""


def format_reward(facts: StepFacts) -> float:
    """1.0 when the step's call was well-formed and ran, else 0.0 (a refusal included)."""
    return 1.0 if facts.outcome == "ok" else 0.0


def zoom_reward(facts: StepFacts) -> float | None:
    """1.0 when a close look of this step hits gold evidence, 0.0 when none does, None when that cannot be told.

    Raises `ValueError` when the duration of a clip's video is not in the facts: a bug of the environment.
    """
    if not facts.task.evidence or not facts.close or len(facts.task.videos) > 1:
        return None
    for clip in facts.close:
        if clip.video not in facts.durations:
            raise ValueError(f"no duration is known for video {clip.video!r}; known: {sorted(facts.durations)}")
        if is_hit((clip.start, clip.end), facts.task.evidence, facts.durations[clip.video]):
            return 1.0
    return 0.0


def answer_reward(facts: StepFacts) -> float | None:
    """1.0 for a right answer, 0.0 for a wrong one or a forced step without one, None for any other step."""
    if facts.answer is None and not facts.forced:
        return None
    correct = is_correct(facts.task, facts.answer)
    return None if correct is None else float(correct)


DEFAULT_REWARDS: dict[str, RewardFn] = {"format": format_reward, "zoom": zoom_reward, "answer": answer_reward}


def is_correct(task: Task, answer: Answer | None) -> bool | None:
    """Whether an answer is right; None when that cannot be told by comparing.

    With options the chosen one must be the gold one, whatever the answer kind. Without, the kinds "text" and "choice"
    compare `normalise`d text, and "numeric" the one number in each answer. "ocr", "regression" and "grounding" are
    matters of degree (word errors, distance, overlap) and belong to a scorer: None. None too for a task without a gold
    answer, and for a numeric one whose gold answer holds no single number. No answer at all is wrong.
    """
    if task.answer is None:
        return None
    if task.options:
        return answer is not None and answer.choice == task.gold_choice
    if task.answer_kind == "numeric":
        gold = number_in(task.answer)
        if gold is None:
            return None
        given = None if answer is None else number_in(answer.text)
        return given is not None and math.isclose(given, gold, rel_tol=1e-6, abs_tol=1e-9)
    if task.answer_kind in ("text", "choice"):
        return (
            answer is not None and len(answer.text) <= MAX_ANSWER and normalise(answer.text) == normalise(task.answer)
        )
    return None


def normalise(text: str) -> str:
    """A free answer as it is compared: NFKC, no case, single spaces, no quotes or stops around it."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).strip("\"'`.!?,;: ")


def number_in(text: str) -> float | None:
    """The one number in a text ("about 1,200 m" is 1200.0); None when there is none, or more than one."""
    plain = unicodedata.normalize("NFKC", text[:MAX_ANSWER]).replace("\N{MINUS SIGN}", "-")
    found = [match.group() for match in _NUMBER.finditer(plain)]
    if len(found) != 1:
        return None
    value = float(found[0].replace(",", ""))
    return value if math.isfinite(value) else None


def window_recall(gold: Sequence[Window], watched: Sequence[Window]) -> float:
    """Share of the gold seconds that the watched windows cover, 0 to 1; overlapping windows count once.

    Gold windows without length (instants) count as covered or not by number when no gold window has any length. Raises
    `ValueError` without gold windows: there is nothing to recall.
    """
    if not gold:
        raise ValueError("window_recall needs at least one gold window")
    goal, seen = merge(gold), merge(watched)
    total = sum(end - start for start, end in goal)
    if total == 0:
        return sum(any(a <= start <= b for a, b in seen) for start, _ in gold) / len(gold)
    covered = sum(max(0.0, min(end, b) - max(start, a)) for start, end in goal for a, b in seen)
    return min(1.0, covered / total)


def best_iou(gold: Sequence[Window], watched: Sequence[Window]) -> float:
    """Largest temporal intersection over union between a gold and a watched window, 0 to 1; 0 without either."""
    return max((window_iou(a, b) for a in gold for b in watched), default=0.0)
