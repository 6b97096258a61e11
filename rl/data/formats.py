"""The annotation layouts that `closeup data convert` reads, each as a function from a row to an `Annotation`.

Sources: the data cards and data loaders of the three projects (field names as of 2025).

- `video_r1` (Video-R1-260k.json, Video-R1-COT-165k.json): problem_id, problem, data_type, problem_type, options,
  solution "<answer>…</answer>", path, data_source; process (chain of thought) in the second file.
- `longvideo_reason` (train/val/test.jsonl, openended.jsonl): problem_id, problem with the options inside it, data_type,
  problem_type (the perspective: temporal, goal, plot, spatial), reasoning, videos, answer "<answer>…</answer>" or bare.
- `love_r1`, four forms of one project: reinforcement rows (problem, problem_type, options, solution, path, and tgt and
  zoomin_intervals in seconds); fine-tuning rows (video, messages, tgt, zoomin_intervals, cot_data); CG-Bench rows
  (video_uid, question, choices, right_answer, clue_intervals); NExT-GQA rows (video, conversations, tgt).

LOVE-R1's reinforcement rows are of two kinds, as its trainer tells them apart. With windows in tgt a row is a grounding
sample: the question is asked for where to look, whatever solution it has (`Annotation.answer` is None, and the kind
"grounding"). Without, it is an answer sample. The windows in zoomin_intervals, rounded to whole seconds, were watched
before (`Annotation.seen`). A grounding row is trained on twice there, before and after these: `samples`.

Invariants
1. A row becomes an annotation with a question, at least one video, and a gold answer that fits its kind or (grounding
   samples) gold windows, or `RowFault` says what it lacks; a field that is missing but not needed is no fault.
2. Nothing is made up: without known windows there is no evidence. The one derived value is the evidence of a temporal
   grounding question, whose gold answer is where it happens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from closeup.agent.task import AnswerKind, Window
from closeup.rl.data.fields import (
    Row,
    grounding_window,
    id_of,
    number_of,
    refuse_pictures,
    seen_windows,
    short,
    strings_of,
    text_of,
    turns_of,
    videos_of,
    windows_of,
    without_placeholders,
)
from closeup.rl.data.options import RowFault, gold_option, gold_text, is_letter, read_options, split_options
from closeup.rl.rewards import number_in
from closeup.tools.answer import MAX_TEXT

KINDS: dict[str, AnswerKind] = {
    "multiple choice": "choice",
    "mcq": "choice",
    "numerical": "numeric",
    "numeric": "numeric",
    "ocr": "ocr",
    "free form": "text",
    "open ended": "text",
    "openended": "text",
    "regression": "regression",
    "tal": "grounding",
    "tvg": "grounding",
    "temporal grounding": "grounding",
}
"""`problem_type` of the annotations, in lower case with blanks for "-" and "_", and how such an answer is judged."""

_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_LIST = re.compile(r"\s*\[.*\]\s*", re.S)


@dataclass(frozen=True, slots=True)
class Annotation:
    """What a row says, in this project's terms; videos are still named as the annotation names them.

    Attributes:
        answer: None for a grounding sample of LOVE-R1, which is asked where to look.
        seen: windows (whole seconds) that are watched before the question is asked.
        id: the annotation's own id, or "".
        kind: a label to report accuracy by. meta: what a task has no field for, kept beside it.
    """

    videos: tuple[str, ...]
    question: str
    answer: str | None
    options: tuple[str, ...] = ()
    answer_kind: AnswerKind = "text"
    evidence: tuple[Window, ...] = ()
    seen: tuple[Window, ...] = ()
    id: str = ""
    kind: str = ""
    duration: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)


def video_r1(row: Row) -> Annotation:
    """A row of Video-R1. Raises `RowFault`."""
    return _problem(row, kind=text_of(row, "data_source"), thought="process")


def longvideo_reason(row: Row) -> Annotation:
    """A row of LongVideo-Reason. Raises `RowFault`.

    `problem_type` is what is asked about (temporal, goal, plot, spatial), so the row itself shows the answer's kind.
    """
    said = text_of(row, "problem_type")
    plain = {key: value for key, value in row.items() if key != "problem_type" or _known_kind(said)}
    return _problem(plain, kind=said, thought="reasoning")


def love_r1(row: Row) -> Annotation:
    """A row of any of LOVE-R1's files. Raises `RowFault`."""
    if "problem" in row:
        return _reinforcement(row)
    if "right_answer" in row or "choices" in row:
        return _cg_bench(row)
    if "conversations" in row:
        return _spoken(row, *turns_of(row["conversations"], "conversations", "from", "value"))
    if "messages" in row:
        return _spoken(row, *turns_of(row["messages"], "messages", "role", "content"))
    if "question" in row and "answer" in row:
        return _problem(row, kind=text_of(row, "data_source"), thought="process")
    raise RowFault(
        "unknown form",
        f"no form of LOVE-R1 has just the fields {sorted(row)}; each has problem, choices, conversations or messages",
    )


LAYOUTS: dict[str, Callable[[Row], Annotation]] = {
    "love_r1": love_r1,
    "longvideo_reason": longvideo_reason,
    "video_r1": video_r1,
}


def samples(annotation: Annotation) -> tuple[Annotation, ...]:
    """What is trained on because of a row: it, or, of a grounding row with windows watched before, first without them.

    LOVE-R1 asks a grounding row for a window from the overview alone, and then for a new one beside those of the row.
    """
    if annotation.answer is None and annotation.seen:
        return replace(annotation, seen=()), annotation
    return (annotation,)


# ---- the forms -----------------------------------------------------------------------------------------------------


