"""Rows of the three projects' files, in the layouts their data cards and loaders document."""

from __future__ import annotations

from typing import Any

import pytest

from closeup.rl.data.formats import LAYOUTS, longvideo_reason, love_r1, samples, video_r1
from closeup.rl.data.options import RowFault

VIDEO_R1 = {
    "problem_id": 2,
    "problem": "What appears on the screen during the ascent?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. A notification", "B. A command", "C. A warning", "D. A weather update"],
    "solution": "<answer>A</answer>",
    "path": "./LLaVA-Video-178K/videos/ytb_1.mp4",
    "data_source": "LLaVA-Video-178K/30_60_s",
}
FREE = VIDEO_R1 | {"options": []}
LONG = {
    "problem_id": 0,
    "problem": "What is the intention behind the sequence (0:00:00-0:00:30)?\nA. Fun\nB. To contrast\nC. Fear\nD. None",
    "data_type": "video",
    "problem_type": "goal",
    "reasoning": "The sequence begins with an elephant ...",
    "videos": "longvila_videos/I_Q3.mp4",
    "answer": "<answer>B</answer>",
}
LOVE = {
    "problem": "Which instrument is played first?",
    "problem_type": "multiple choice",
    "options": ["A. violin", "B. drum"],
    "solution": "<answer>B</answer>",
    "path": "/data/CG-Bench/videos/x.mp4",
    "data_type": "video",
    "zoomin_intervals": [[3.2, 9]],
}
CG = {
    "video_uid": "abc",
    "question": "Which digit?",
    "choices": ["3", "7"],
    "right_answer": "B",
    "clue_intervals": [[10, 12.5], [40, 41]],
    "duration": 90.5,
    "sub_category": "OCR",
}
CHAT = {
    "video": "nextgqa/v.mp4",
    "conversations": [
        {"from": "human", "value": "<video>\nWhy did he stop?\nA. tired\nB. rain\nAnswer with the option's letter."},
        {"from": "gpt", "value": "B. rain"},
    ],
    "tgt": [[4, 9]],
}
SFT = {
    "video": "finevideo/v.mp4",
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "How many birds are there?"}]},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "I get the answer.\n\nI see \\boxed{1}… \\boxed{4}"}],
        },
    ],
    "cot_data": True,
    "zoomin_intervals": [[1, 4]],
}


def test_a_row_of_video_r1() -> None:
    found = video_r1(VIDEO_R1)
    assert found.videos == ("./LLaVA-Video-178K/videos/ytb_1.mp4",)
    assert found.question == "What appears on the screen during the ascent?"
    assert found.options == ("A notification", "A command", "A warning", "A weather update")
    assert (found.answer, found.answer_kind, found.id) == ("A notification", "choice", "2")
    assert (found.kind, found.evidence) == ("LLaVA-Video-178K/30_60_s", ())
    assert video_r1(VIDEO_R1 | {"process": "<think>so</think>"}).meta["reasoning"] == "<think>so</think>"


@pytest.mark.parametrize(
    ("said", "gold", "kind", "answer"),
    [
        ("numerical", "42", "numeric", "42"),
        ("regression", "<answer>3.5</answer>", "regression", "3.5"),
        ("OCR", "<answer>EXIT 12</answer>", "ocr", "EXIT 12"),
        ("free-form", "<answer>a cat jumps</answer>", "text", "a cat jumps"),
        ("open_ended", "a cat", "text", "a cat"),
        ("tvg", "<answer>[12, 20.5]</answer>", "grounding", "[12, 20.5]"),
        ("tal", "12 to 20", "grounding", "[12, 20]"),
    ],
)
def test_every_kind_of_answer(said: str, gold: str, kind: str, answer: str) -> None:
    found = video_r1(VIDEO_R1 | {"problem_type": said, "options": [], "solution": gold})
    assert (found.answer_kind, found.answer, found.options) == (kind, answer, ())
    assert bool(found.evidence) == (kind == "grounding")


