"""How right an answer is, by its kind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from closeup.agent.task import AnswerKind, Task
from closeup.rl.answers import (
    answer_score,
    closeness,
    is_correct,
    rouge,
    windows_in,
    windows_iou,
    word_error_rate,
    words,
)
from closeup.tools.base import Answer


def task(kind: str, answer: str | None, **changes: Any) -> Task:
    return Task(**({"videos": (Path("a.mp4"),), "question": "?", "answer_kind": kind, "answer": answer} | changes))


def score(kind: str, gold: str | None, given: str, **changes: Any) -> float | None:
    return answer_score(task(kind, gold, **changes), Answer(None, given))


@pytest.mark.parametrize(
    ("kind", "gold", "given", "expected"),
    [
        ("numeric", "7", "about 7 cars", 1.0),
        ("numeric", "7", "8", 0.0),
        ("numeric", "some", "8", None),
        ("text", "At the door.", "at the DOOR", 1.0),
        ("text", "the cat sat on the mat", "a dog", 0.0),
        ("text", "the red car", "red car", 0.7555555555),  # unigrams .8, bigrams 2/3, sequence .8
        ("text", "red", "red car", 4 / 9),  # no pair of words in the gold answer
        ("choice", "red", "red car", 4 / 9),
        ("ocr", "EXIT ONLY", "exit only!", 1.0),
        ("ocr", "EXIT ONLY", "exit", 0.5),
        ("ocr", "EXIT", "no way out of here", 0.0),
        ("ocr", "!?", "exit", None),
        ("regression", "200", "150", 0.75),
        ("regression", "200", "about 500 m", 0.0),
        ("regression", "-2", "-1", 0.5),
        ("regression", "0", "0.0", 1.0),
        ("regression", "0", "0.1", 0.0),
        ("regression", "200", "far", 0.0),
        ("regression", "far", "200", None),
        ("grounding", "[10, 20]", "[15, 25]", 1 / 3),
        ("grounding", "from 0:10 to 0:20", "10 to 20 seconds", 1.0),
        ("grounding", "10 to 20", "at the end", 0.0),
        ("grounding", "at the end", "10 to 20", None),
    ],
)
def test_answers_by_kind(kind: str, gold: str, given: str, expected: float | None) -> None:
    found = score(kind, gold, given)
    assert found is None if expected is None else found == pytest.approx(expected)


def test_options_are_compared_exactly_whatever_the_kind() -> None:
    for kind in get_args(AnswerKind):
        asked = task(kind, "7", options=("3", "7"))
        assert answer_score(asked, Answer("B", "7")) == 1.0
        assert answer_score(asked, Answer("A", "3")) == 0.0
        assert answer_score(asked, None) == 0.0


@pytest.mark.parametrize("kind", get_args(AnswerKind))
def test_no_answer_is_worth_nothing_and_an_unknown_one_is_not_scored(kind: str) -> None:
    gold = "3 to 4" if kind == "grounding" else "3"
    assert answer_score(task(kind, gold), None) == 0.0
    assert answer_score(task(kind, None), Answer(None, "3")) is None


def test_windows_of_a_grounding_task_are_its_evidence_and_the_answer_may_cite_them() -> None:
    asked = task("grounding", None, evidence=((10.0, 14.0), (20.0, 24.0)))
    assert answer_score(asked, Answer(None, "[10, 14] and [20, 24]")) == 1.0
    assert answer_score(asked, Answer(None, "[12, 22]")) == pytest.approx(4 / 14)
    assert answer_score(asked, Answer(None, "there", evidence=((10.0, 14.0),))) == pytest.approx(0.5)
    assert answer_score(asked, Answer(None, "there")) == 0.0


@pytest.mark.parametrize(
    ("text", "windows"),
    [
        ("[12, 18.5]", ((12.0, 18.5),)),
        ("from 0:12 to 1:00:18", ((12.0, 3618.0),)),
        ("10-12 s and 3 to 4", ((10.0, 12.0), (3.0, 4.0))),
        ("3. to 4.", ((3.0, 4.0),)),
        ("[18, 12]", ()),
        ("1, 2, 3", ()),
        ("", ()),
        ("[-3, 5]", ()),  # before the video there is nothing to see
        ("[3, -5]", ()),
        ("from -3 to 5", ()),
        ("[3, 5] and [-.5, 2]", ()),
        ("\u22123 to 5", ()),
        ("3 -5", ((3.0, 5.0),)),
        ("12 s -18 s", ((12.0, 18.0),)),
        ("It happens there - 3 to 5", ((3.0, 5.0),)),
    ],
)
def test_windows_in_a_text(text: str, windows: tuple[tuple[float, float], ...]) -> None:
    assert windows_in(text) == windows


def test_overlap_of_several_windows_counts_every_second_once() -> None:
    assert windows_iou([(0, 10)], [(0, 6), (4, 10)]) == 1.0
    assert windows_iou([(0, 10), (20, 30)], [(5, 25)]) == pytest.approx(10 / 30)
    assert windows_iou([(0, 10)], []) == windows_iou([(3, 3)], [(3, 3)]) == 0.0


@pytest.mark.parametrize(
    ("given", "gold", "rate"),
    [("a b c", "a b c", 0), ("a c", "a b c", 1 / 3), ("a x c", "a b c", 1 / 3), ("a b b c", "a b c", 1 / 3),
     ("", "a b c", 1), ("x y z w", "a b", 2), ("A,b;C", "a b c", 0)],
)  # fmt: skip
def test_word_error_rates(given: str, gold: str, rate: float) -> None:
    assert word_error_rate(given, gold) == pytest.approx(rate)


def test_a_word_error_rate_needs_words() -> None:
    with pytest.raises(ValueError, match="words in it"):
        word_error_rate("a", "…")


def test_rouge_by_hand() -> None:
    """Gold "the cat sat on the mat" against "the cat on the mat": 5 of 6 words, 3 of 5 pairs, a sequence of 5."""
    unigram, bigram, longest = 2 * 5 / 11, 2 * 3 / 9, 2 * 5 / 11
    assert rouge("the cat on the mat", "the cat sat on the mat") == pytest.approx((unigram + bigram + longest) / 3)
    assert rouge("mat the on sat cat the", "the cat sat on the mat") == pytest.approx((1 + 0 + 0.5) / 3)
    assert rouge("", "the cat") == rouge("", "") == 0.0


def test_rouge_takes_words_without_their_endings() -> None:
    assert rouge("dogs running", "dog runs") == 1.0
    assert rouge("flies", "fly") == 0.0, "words of three letters are left as they are"
    assert rouge("two horses jumped", "two horse jumping") == 1.0
    assert rouge("carefully opened doors", "careful opening door") == 1.0


def test_rouge_of_one_word_has_no_pair_in_it() -> None:
    """As in `rouge_score`: F1 of 1, 0 and 1 for the same word; 2/3, 0 and 2/3 for one word more."""
    assert rouge("piano", "piano") == pytest.approx(2 / 3)
    assert rouge("a piano", "piano") == pytest.approx((2 / 3 + 0 + 2 / 3) / 3)
    assert answer_score(task("text", "piano"), Answer(None, "Piano.")) == 1.0


def test_words_of_scripts_without_spaces_are_characters() -> None:
    assert words("Snake_case 你好, café 3.5") == ["snake", "case", "你", "好", "café", "3", "5"]
    assert 0 < rouge("你好吗", "你好") < 1


def test_relative_error() -> None:
    assert closeness(5, 5) == 1 and closeness(-5, 5) == 0 and closeness(4, 5) == pytest.approx(0.8)


TEXT = st.text(max_size=60) | st.lists(st.sampled_from(["a", "the", "cat", "1:02", "3.5", "[", ",", "-"])).map(" ".join)


@given(kind=st.sampled_from(get_args(AnswerKind)), gold=TEXT, text=TEXT)
def test_any_answer_can_be_scored(kind: str, gold: str, text: str) -> None:
    found = score(kind, gold, text)
    assert found is None or (0 <= found <= 1 and math.isfinite(found))
    right = is_correct(task(kind, gold), Answer(None, text))
    if right is not None:
        assert found is not None and (found == 1.0) >= right, "what is right by comparing scores 1"
    same = score(kind, gold, gold)
    windows = windows_in(gold)
    if kind != "grounding" or any(end > start for start, end in windows):
        assert same is None or same == pytest.approx(1)


@given(
    gold=st.lists(st.sampled_from("abcde"), min_size=1, max_size=6), text=st.lists(st.sampled_from("abcde"), max_size=6)
)
def test_error_rates_are_those_of_a_table_of_all_prefixes(gold: list[str], text: list[str]) -> None:
    table = {(i, 0): i for i in range(len(text) + 1)} | {(0, j): j for j in range(len(gold) + 1)}
    for i in range(1, len(text) + 1):
        for j in range(1, len(gold) + 1):
            change = table[i - 1, j - 1] + (text[i - 1] != gold[j - 1])
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, change)
    assert word_error_rate(" ".join(text), " ".join(gold)) == table[len(text), len(gold)] / len(gold)
