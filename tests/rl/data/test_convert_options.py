"""Options and gold answers, as annotation files write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from closeup.agent.task import LETTERS
from closeup.rl.data.options import Options, RowFault, gold_option, gold_text, read_options, split_options


@pytest.mark.parametrize(
    ("given", "letters", "texts", "labelled"),
    [
        (["A. red", "B. blue"], "AB", ("red", "blue"), True),
        (["A) red", "B) blue"], "AB", ("red", "blue"), True),
        (["(a) red", "(b) blue"], "AB", ("red", "blue"), True),
        (["A: red", "B:blue"], "AB", ("red", "blue"), True),
        (["B. red", "A. blue"], "BA", ("red", "blue"), True),
        (["red", "blue"], "AB", ("red", "blue"), False),
        (["A", "B", "C"], "ABC", ("A", "B", "C"), False),
        (["J. Smith", "K. Jones"], "AB", ("J. Smith", "K. Jones"), False),
        (["A. one\nof two lines", "B. x"], "AB", ("one\nof two lines", "x"), True),
    ],
)
def test_options_with_and_without_labels(
    given: list[str], letters: str, texts: tuple[str, ...], labelled: bool
) -> None:
    assert read_options(given) == Options(tuple(letters), texts, labelled)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["B. red", "C. blue", "green"], "labels are"),
        (["red", " "], "option B is empty"),
        (["A.", "B. x"], "option A is empty"),
        ([str(i) for i in range(27)], "at most 26"),
    ],
)
def test_options_that_contradict_themselves_are_faults(given: list[str], says: str) -> None:
    with pytest.raises(RowFault, match=says) as caught:
        read_options(given)
    assert caught.value.kind == "options"


@pytest.mark.parametrize(
    ("text", "question", "texts"),
    [
        ("Why?\nA. x\nB. y\nC. z", "Why?", ("x", "y", "z")),
        ("Why?\nOptions:\nA. x\nB. y\n", "Why?", ("x", "y")),
        ("Why? Options:\nA. x\nB. y", "Why?", ("x", "y")),
        ("One.\nTwo?\n(A) x\n(B) y", "One.\nTwo?", ("x", "y")),
        ("Why?\nA. x\n  and more\nB. y", "Why?", ("x and more", "y")),
        ("Why?\nA. x\nB. y\nPlease answer with the option's letter.", "Why?", ("x", "y")),
        ("At 0:10?\nA. 1. first\nB. y\n\nProvide only the single option letter (e.g., A, B) as the answer.", "At 0:10?",
         ("1. first", "y")),
        ("A. Turing said B. Why?\nA. x\nB. y", "A. Turing said B. Why?", ("x", "y")),
    ],
)  # fmt: skip
def test_options_on_lines_of_their_own(text: str, question: str, texts: tuple[str, ...]) -> None:
    found = split_options(text, inline=False)
    assert found is not None
    assert (found[0], found[1].texts) == (question, texts)
    assert "".join(found[1].letters) == LETTERS[: len(texts)]


def test_options_in_one_line_are_looked_for_only_when_asked() -> None:
    text = "Which one? (A) a red car (B) a blue car, (C) none"
    assert split_options(text, inline=False) is None
    found = split_options(text, inline=True)
    assert found is not None and found[0] == "Which one?"
    assert found[1].texts == ("a red car", "a blue car", "none")
    assert split_options("What did Mr. A. Turing say?", inline=True) is None


def test_text_after_the_last_option_that_is_no_instruction_is_a_fault() -> None:
    with pytest.raises(RowFault, match="follows the last option: 'Then he left"):
        split_options("Why?\nA. x\nB. y\nThen he left the room.", inline=False)


@given(
    st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8), min_size=2, max_size=6, unique=True)
)
def test_what_is_written_is_read_again(texts: list[str]) -> None:
    for label in ("{}. ", "({}) ", "{}) ", "{}: "):
        lines = [label.format(letter) + text for letter, text in zip(LETTERS, texts, strict=False)]
        assert read_options(lines).texts == tuple(texts)
        found = split_options("Which?\n" + "\n".join(lines), inline=False)
        assert found is not None and found[0] == "Which?" and found[1].texts == tuple(texts)


@given(st.text(), st.booleans())
def test_any_text_is_split_or_refused_by_name(text: str, inline: bool) -> None:
    try:
        found = split_options(text, inline=inline)
    except RowFault:
        return
    assert found is None or (len(found[1].texts) >= 2 and text.startswith(found[0].rstrip()))


def test_gold_answers_by_letter_text_or_both() -> None:
    options = read_options(["A. red", "B. blue"])
    for gold in ("B", "b", "(B)", "B.", "blue", "B. blue", "(B) blue"):
        assert gold_option(gold, options) == "blue"
    for gold, says in (("C", "none of the letters"), ("green", "none of the options"), ("A. blue", "one letter and")):
        with pytest.raises(RowFault, match=says) as caught:
            gold_option(gold, options)
        assert caught.value.kind == "gold answer"


def test_options_that_are_letters_themselves() -> None:
    assert gold_option("B", read_options(["A", "B"])) == "B"
    assert gold_option("A", read_options(["A. B", "B. A"])) == "B"  # the labels are the annotation's own letters
    assert gold_option("X", read_options(["X", "Y"])) == "X"
    with pytest.raises(RowFault, match="the text of one option and the letter of another"):
        gold_option("A", read_options(["B", "A"]))


def test_gold_text_stands_between_tags() -> None:
    assert gold_text("<think>no</think><answer> B </answer>") == "B"
    assert gold_text(" B\n") == "B"
    assert gold_text("<answer></answer>") == ""
