"""Chains of thought as recorded episodes: what `closeup data convert --trajectories` writes, and SFT learns from.

A row holds a question and what a model should have said. It becomes an episode of one message: the environment shows
the question as it shows it to a model, the row's text is said, and the record is kept as of any policy without tokens.

- `love_r1`: fine-tuning rows (messages, zoomin_intervals). The last assistant message is said as it is; it zooms or
  answers. The row's windows are watched before, those under 5 s widened to 6 s, in 32 frames each (two: 24, more: 16).
- `longvideo_reason` (reasoning and answer) and `video_r1` (process and solution): `<think>…</think>`, a line break, and
  `<answer>…</answer>` with the gold letter or text, over the frames of the presets "longvila_r1" and "video_r1-train".

Sources: LOVE-R1's `sft_video.py`; the data cards of the two others.

Invariants
1. What is recorded ran: a message that its dialect cannot read, a call that is refused and an answer that is not the
   row's gold one are faults of the row.
2. The message is the row's own text (for the last two: its thought and its gold answer), and nothing is left out of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from closeup.agent.dialects.base import ToolCall
from closeup.agent.dialects.love_r1 import LoveR1
from closeup.agent.dialects.think_answer import ThinkAnswer
from closeup.agent.episode import run_episodes
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import Preset, get_preset
from closeup.agent.task import LETTERS, Task, Window
from closeup.agent.trajectory import Trajectory
from closeup.rl.data.fields import (
    Row,
    id_of,
    number_of,
    seen_windows,
    text_of,
    turns_of,
    videos_of,
    windows_of,
    without_placeholders,
)
from closeup.rl.data.formats import Annotation, longvideo_reason, love_r1, video_r1
from closeup.rl.data.options import RowFault, split_options
from closeup.rl.rewards import is_correct

SHORT, WIDENED = 5.0, 3.0
"""LOVE-R1 widens a window shorter than the first (seconds) to the second on either side of its middle."""
_THOUGHT = re.compile(r"\s*<think>(.*)</think>\s*", re.S)


@dataclass(frozen=True, slots=True)
class Chain:
    """What a row becomes: the question, the message that is said, and the rules it is said under."""

    annotation: Annotation
    message: str
    preset: Preset


def love_r1_chain(row: Row) -> Chain:
    """A fine-tuning row of LOVE-R1. Raises `RowFault`."""
    if "messages" not in row:
        raise RowFault(
            "no chain", f"no message of the assistant to learn: the row has {sorted(row)}, and no 'messages'"
        )
    asked, said = turns_of(row["messages"], "messages", "role", "content")
    action = LoveR1().parse(said).action
    if not isinstance(action, ToolCall):
        raise RowFault("chain", f"the assistant's message is no step of the dialect love_r1: {action.message}")
    if action.name == "answer":
        annotation = love_r1(row)
    else:
        question, options = without_placeholders(asked), tuple[str, ...]()
        if found := split_options(question, inline=False):
            question, options = found[0], found[1].texts
        annotation = Annotation(
            videos=videos_of(row),
            question=question.strip(),
            answer=None,
            options=options,
            answer_kind="grounding",
            evidence=windows_of(row, "tgt"),
            id=id_of(row),
            kind=text_of(row, "data_source"),
            duration=number_of(row.get("duration")),
        )
        if not annotation.question:
            raise RowFault("no question", "the first user message holds no text")
    seen = tuple(_widened(window) for window in seen_windows(row, "zoomin_intervals"))
    return Chain(replace(annotation, seen=seen), said, get_preset("love_r1-sft"))


def longvideo_reason_chain(row: Row) -> Chain:
    """A row of LongVideo-Reason with its reasoning. Raises `RowFault`."""
    return _think_chain(longvideo_reason(row), "reasoning", "longvila_r1")


def video_r1_chain(row: Row) -> Chain:
    """A row of Video-R1-COT with its process. Raises `RowFault`."""
    return _think_chain(video_r1(row), "process", "video_r1-train")


CHAINS: Mapping[str, Callable[[Row], Chain]] = {
    "love_r1": love_r1_chain,
    "longvideo_reason": longvideo_reason_chain,
    "video_r1": video_r1_chain,
}


def recorded(task: Task, chain: Chain) -> Trajectory:
    """The episode in which the chain's message is said. Raises `RowFault` where it does not run as the row has it."""
    policy = ScriptedPolicy([chain.message], name="annotation")
    (done,) = run_episodes([task], policy, preset=chain.preset, judge=is_correct)
    if done.outcome.failed:
        raise RowFault("no episode", done.outcome.reason)
    (step,) = done.steps
    if step.outcome != "ok":
        raise RowFault("chain", f"the message cannot be carried out ({step.outcome}): {step.note}")
    if done.outcome.correct is False:
        raise RowFault("chain", f"the message answers {done.outcome.answer!r}, and the gold answer is {task.answer!r}")
    return done


def _think_chain(annotation: Annotation, field: str, preset: str) -> Chain:
    thought = annotation.meta.get("reasoning", "")
    inside = _THOUGHT.fullmatch(thought)
    thought = (inside[1] if inside else thought).strip()
    if not thought:
        raise RowFault("no chain", f"no text in '{field}': there is nothing to learn but the answer")
    assert annotation.answer is not None  # these layouts have no row without one
    answer = {"text": annotation.answer}
    if annotation.options:
        answer = {"choice": LETTERS[annotation.options.index(annotation.answer)]}
    try:
        message = ThinkAnswer().write(thought, ToolCall("answer", answer))
    except ValueError as error:
        raise RowFault("chain", str(error)) from None
    return Chain(annotation, message, get_preset(preset))


def _widened(window: Window) -> Window:
    start, end = window
    middle = float(int((start + end) / 2))
    return (max(middle - WIDENED, 0.0), middle + WIDENED) if end - start < SHORT else window
