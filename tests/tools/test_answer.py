from __future__ import annotations

from typing import Any

import pytest

from closeup.tools.answer import AnswerTool
from closeup.tools.base import Answer, ToolContext, ToolError

DIGITS = ("3", "7", "1", "9")
TWISTED = ("B", "A", "red box")


def answer(options: tuple[str, ...], **arguments: Any) -> Answer:
    tool = AnswerTool()
    args: Any = tool.parse_args(arguments)
    result = tool.run(args, ToolContext(options=options))
    assert result.answer is not None and not result.clips and not result.text
    return result.answer


@pytest.mark.parametrize(
    ("options", "arguments", "letter"),
    [
        (DIGITS, {"choice": "B"}, "B"),
        (DIGITS, {"choice": " b "}, "B"),
        (DIGITS, {"choice": "7"}, "B"),
        (DIGITS, {"text": "7"}, "B"),
        (DIGITS, {"choice": "D", "text": None}, "D"),
        (DIGITS, {"choice": 7}, "B"),  # a number that is an option's text
        (("0.5", "-2", "10"), {"choice": 0.5}, "A"),
        (("0.5", "-2", "10"), {"choice": -2}, "B"),
        (TWISTED, {"choice": "A"}, "A"),  # a letter is a letter first
        (TWISTED, {"text": "A"}, "B"),  # a text is a text
        (TWISTED, {"choice": "red box"}, "C"),
    ],
)
def test_one_of_the_options_by_letter_or_by_its_text(
    options: tuple[str, ...], arguments: dict[str, Any], letter: str
) -> None:
    assert answer(options, **arguments) == Answer(letter, options["ABCD".index(letter)])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "give exactly one of choice and text, got neither. Here give choice, one of A, B, C, D."),
        ({"choice": "A", "text": "3"}, "got both"),
        ({"choice": "E"}, "'E' is none of the options. Give choice as one letter: A, B, C, D."),
        ({"choice": "A."}, "'A.' is none of the options"),
        ({"choice": ""}, "'' is none of the options"),
        ({"choice": "ſ"}, "'ſ' is none of the options"),
        ({"text": "12"}, "'12' is none of the options"),
        ({"choice": 2}, "'2' is none of the options"),  # never an option's place
        ({"choice": 7.0}, "'7.0' is none of the options"),
        ({"choice": 1e300}, "'1e+300' is none of the options"),
        ({"choice": True}, "wrong arguments for answer: choice: input should be a valid string (given True)"),
        ({"choice": [7]}, "wrong arguments for answer: choice: input should be a valid string (given [7])"),
        ({"choice": float("nan")}, "'NaN' is none of the options"),
        ({"choice": 10**4100}, "wrong arguments for answer: choice: string should have at most 4000 characters"),
        ({"text": 7}, "wrong arguments for answer: text: input should be a valid string (given 7)"),
        ({"text": "x" * 3000}, "xxx...' is none of the options"),
        ({"choice": "A", "evidence": [[3, 2]]}, "must not end before it starts, got [3, 2]"),
    ],
)
def test_anything_else_is_refused_with_the_letters(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ToolError) as caught:
        answer(DIGITS, **arguments)
    assert said in str(caught.value)


def test_a_text_that_two_options_share_is_none_of_them() -> None:
    for given in (7, "7"):
        with pytest.raises(ToolError, match="'7' is the text of more than one option. Give choice as one letter: A, B"):
            answer(("7", "7 "), choice=given)
    assert answer(("7", "7 "), choice="B") == Answer("B", "7 ")


def test_models_are_shown_that_a_choice_is_text() -> None:
    """The bundled model was trained on this very schema."""
    choice = AnswerTool.spec()["function"]["parameters"]["properties"]["choice"]
    assert choice == {
        "type": "string",
        "description": "letter of the right option, when there are options",
        "maxLength": 4000,
    }


def test_a_free_answer_is_text() -> None:
    assert answer((), text="  at the door ") == Answer(None, "at the door")
    for given in ("A", 7):
        with pytest.raises(ToolError, match="has no options. Give the answer as text"):
            answer((), choice=given)
    with pytest.raises(ToolError, match="the text is empty"):
        answer((), text=" \n")
    with pytest.raises(ToolError, match="got neither. Here give text."):
        answer(())


def test_evidence_is_windows_in_seconds() -> None:
    assert answer(DIGITS, choice="A", evidence=[[1, 2.5], [4, 4]]).evidence == ((1.0, 2.5), (4.0, 4.0))
    assert answer(DIGITS, choice="A", evidence=[]).evidence == ()
    assert len(answer(DIGITS, choice="A", evidence=[[0, 1]] * 8).evidence) == 8


@pytest.mark.parametrize(
    "evidence", [[[1]], [[1, 2, 3]], [1, 2], [[1, "2"]], [[-1, 2]], [[0, float("nan")]], [[0, 1]] * 9, "1-2"]
)
def test_malformed_evidence_is_refused(evidence: Any) -> None:
    with pytest.raises(ToolError, match="wrong arguments for answer: evidence"):
        answer(DIGITS, choice="A", evidence=evidence)
