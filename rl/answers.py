"""How right an answer is, by the task's answer kind: a matter of yes and no (`is_correct`), or of degree
(`answer_score`).

| kind | `is_correct` | `answer_score` |
|---|---|---|
| any, with options | the option | 1 or 0 |
| `choice`, `text` | equal when `normalise`d | 1 when equal, else the mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L |
| `numeric` | equal numbers | 1 or 0 |
| `regression` | None | 1 - |given - gold| / |gold|, at least 0 |
| `ocr` | None | 1 - word error rate, at least 0 |
| `grounding` | None | intersection over union of the windows |

The kinds and their measures are those of LOVE-R1's and Video-R1's annotations; only the measures are taken, not their
code. Departures from Video-R1: case and punctuation never count (there they do in word errors), an answer that is equal
without them scores 1, and numbers are equal or not (there to two decimals, and only if both have a decimal point).

Invariants
1. None means that it cannot be told: no gold answer, or one that holds nothing to compare with. It is never 0.
2. No answer, and one without what its kind needs (no number, no window), is wrong: 0.
3. Total and deterministic, whatever the text; time is bounded by `MAX_ANSWER`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from closeup.agent.evidence import merge
from closeup.agent.task import Task, Window
from closeup.rl.stem import stem
from closeup.tools.base import Answer

MAX_ANSWER = 10_000
"""Longer free answers (characters) are wrong without being read: no gold answer is a book."""

_NUMBER = re.compile(
    r"(?:(?<!\w)[-+])?(?:(?:\d{1,3}(?:,\d{3})+|\d{1,30})(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][-+]?\d{1,3})?"
)
_TIME = re.compile(r"(?:(?:(\d{1,4}):)?(\d{1,5}):)?(\d{1,9}(?:\.\d{0,9})?)")
_BELOW_ZERO = re.compile(r"(?:^|[\[({,;:=\"'`]|\b(?:from|to|and|between|at|is))\s*-\.?\d", re.IGNORECASE)
"""A minus sign before a number, as opposed to the dash of "3-5" and of "12 s -18 s"."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
"""A word is a run of letters and digits; scripts written without spaces (kana, Han) are read character by character."""


def is_correct(task: Task, answer: Answer | None) -> bool | None:
    """Whether an answer is right; None when that cannot be told by comparing.

    With options the chosen one must be the gold one, whatever the answer kind. Without, the kinds "text" and "choice"
    compare `normalise`d text, and "numeric" the one number in each answer. "ocr", "regression" and "grounding" are
    matters of degree (word errors, distance, overlap) and belong to `answer_score`: None. None too for a task without a
    gold answer, and for a numeric one whose gold answer holds no single number. No answer at all is wrong.
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


def answer_score(task: Task, answer: Answer | None) -> float | None:
    """How right an answer is, 0 to 1, by the table above; None when that cannot be told.

    The gold windows of a "grounding" task are its evidence, or else those in its answer; the given ones are those in
    the answer's text, or else the evidence it cites.
    """
    if task.options:
        right = is_correct(task, answer)
        return None if right is None else float(right)
    if task.answer_kind == "grounding":
        gold_windows = task.evidence or windows_in(task.answer or "")
        if not gold_windows:
            return None
        return 0.0 if answer is None else windows_iou(gold_windows, windows_in(answer.text) or answer.evidence)
    if task.answer is None:
        return None
    if task.answer_kind == "regression":
        gold = number_in(task.answer)
        if gold is None:
            return None
        given = None if answer is None else number_in(answer.text)
        return 0.0 if given is None else closeness(given, gold)
    if task.answer_kind == "ocr":
        if not words(task.answer):
            return None
        return 0.0 if answer is None else max(0.0, 1.0 - word_error_rate(answer.text, task.answer))
    right = is_correct(task, answer)
    if right is None or right or task.answer_kind == "numeric" or answer is None:
        return None if right is None else float(right)
    return rouge(answer.text, task.answer)


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


def windows_in(text: str) -> tuple[Window, ...]:
    """The windows (seconds) a text names, as pairs of its times in order: "[12, 18.5]", "from 0:12 to 0:18", "3-5".

    Empty when the text holds no time, an odd number of them, a pair whose end is before its start, or a time below 0
    ("[-3, 5]"): no window lies before the video.
    """
    plain = unicodedata.normalize("NFKC", text[:MAX_ANSWER]).replace("\N{MINUS SIGN}", "-")
    if _BELOW_ZERO.search(plain):
        return ()
    found = _TIME.findall(plain)
    times = [float(hours or 0) * 3600 + float(minutes or 0) * 60 + float(seconds) for hours, minutes, seconds in found]
    pairs = tuple(zip(times[::2], times[1::2], strict=False))
    return pairs if len(times) % 2 == 0 and all(start <= end for start, end in pairs) else ()


def windows_iou(gold: Sequence[Window], given: Sequence[Window]) -> float:
    """Seconds in both unions of windows over seconds in either, 0 to 1; 0 where neither has any length."""
    one, other = merge(gold), merge(given)
    both = sum(max(0.0, min(end, b) - max(start, a)) for start, end in one for a, b in other)
    total = sum(end - start for start, end in (*one, *other)) - both
    return both / total if total > 0 else 0.0


def closeness(given: float, gold: float) -> float:
    """1 - |given - gold| / |gold|, at least 0: Video-R1's reward of a regression task. For a gold 0, equality."""
    if gold == 0:
        return float(given == 0)
    return max(0.0, 1.0 - abs(given - gold) / abs(gold))


def words(text: str) -> list[str]:
    """The words of a text as they are compared: NFKC, no case, letters and digits alone, of `MAX_ANSWER` characters."""
    return _WORD.findall(unicodedata.normalize("NFKC", text[:MAX_ANSWER]).casefold())


def word_error_rate(given: str, gold: str) -> float:
    """Insertions, deletions and substitutions of words over the words of `gold` (Levenshtein 1966); 0 is exact.

    Raises:
        ValueError: `gold` holds no word.
    """
    goal, said = words(gold), words(given)
    if not goal:
        raise ValueError(f"a word error rate needs a gold text with words in it, got {gold[:60]!r}")
    row = list(range(len(goal) + 1))
    for i, word in enumerate(said, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(goal, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1] / len(goal)


def rouge(given: str, gold: str) -> float:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L, 0 to 1, as Video-R1 scores free answers: `rouge_score` with its stemmer.

    Words of more than three letters are taken without their English endings. A text of one word has no pair of words:
    its ROUGE-2 is 0. Departure: words of other scripts count, where `rouge_score` knows a to z and digits alone.
    """
    goal, said = _stems(gold), _stems(given)
    return (_rouge_n(said, goal, 1) + _rouge_n(said, goal, 2) + _rouge_l(said, goal)) / 3


def _stems(text: str) -> list[str]:
    return [stem(word) if len(word) > 3 and word.isascii() else word for word in words(text)]


def _rouge_n(given: Sequence[str], gold: Sequence[str], n: int) -> float:
    """F1 of the runs of n words both texts hold (Lin 2004, section 2)."""
    one, other = (Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in (given, gold))
    return _f1((one & other).total(), one.total(), other.total())


def _rouge_l(given: Sequence[str], gold: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words (Lin 2004, section 3, with beta = 1)."""
    row = [0] * (len(gold) + 1)
    for word in given:
        diagonal = 0
        for j, other in enumerate(gold, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return _f1(row[-1], len(given), len(gold))


def _f1(common: int, given: int, gold: int) -> float:
    return 2 * common / (given + gold) if given + gold else 0.0