def _problem(row: Row, *, kind: str, thought: str) -> Annotation:
    """problem, problem_type, options, solution or answer, path or videos."""
    refuse_pictures(row)
    question = without_placeholders(text_of(row, "problem") or text_of(row, "question"))
    if not question:
        raise RowFault("no question", f"no text in 'problem'; the row has {sorted(row)}")
    gold = gold_text(text_of(row, "solution") or text_of(row, "answer"))
    if not gold:
        raise RowFault("no gold answer", "no text in 'solution' or 'answer'")
    said = text_of(row, "problem_type")
    asked = _known_kind(said)
    if said and asked is None:
        raise RowFault("answer kind", f"unknown problem_type {said!r}; known: {', '.join(KINDS)}")
    return _finish(row, question, gold, asked, strings_of(row, "options"), kind=kind or said, thought=thought)


def _reinforcement(row: Row) -> Annotation:
    """A row of LOVE-R1's reinforcement: a grounding sample with windows in tgt, else an answer sample."""
    seen = seen_windows(row, "zoomin_intervals")
    evidence = windows_of(row, "tgt")
    if not evidence:
        return replace(_problem(row, kind=text_of(row, "data_source"), thought="process"), seen=seen)
    refuse_pictures(row)
    question = without_placeholders(text_of(row, "problem"))
    given = strings_of(row, "options")
    options = read_options(given).texts if given else ()
    if not options and (found := split_options(question, inline=False)):
        question, options = found[0], found[1].texts
    if not question.strip():
        raise RowFault("no question", f"no text in 'problem'; the row has {sorted(row)}")
    return Annotation(
        videos=videos_of(row),
        question=question.strip(),
        answer=None,
        options=options,
        answer_kind="grounding",
        evidence=evidence,
        seen=seen,
        id=id_of(row),
        kind=text_of(row, "data_source") or text_of(row, "problem_type"),
        duration=number_of(row.get("duration")),
        meta=_meta(row, "problem_id", "zoomin_intervals", "data_source", "solution"),
    )


def _cg_bench(row: Row) -> Annotation:
    """question, choices, right_answer (a letter), clue_intervals, video_uid."""
    question, gold = text_of(row, "question"), text_of(row, "right_answer") or text_of(row, "answer")
    if not question:
        raise RowFault("no question", f"no text in 'question'; the row has {sorted(row)}")
    if not gold:
        raise RowFault("no gold answer", "no letter in 'right_answer'")
    named = dict(row)
    if not any(key in row for key in ("path", "video", "videos")):
        uid = text_of(row, "video_uid")
        named["video"] = f"{uid}.mp4" if uid else None
    kind = text_of(row, "sub_category") or text_of(row, "data_source")
    return _finish(named, question, gold, "choice", strings_of(row, "choices"), kind=kind, thought="answer_cot")


def _spoken(row: Row, question: str, said: str) -> Annotation:
    """A question and a model answer: the last `\\boxed{…}` of it, or all of it where nothing is boxed."""
    question = without_placeholders(question)
    if not question:
        raise RowFault("no question", "the first user message holds no text")
    boxed = _BOXED.findall(said)
    gold = (boxed[-1] if boxed else gold_text(said)).strip()
    if not gold:
        raise RowFault("no gold answer", "the last assistant message holds no text")
    if boxed and _LIST.fullmatch(gold):
        raise RowFault(
            "no gold answer", f"the message is a zoom, \\boxed{{{gold}}}, and gives no answer; it is no question's gold"
        )
    thought = {"thought": said} if boxed else {}
    return _finish({**row, **thought}, question, gold, None, (), kind=text_of(row, "data_source"), thought="thought")


def _finish(
    row: Row, question: str, gold: str, asked: AnswerKind | None, given: Sequence[str], *, kind: str, thought: str
) -> Annotation:
    """Put a question, its gold answer and its options together. Raises `RowFault` where they do not fit."""
    chosen = asked == "choice" or (asked is None and is_letter(gold))
    options = read_options(given) if given else None
    if options is None and asked in (None, "choice") and (found := split_options(question, inline=chosen)):
        question, options = found
    evidence = windows_of(row, "tgt") or windows_of(row, "clue_intervals")
    if options is not None:
        answer, asked = gold_option(gold, options), "choice"
    elif chosen:
        raise RowFault("options", f"the gold answer is {short(gold)!r}, but the row has no options to choose from")
    else:
        answer, asked = gold, asked or "text"
        if asked == "grounding":
            window = grounding_window(gold)
            answer, evidence = f"[{window[0]:g}, {window[1]:g}]", evidence or (window,)
        elif asked in ("numeric", "regression") and number_in(gold) is None:
            raise RowFault("gold answer", f"a {asked} answer is one number, got {short(gold)!r}")
    if not question.strip():
        raise RowFault("no question", "nothing is asked: the text holds only options")
    if len(answer) > MAX_TEXT:
        raise RowFault(
            "gold answer", f"the gold answer has {len(answer)} characters; at most {MAX_TEXT} can be answered"
        )
    meta = _meta(row, "problem_id", "zoomin_intervals", "data_source")
    if text_of(row, thought):
        meta["reasoning"] = text_of(row, thought)
    return Annotation(
        videos=videos_of(row),
        question=question.strip(),
        answer=answer,
        options=options.texts if options else (),
        answer_kind=asked,
        evidence=evidence,
        id=id_of(row),
        kind=kind,
        duration=number_of(row.get("duration")),
        meta=meta,
    )


def _meta(row: Row, *keys: str) -> dict[str, Any]:
    return {key: row[key] for key in keys if row.get(key) not in (None, [], "")}


def _known_kind(said: str) -> AnswerKind | None:
    return KINDS.get(" ".join(re.split(r"[\s_-]+", said.strip().lower())))