def test_a_row_of_longvideo_reason_holds_its_options_in_the_question() -> None:
    found = longvideo_reason(LONG)
    assert found.question == "What is the intention behind the sequence (0:00:00-0:00:30)?"
    assert found.options == ("Fun", "To contrast", "Fear", "None")
    assert (found.answer, found.answer_kind, found.kind) == ("To contrast", "choice", "goal")
    assert found.videos == ("longvila_videos/I_Q3.mp4",)
    assert found.meta == {"problem_id": 0, "reasoning": LONG["reasoning"]}


def test_an_open_row_of_longvideo_reason_is_text() -> None:
    found = longvideo_reason(LONG | {"problem": "Why does he leave?", "answer": "Because it rains."})
    assert (found.answer_kind, found.answer, found.options) == ("text", "Because it rains.", ())


def test_an_answer_sample_of_love_r1_opens_with_the_windows_of_its_row() -> None:
    found = love_r1(LOVE)
    assert (found.answer, found.answer_kind, found.options, found.evidence) == (
        "drum",
        "choice",
        ("violin", "drum"),
        (),
    )
    assert found.seen == ((3, 9),), "rounded to whole seconds"
    assert found.meta["zoomin_intervals"] == [[3.2, 9]]
    assert samples(found) == (found,)
    assert love_r1(LOVE | {"tgt": None, "zoomin_intervals": []}).seen == ()
    assert love_r1(LOVE | {"zoomin_intervals": [[40, 41], [3, 5.6], [3, 6]]}).seen == ((3, 6), (40, 41))


@pytest.mark.parametrize("solution", ["<answer>B</answer>", "<answer>Q</answer>", None])
def test_a_row_of_love_r1_with_windows_is_asked_where_to_look_whatever_its_solution(solution: str | None) -> None:
    row = LOVE | {"tgt": [[10, 14.5], [20, 21]], "solution": solution}
    found = love_r1(row)
    assert (found.answer, found.answer_kind, found.options) == (None, "grounding", ("violin", "drum"))
    assert (found.evidence, found.seen) == (((10, 14.5), (20, 21)), ((3, 9),))
    assert found.question == "Which instrument is played first?"
    assert found.meta.get("solution") == solution
    alone, beside = samples(found)
    assert (alone.seen, beside) == ((), found), "it is asked from the overview, and beside what was watched before"
    assert samples(love_r1(row | {"zoomin_intervals": []})) == (love_r1(row | {"zoomin_intervals": []}),)
    assert love_r1(LOVE | {"tgt": [10, 14]}).evidence == ((10, 14),)
    inside = {"problem": "Which first?\nA. violin\nB. drum", "options": []}
    assert love_r1(row | inside).options == ("violin", "drum")
    assert love_r1(row | {"options": []}).options == ()


def test_a_cg_bench_row_of_love_r1() -> None:
    found = love_r1(CG)
    assert found.videos == ("abc.mp4",)
    assert (found.answer, found.evidence, found.duration, found.kind) == ("7", ((10, 12.5), (40, 41)), 90.5, "OCR")


def test_a_conversation_row_of_love_r1() -> None:
    found = love_r1(CHAT)
    assert (found.question, found.options, found.answer) == ("Why did he stop?", ("tired", "rain"), "rain")
    assert found.evidence == ((4, 9),)


def test_a_fine_tuning_row_of_love_r1_is_answered_by_its_last_box() -> None:
    found = love_r1(SFT)
    assert (found.question, found.answer, found.answer_kind) == ("How many birds are there?", "4", "text")
    assert found.meta["reasoning"].startswith("I get the answer.") and found.meta["zoomin_intervals"] == [[1, 4]]


def zoom(text: str) -> dict[str, Any]:
    return SFT | {"messages": [SFT["messages"][0], {"role": "assistant", "content": text}]}  # type: ignore[index]


