"""Options and gold answers as annotation files write them: labelled or not, beside the question or inside it.

Pure functions of text. Nothing is guessed: where labels, order and gold answer do not fit together, `RowFault` says so.

Invariants
1. An option's text has no label ("A.", "(B)", "C:") if and only if the labels of all options are the letters from A on.
2. `split_options` changes nothing but what it takes out: the question's own text stays as it was, but for its last
   blanks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from closeup.agent.task import LETTERS

_LABEL = r"(?:\(([A-Za-z])\)|([A-Za-z])[.):])"
_LABELLED = re.compile(rf"\s*{_LABEL}\s*(.*)", re.S)
_LABELLED_LINE = re.compile(rf"\s*{_LABEL}\s*(\S.*)")
_INLINE = re.compile(rf"(?:^|(?<=\s)){_LABEL}\s*(?=\S)")
_HEADER = re.compile(r"\s*(?:the\s+)?(?:answer\s+)?(?:options|choices|candidates)(?:\s+are)?\s*:\s*", re.I)
_HEADER_AT_END = re.compile(r"\s*\b(?:options|choices|candidates)\s*:\s*\Z", re.I)
_INSTRUCTION = re.compile(
    r"\s*(?:please\s+|now\s+|only\s+|you\s+(?:must|should)\s+)*"
    r"(?:answer|provide|respond|reply|select|choose|give|output|return|pick|based\s+on)\b.*"
    r"\b(?:letter|options?|choices?|answer|answers)\b.*",
    re.I | re.S,
)
_ANSWER_TAG = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.S | re.I)
MIN_OPTIONS = 2


class RowFault(ValueError):
    """Why a row cannot become a task. `kind` is a short name to count by; the message holds what was found."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Options:
    """Options without their labels.

    Attributes:
        letters: the letter of each option, upper case: its label, or its place when there are no labels.
        texts: the options, in the annotation's order.
        labelled: the annotation itself wrote the letters.
    """

    letters: tuple[str, ...]
    texts: tuple[str, ...]
    labelled: bool = True


def read_options(given: Sequence[str]) -> Options:
    """Options from a list such as `["A. red", "B. blue"]`, `["(a) red", "(b) blue"]` or `["red", "blue"]`.

    Raises `RowFault` when labels and order contradict each other, or an option is empty.
    """
    texts = [text.strip() for text in given]
    letters = LETTERS[: len(texts)]
    if len(texts) > len(LETTERS):
        raise RowFault("options", f"{len(texts)} options; at most {len(LETTERS)} can be told apart by letter")
    found = [_LABELLED.fullmatch(text) for text in texts]
    labels = [(match[1] or match[2]).upper() if match else "" for match in found]
    labelled = bool(texts) and sorted(labels) == list(letters)
    if labelled:
        texts = [match[3].strip() for match in found if match]
        letters = "".join(labels)
    elif any(label and label != letter and label in letters for label, letter in zip(labels, letters, strict=True)):
        raise RowFault("options", f"the options' labels are {labels}; accepted: {', '.join(letters)}, or none at all")
    if not all(texts):
        raise RowFault("options", f"option {letters[texts.index('')]} is empty")
    return Options(tuple(letters), tuple(texts), labelled)


def split_options(text: str, *, inline: bool) -> tuple[str, Options] | None:
    """The question and the options of a text that holds both; None when it holds no options.

    Options are labelled A, B, … on lines of their own; with `inline` also within one line ("… ? (A) red (B) blue"),
    which is only safe to look for when the gold answer is a letter. An instruction after the last option ("Answer with
    the option's letter") is left out. Raises `RowFault` when other text follows the last option.
    """
    return _by_lines(text) or (_in_line(text) if inline else None)


def gold_text(solution: str) -> str:
    """What stands between `<answer>` tags, or the whole text without them; blanks around it removed."""
    match = _ANSWER_TAG.search(solution)
    return (match[1] if match else solution).strip()


