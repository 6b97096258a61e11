"""Immediate reward streams: what a step earns the moment it is taken. Injected into the environment by name.

Each stream is a pure function of `StepFacts`; weights and options belong to the configuration
(`closeup.rl.reward_config`), never in here. Late streams are in `closeup.rl.scorers` and `closeup.rl.judge`.

- `format`: 1.0 for a message that held one well-formed call which ran, 0.0 for everything else. A refused call (a
  window outside the video, one that was seen already) scores 0.0 as well: LOVE-R1 treats a window that breaks its rules
  like a message that cannot be read, and a call that cannot be carried out is no action.
- `zoom`: for a close look at a video whose evidence is known, 1.0 for a hit and 0.0 for a miss. A hit is a window of at
  most an eighth of the video that overlaps a gold window (`statistics.is_hit`). The bound on length is what keeps the
  reward from being farmed by looking at everything; overlap alone is LOVE-R1's rule, whose only bound is 60 s.
- `zoom_overlap`, `zoom_iou`, `zoom_recall`, `zoom_gain`: other measures of the same close looks.
- `answer`: 1.0 for a right answer, 0.0 for a wrong one, and 0.0 when the last, forced message gave none.
  `answer_score`: the same, with answers that are right by degree (`closeup.rl.answers`).
- `cost`: what a step spent, as a negative number.
- `format_thought`: `format`, and only with a thought.
- `love_r1_accuracy`, `love_r1_format_published`, `longvila_r1_accuracy`, `longvila_r1_format`: rules of single papers.

Invariants
1. None means "this stream says nothing about this step", and is never 0: no gold answer, no evidence, no close look.
2. Deterministic: replaying a trajectory gives the same numbers.
3. Evidence windows do not say which video they belong to, so with several videos `zoom` is None rather than a guess.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from closeup.agent.evidence import merge
from closeup.agent.scoring import RewardFn, StepFacts
from closeup.agent.task import Window
from closeup.rl.answers import MAX_ANSWER, answer_score, is_correct, normalise, number_in
from closeup.rl.statistics import is_hit
from closeup.tools.base import Answer
from closeup.tools.video.clip import Clip, window_iou

__all__ = [
    "DEFAULT_REWARDS",
    "MAX_ANSWER",
    "answer_reward",
    "answer_score_reward",
    "best_iou",
    "cost_reward",
    "format_reward",
    "format_thought_reward",
    "is_correct",
    "longvila_r1_accuracy",
    "longvila_r1_format",
    "love_r1_accuracy",
    "love_r1_format_published",
    "normalise",
    "number_in",
    "window_recall",
    "zoom_gain_reward",
    "zoom_iou_reward",
    "zoom_overlap_reward",
    "zoom_recall_reward",
    "zoom_reward",
]


# --- format ----------------------------------------------------------------------------------------------------------


def format_reward(facts: StepFacts) -> float:
    """1.0 when the step's call was well-formed and ran, else 0.0 (a refusal included)."""
    return 1.0 if facts.outcome == "ok" else 0.0


def format_thought_reward(facts: StepFacts) -> float:
    """1.0 when the step's call ran and a thought came with it, else 0.0."""
    return 1.0 if facts.outcome == "ok" and facts.thought else 0.0


# --- close looks -----------------------------------------------------------------------------------------------------


def zoom_reward(facts: StepFacts) -> float | None:
    """1.0 when a close look of this step hits gold evidence, 0.0 when none does, None when that cannot be told.

    Raises `ValueError` when the duration of a clip's video is not in the facts: a bug of the environment.
    """
    if not _looks_can_be_told(facts):
        return None
    for clip in facts.close:
        if clip.video not in facts.durations:
            raise ValueError(f"no duration is known for video {clip.video!r}; known: {sorted(facts.durations)}")
        if is_hit((clip.start, clip.end), facts.task.evidence, facts.durations[clip.video]):
            return 1.0
    return 0.0


def zoom_overlap_reward(facts: StepFacts) -> float | None:
    """1.0 when a close look of this step overlaps gold evidence at all (IoU > 0), else 0.0: LOVE-R1's zoom reward.

    A window that touches the evidence for a moment counts in full; `zoom`, `zoom_iou` and `zoom_gain` do not allow
    that.
    """
    return None if not _looks_can_be_told(facts) else float(best_iou(facts.task.evidence, _windows(facts.close)) > 0)


def zoom_iou_reward(facts: StepFacts) -> float | None:
    """Largest temporal IoU of a close look of this step with a gold window, 0 to 1."""
    return None if not _looks_can_be_told(facts) else best_iou(facts.task.evidence, _windows(facts.close))


def zoom_recall_reward(facts: StepFacts) -> float | None:
    """Share of the gold seconds that this step's close looks cover, 0 to 1. Long looks are free in it: add a cost."""
    return None if not _looks_can_be_told(facts) else window_recall(facts.task.evidence, _windows(facts.close))


