"""Gold answers: one that can never be scored is a fault, one that scores itself is none."""

from __future__ import annotations

from typing import Any

import pytest

from closeup.agent.task import Task
from closeup.rl.data.validate import task_faults


def faults(kind: str, answer: str | None, **more: Any) -> list[str]:
    return task_faults(Task(id="t", question="?", answer_kind=kind, answer=answer, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "answer", "needs"),
    [
        ("numeric", "3 to 4", "exactly one number"),
        ("numeric", "none", "exactly one number"),
        ("regression", "a lot", "exactly one number"),
        ("regression", "inf", "exactly one number"),
        ("ocr", "!!!", "letters or digits"),
        ("grounding", "at the end", "has evidence, or windows in its answer"),
        ("grounding", "[9, 3]", "has evidence, or windows in its answer"),
        ("text", "...", "more than quotes and stops"),
    ],
)
def test_a_gold_answer_that_nothing_can_match_is_a_fault(kind: str, answer: str, needs: str) -> None:
    (fault,) = faults(kind, answer)
    assert fault.startswith(f"the gold answer {answer!r} can never be scored: ")
    assert needs in fault


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("numeric", "about 1,200 m"),
        ("regression", "0"),
        ("regression", "-3.5"),
        ("ocr", "EXIT 12!"),
        ("grounding", "[12, 18.5]"),
        ("grounding", "from 0:12 to 0:18 and 1:00 to 1:10"),
        ("text", "A cat."),
    ],
)
def test_a_gold_answer_that_scores_itself_is_none(kind: str, answer: str) -> None:
    assert faults(kind, answer) == []


def test_grounding_is_scored_by_its_evidence() -> None:
    assert faults("grounding", None, evidence=[(2, 5)]) == []
    assert faults("grounding", "[2, 5]", evidence=[(2, 5)]) == []
    assert faults("grounding", None, evidence=[(2, 5)], options=("3", "7")) == []  # LOVE-R1's: a look is asked for
    assert faults("grounding", "[2, 4]", evidence=[(2, 5)]) == ["the gold answer '[2, 4]' does not score 1.0"]
    assert faults("grounding", None) == ["no gold answer: it can be asked but not evaluated"]
    assert faults("text", None, evidence=[(2, 5)]) == ["no gold answer: it can be asked but not evaluated"]