def is_letter(gold: str) -> bool:
    """Whether a gold answer is an option's letter ("B", "(B)", "B.")."""
    return re.fullmatch(r"\(?[A-Za-z]\)?[.:)]?", gold) is not None


def gold_option(gold: str, options: Options) -> str:
    """The text of the option that a gold answer means: its letter, its exact text, or both ("B. blue").

    Raises `RowFault` when it means none of them, or its letter and its text mean different ones.
    """
    if is_letter(gold):
        letter = gold.strip("().: ").upper()
        by_letter = options.texts[options.letters.index(letter)] if letter in options.letters else None
        if gold in options.texts and gold != by_letter and not (options.labelled and by_letter):
            if by_letter is None:
                return gold
            raise RowFault(
                "gold answer", f"the gold answer {gold!r} is the text of one option and the letter of another"
            )
        if by_letter is None:
            raise RowFault(
                "gold answer", f"the gold answer {gold!r} is none of the letters {', '.join(options.letters)}"
            )
        return by_letter
    if gold in options.texts:
        return gold
    match = _LABELLED.fullmatch(gold)
    if match and match[3].strip() in options.texts:
        text = match[3].strip()
        letter = (match[1] or match[2]).upper()
        if options.letters[options.texts.index(text)] == letter:
            return text
        raise RowFault("gold answer", f"the gold answer {_short(gold)!r} names one letter and another option's text")
    raise RowFault("gold answer", f"the gold answer {_short(gold)!r} is none of the options {list(options.texts)}")


def _by_lines(text: str) -> tuple[str, Options] | None:
    lines = text.split("\n")
    labels = [_LABELLED_LINE.fullmatch(line) for line in lines]
    for start in range(len(lines) - 1, -1, -1):  # the last A that B, C, … follow
        texts: list[str] = []
        end = start
        between: list[str] = []
        for at in range(start, len(lines)):
            match = labels[at]
            if match and len(texts) < len(LETTERS) and _letter(match) == LETTERS[len(texts)]:
                if texts:  # lines between two labels go on with the option above them
                    texts[-1] = " ".join([texts[-1], *between])
                texts.append(match[3].strip())
                between, end = [], at
            elif not texts:
                break
            elif lines[at].strip():
                between.append(lines[at].strip())
        if len(texts) < MIN_OPTIONS:
            continue
        _only_instructions("\n".join(lines[end + 1 :]))
        return _without_header("\n".join(lines[:start])), Options(tuple(LETTERS[: len(texts)]), tuple(texts))
    return None


def _in_line(text: str) -> tuple[str, Options] | None:
    """Options in running text: the last A that B, C, … follow."""
    marks = list(_INLINE.finditer(text))
    for first in range(len(marks) - 1, -1, -1):
        run: list[re.Match[str]] = []
        for mark in marks[first:]:
            if _letter(mark) == LETTERS[len(run)]:
                run.append(mark)
        if len(run) < MIN_OPTIONS:
            continue
        ends = [mark.start() for mark in run[1:]] + [len(text)]
        texts = [text[mark.end() : end].strip().rstrip(",;").strip() for mark, end in zip(run, ends, strict=True)]
        last, _, after = texts[-1].partition("\n")
        _only_instructions(after)
        return _without_header(text[: run[0].start()]), Options(tuple(LETTERS[: len(run)]), (*texts[:-1], last.strip()))
    return None


def _letter(match: re.Match[str]) -> str:
    return (match[1] or match[2]).upper()


def _without_header(text: str) -> str:
    """Without a last line "Options:"."""
    lines = text.rstrip().split("\n")
    if lines and _HEADER.fullmatch(lines[-1]):
        return "\n".join(lines[:-1]).rstrip()
    return _HEADER_AT_END.sub("", text).rstrip()


def _only_instructions(text: str) -> None:
    """Raise `RowFault` unless `text` is empty or tells how to answer."""
    if text.strip() and not _INSTRUCTION.fullmatch(text):
        raise RowFault("options", f"text that is no instruction follows the last option: {_short(text.strip())!r}")


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