@pytest.mark.parametrize(
    ("layout", "row", "kind", "says"),
    [
        ("video_r1", VIDEO_R1 | {"data_type": "image"}, "no video", "data_type is 'image'"),
        ("video_r1", {**VIDEO_R1, "data_type": None, "path": "a/b.PNG"}, "no video", "is a picture"),
        ("video_r1", VIDEO_R1 | {"path": ""}, "no video", "no path in"),
        ("video_r1", VIDEO_R1 | {"problem": " "}, "no question", "no text in 'problem'"),
        ("video_r1", VIDEO_R1 | {"solution": "<answer></answer>"}, "no gold answer", "no text in 'solution'"),
        ("video_r1", VIDEO_R1 | {"solution": "<answer>E</answer>"}, "gold answer", "none of the letters A, B, C, D"),
        ("video_r1", VIDEO_R1 | {"solution": "<answer>A, C</answer>"}, "gold answer", "none of the options"),
        ("video_r1", VIDEO_R1 | {"options": []}, "options", "no options to choose from"),
        ("video_r1", VIDEO_R1 | {"options": {"A": "x", "B": {}}, "solution": "B"}, "options", "a list of texts"),
        ("video_r1", VIDEO_R1 | {"options": 3}, "options", "a list of texts, got 3"),
        ("video_r1", VIDEO_R1 | {"problem_type": "riddle"}, "answer kind", "unknown problem_type 'riddle'"),
        ("video_r1", FREE | {"problem_type": "numerical", "solution": "two"}, "gold answer", "one number"),
        ("video_r1", FREE | {"problem_type": "tvg", "solution": "[9, 3]"}, "gold answer", "grounding"),
        ("video_r1", FREE | {"problem_type": "OCR", "solution": "x" * 4001}, "gold answer", "4001 char"),
        ("longvideo_reason", LONG | {"problem": "Which one?"}, "options", "no options to choose from"),
        ("longvideo_reason", LONG | {"videos": []}, "no video", "no path in"),
        ("love_r1", LOVE | {"tgt": [[9, 3]]}, "evidence", r"'tgt' holds \[9, 3\]"),
        ("love_r1", LOVE | {"tgt": [[1, 2, 3]]}, "evidence", "a window is"),
        ("love_r1", LOVE | {"tgt": "1-2"}, "evidence", "a window is"),
        ("love_r1", LOVE | {"tgt": [[1, 2]], "problem": " <video> "}, "no question", "no text in 'problem'"),
        ("love_r1", LOVE | {"tgt": [[1, 2]], "path": None}, "no video", "no path in"),
        ("love_r1", LOVE | {"tgt": [[1, 2]], "data_type": "image"}, "no video", "data_type is 'image'"),
        ("love_r1", LOVE | {"zoomin_intervals": [[3.2, 3.4]]}, "evidence", "at 3 s without a second"),
        ("love_r1", LOVE | {"zoomin_intervals": [3, 2]}, "evidence", r"'zoomin_intervals' holds \[3, 2\]"),
        ("love_r1", CG | {"right_answer": None}, "no gold answer", "right_answer"),
        ("love_r1", CG | {"video_uid": None}, "no video", "no path in"),
        ("love_r1", CHAT | {"conversations": CHAT["conversations"][:1]}, "unknown form", "lacks an assistant message"),
        ("love_r1", CHAT | {"conversations": "hi"}, "unknown form", "a list of messages"),
        ("love_r1", zoom("I need to zoom in on the video.\n\n\\boxed{[3, 9]}"), "no gold answer", "is a zoom"),
        ("love_r1", {"video": "a.mp4"}, "unknown form", "has just the fields"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_become_a_task_says_why(layout: str, row: dict[str, Any], kind: str, says: str) -> None:
    with pytest.raises(RowFault, match=says) as caught:
        LAYOUTS[layout](row)
    assert caught.value.kind == kind