def zoom_gain_reward(facts: StepFacts, *, measure: Literal["iou", "recall"] = "iou") -> float | None:
    """How much this step's close looks improve on the best so far, 0 to 1; the sum over an episode is its final best.

    `measure` "iou": of the best IoU of any close look with a gold window. "recall": of the share of gold seconds
    covered. (Video-MTR rewards a look that improves the best IoU so far with a constant.)
    """
    if not _looks_can_be_told(facts):
        return None
    gold, before = facts.task.evidence, _windows(facts.earlier)
    now = before + _windows(facts.close)
    if measure == "iou":
        return best_iou(gold, now) - best_iou(gold, before)
    if measure == "recall":
        return window_recall(gold, now) - window_recall(gold, before)
    raise ValueError(f"zoom_gain measures 'iou' or 'recall', got {measure!r}")


# --- answers ---------------------------------------------------------------------------------------------------------


def answer_reward(facts: StepFacts) -> float | None:
    """1.0 for a right answer, 0.0 for a wrong one or a forced step without one, None for any other step."""
    if facts.answer is None and not facts.forced:
        return None
    correct = is_correct(facts.task, facts.answer)
    return None if correct is None else float(correct)


def answer_score_reward(facts: StepFacts) -> float | None:
    """How right the answer is, 0 to 1 by its kind (`answers.answer_score`); otherwise as `answer_reward`."""
    if facts.answer is None and not facts.forced:
        return None
    return answer_score(facts.task, facts.answer)


# --- cost ------------------------------------------------------------------------------------------------------------


def cost_reward(
    facts: StepFacts, *, per_step: float = 1.0, per_frame: float = 0.0, per_visual_token: float = 0.0
) -> float:
    """Minus what the step spent: a price for the step itself, for each frame and for each visual token it showed.

    The default is -1 for every step; set the prices by the options of the stream, and its weight apart.
    """
    return -(per_step + per_frame * facts.frames + per_visual_token * facts.visual_tokens)


# --- single papers ---------------------------------------------------------------------------------------------------


def love_r1_accuracy(facts: StepFacts) -> float | None:
    """LOVE-R1's accuracy as far as the step itself tells it; a zoom's is told later, by `zoom_by_answer`.

    A step that was not carried out earns 0. On grounding tasks (evidence known and no gold answer) a zoom earns 1 when
    it overlaps a gold window at all. On all others an answer earns 1 when it is right, and evidence is not looked at.
    """
    if facts.outcome != "ok":
        return 0.0
    if facts.task.answer is None:
        return zoom_overlap_reward(facts)
    return answer_reward(facts)


def love_r1_format_published(facts: StepFacts) -> float:
    """LOVE-R1's format reward as its code has it, loophole and all; `format` is the rule that it describes.

    A message that begins with neither sentence keeps its reward: 1.0 for the outcome "no_call" of the dialect
    `love_r1`. For reproducing that behaviour, and for nothing else.
    """
    return 1.0 if facts.outcome in ("ok", "no_call") else 0.0


def longvila_r1_format(facts: StepFacts) -> float:
    """LongVILA-R1's format reward: 1.0 when the message is `<think>…</think>`, blanks, `<answer>…</answer>`, else 0.0.

    The rule of its reward function `r1v`: nothing may stand before, between or after the two, not even a last line
    break; what is in them, if anything, does not matter, and whether the answer can be taken does not either.
    """
    said = facts.text
    framed = said.startswith("<think>") and said.endswith("</answer>")
    return 1.0 if framed and _BETWEEN.search(said[len("<think>") : -len("</answer>")]) else 0.0


def longvila_r1_accuracy(facts: StepFacts) -> float | None:
    """LongVILA-R1's accuracy reward (`r1v`): the message is searched for an answer, whatever its format.

    The answer is what stands in the first `<answer>…</answer>`, wherever that is, up to its first full stop and without
    blanks; in a message without such a pair it is the whole message. With options it is right when it is the gold
    letter, in either case, bare or in brackets, and a text is not (r1v also takes what computer algebra finds equal
    to it). Departure, for tasks without options: there r1v would cut "3.14" to "3"; here the whole of it is compared
    as `answer` does. None when that cannot be told. For tasks of one message: every message is scored.
    """
    task, said = facts.task, facts.text
    if not task.options:
        found = _in_answer_tags(said)
        correct = is_correct(task, Answer(None, said.strip() if found is None else found))
        return None if correct is None else float(correct)
    if task.gold_choice is None:
        return None
    found = _in_answer_tags(said.replace("\n", "").replace(" ", ""))
    given = said.strip() if found is None else found.strip().partition(".")[0]
    letter = _LETTER.fullmatch(given)
    return float(letter is not None and next(filter(None, letter.groups())).upper() == task.gold_choice)


_BETWEEN = re.compile(r"</think>\s*<answer>")
_LETTER = re.compile(r"([A-Za-z])|[(\[]([A-Za-z])[)\]]")


def _in_answer_tags(text: str) -> str | None:
    """What stands in the first `<answer>…</answer>` of a text; None without one."""
    _, _, rest = text.partition("<answer>")
    inside, closed, _ = rest.partition("</answer>")
    return inside if closed else None


DEFAULT_REWARDS: dict[str, RewardFn] = {"format": format_reward, "zoom": zoom_reward, "answer": answer_reward}


# --- windows ---------------------------------------------------------------------------------------------------------


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


def _looks_can_be_told(facts: StepFacts) -> bool:
    """There is a close look, and it is known where the evidence is."""
    return bool(facts.task.evidence) and bool(facts.close) and len(facts.task.videos) <= 1


def _windows(clips: Sequence[Clip]) -> list[Window]:
    return [(clip.start, clip.end) for clip in clips]
