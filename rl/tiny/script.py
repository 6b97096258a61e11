"""The expert's words: every sentence, call and response of an episode, with its weights and attention targets.

Design note. `Script` writes; what is worth doing is decided in `experts`. Marks are character positions in the text
(see `samples`). A visual token attends to its time label or to its response's opening, a label to the label before, an
option to its letter (head 0) or to the option before (head 1), a query to its key (head 3): all in layer 0. Layer 1:
overview lookup (head 0), next label (head 1), copying (head 3), reading a zoom (head 4), counting (head 5).
"""

from __future__ import annotations

import math

import numpy as np
from tokenizers import Tokenizer

from closeup.rl.tiny.samples import VARYING, Writer
from closeup.rl.tiny.timeline import Timeline, label, number
from closeup.rl.tiny.units import BoxUnit, Features, Zoom

Rng = np.random.Generator


class Script:
    """One episode as it is written down."""

    def __init__(self, tokenizer: Tokenizer, timeline: Timeline, rng: Rng) -> None:
        self.w = Writer(tokenizer, timeline.overview.shape[-1])
        self.t, self.rng = timeline, rng
        self.labels: list[int] = []
        self.pads: list[int] = []
        self.letters: list[int] = []
        self.values: list[int] = []
        self.asked = 0  # mark of the colour or digit in the question
        self.target = 0  # mark of the colour last looked for
        self.call: tuple[int, int] = (0, 0)  # marks of the last call's start and end
        self.texts: tuple[str, str] = ("", "")

    def overview(self) -> None:
        w = self.w
        w.add("<|im_start|>user\n")
        for k, feature in enumerate(self.t.overview):
            mark = w.add(label(self.t.time(k)))
            if self.labels:
                w.guide(0, 1, mark, [self.labels[-1]])
            self.labels.append(mark)
            self.pads += w.pads(feature[None])
            w.guide(0, 0, self.pads[-1], [mark])

    def ask(self, before: str, key: str, after: str, options: tuple[str, ...]) -> None:
        w = self.w
        w.add("\n" + before)
        self.asked = w.add(key)
        w.add(after)
        for letter, text in zip("ABCD", options, strict=True):
            w.add("\n")
            self.letters.append(w.add(letter))
            w.add(". ")
            self.values.append(w.add(text))
            value = self.values[-1]
            w.guide(0, 0, value, [self.letters[-1]])
            if "." in text:  # a time with a decimal
                w.guide(0, 0, value + text.index(".") + 1, [self.letters[-1]])
            if len(self.values) > 1:
                w.guide(0, 1, value, [self.values[-2]])
        w.add("<|im_end|>\n")

    def turn(self) -> None:
        self.w.add("<|im_start|>assistant\n")
        self.w.add("<think>", 1.0)

    def point(self, unit: BoxUnit, at: int, source: int, *, key: int | None = None, learn: bool = True) -> int:
        """'The red box is at 12s.': returns the mark of the time. `source`: where the colour is copied from."""
        w = self.w
        w.add("The ", 1.0)
        colour = w.add(unit.colour, VARYING)
        w.guide(1, 3, colour, [source], before=True)
        if key is not None:
            w.guide(0, 3, colour, [key], before=True)
        w.add(" box is at ", 1.0)
        time = w.add(label(self.t.time(at))[:-1], VARYING if learn else 0.0)
        w.guide(0, 3, time, [colour], before=True)
        pair = next((p for p, other in self.t.boxes if other is unit), None)
        if learn and pair is not None:
            w.guide(1, 0, time, [self.pads[pair]], before=True)
        w.add("s.", 1.0)
        self.target = colour
        return time

    def zoom(self, at: int, time: int) -> None:
        """The call of zoom_clip on the pair `at`."""
        w = self.w
        start, end = (number(self.t.time(at + k)) for k in (0, 1))
        w.add('</think>\n<tool_call>\n{"name": "zoom_clip", "arguments": {"start": ', 1.0)
        first = w.add(start, VARYING)
        w.guide(1, 3, first, [time], before=True)
        w.add(', "end": ', 1.0)
        second = w.add(end, VARYING)
        w.guide(0, 3, second, [first], before=True)
        w.guide(1, 1, second, [self.labels[at + 1]], before=True)
        w.add("}}\n</tool_call><|im_end|>", 1.0)
        w.add("\n")
        self.called(first, second, start, end)

    def called(self, first: int, second: int, start: str, end: str) -> None:
        w = self.w
        self.call, self.texts = (first, second), (start, end)
        for mark, text, key in ((first, start, '"start": '), (second, end, '"end": ')):
            word = mark - len(key) + 1
            w.guide(0, 0, mark, [word])
            if "." in text:
                w.guide(0, 0, mark + text.index(".") + 1, [word])

    def show(self, zoom: Zoom, at: int) -> tuple[list[int], int]:
        """What zoom_clip gives back: marks of the tokens that hold the box, mark of the response's opening."""
        w = self.w
        w.add("<|im_start|>user\n")
        opening = w.add("<tool_response>\n")
        marks: list[int] = []
        for k in (0, 1):
            start = math.floor((self.t.time(at) + k * self.t.spacing / 2) * 10 + 1e-6) / 10
            w.add(label(start))
            marks += w.pads(zoom.features[16 * k : 16 * k + 16])
        for mark in marks:
            w.guide(0, 0, mark, [opening])
        w.add("\n</tool_response><|im_end|>\n")
        return [marks[i] for i in zoom.box], opening

    def see(self, box: list[int], opening: int, unit: BoxUnit | None, target: int) -> int:
        """'I see a red box' or 'I see no box'; returns the colour's mark (or that of "no")."""
        w = self.w
        w.add("I see ", 1.0)
        if unit is None:
            seen = w.add("no", VARYING)
            w.guide(1, 4, seen, [opening], before=True)
            w.add(" box", 1.0)
            return seen
        article = w.add("an " if unit.colour[0] in "aeiou" else "a ", VARYING)
        w.guide(1, 4, article, box, before=True)
        colour = w.add(unit.colour, VARYING)
        w.guide(1, 4, colour, box, before=True)
        last = w.add(" box", 1.0)
        w.guide(0, 3, last, [colour])
        w.guide(1, 3, last, [target])
        return colour

    def read(self, unit: BoxUnit, box: list[int], colour: int, *, misread: bool = False) -> int:
        """': 7' after the box seen is the one looked for; returns the digit's mark. A misread digit is not learned."""
        w = self.w
        w.add(": ", VARYING)
        if misread:
            return w.add(str((unit.digit + int(self.rng.integers(1, 10))) % 10))
        digit = w.add(str(unit.digit), VARYING)
        w.guide(0, 3, digit, [colour], before=True)
        w.guide(1, 4, digit, box, before=True)
        return digit

    def conclude(self, choice: int, *, key: int, source: int | None) -> None:
        """' (B).' and the answer: the letter is looked up at option `source` by the value at mark `key`."""
        w = self.w
        w.add(" (", VARYING)
        letter = w.add("ABCD"[choice], VARYING)
        w.guide(0, 3, letter, [key], before=True)
        if source is not None:
            w.guide(1, 3, letter, [self.values[source]], before=True)
        w.add(")", 1.0)
        w.add('.</think>\n<tool_call>\n{"name": "answer", "arguments": {"choice": "', 1.0)
        again = w.add("ABCD"[choice], VARYING)
        w.guide(1, 3, again, [letter], before=True)
        self.evidence()

    def evidence(self) -> None:
        """The rest of an answer: the last call's window as evidence."""
        w = self.w
        w.add('", "evidence": [[', 1.0)
        for k, (mark, text) in enumerate(zip(self.call, self.texts, strict=True)):
            copy = w.add(text, VARYING)
            w.guide(1, 3, copy, [mark], before=True)
            if "." in text:
                tail = text.index(".") + 1
                w.guide(1, 3, copy + tail, [mark + tail], before=True)
            if k == 0:
                w.add(", ", 1.0)
        w.add("]]}}\n</tool_call><|im_end|>", 1.0)

    def give_up(self, choice: int) -> None:
        """A forced last message: the call has been begun for the model, which only fills in what is left."""
        w = self.w
        w.add('<|im_start|>assistant\n<tool_call>\n{"name": "answer", "arguments": {')
        w.cut()
        w.add('"choice": "', 1.0)
        w.add("ABCD"[choice], 1.0)
        self.evidence()

    def letter(self, choice: int, key: int, source: int | None) -> int:
        w = self.w
        w.add(" (", VARYING)
        letter = w.add("ABCD"[choice], VARYING)
        w.guide(0, 3, letter, [key], before=True)
        if source is not None:
            w.guide(1, 3, letter, [self.values[source]], before=True)
        w.add(").</think>", 1.0)
        w.add("<|im_end|>\n")
        return letter

    def tally(self, count: int, pads: list[int]) -> int:
        """'Flashes counted: 3': returns the number's mark."""
        self.w.add("Flashes counted: ", 1.0)
        counted = self.w.add(str(count), VARYING)
        self.w.guide(1, 5, counted, pads, before=True)
        return counted

    def looks(self, unit: BoxUnit, pads: list[int]) -> int:
        """'It is there in 2 of 4 looks': returns the number's mark."""
        self.w.add("It is there in ", 1.0)
        count = self.w.add(str(5 - unit.step), VARYING)
        self.w.guide(1, 5, count, pads, before=True)
        self.w.add(" of 4 looks", 1.0)
        return count

    def plain_options(self, after: str, options: tuple[str, ...]) -> None:
        self.w.add(after)
        for letter, text in zip("ABCD", options, strict=True):
            self.w.add("\n")
            self.letters.append(self.w.add(letter))
            self.w.add(". ")
            self.values.append(self.w.add(text))
            self.w.guide(0, 0, self.values[-1], [self.letters[-1]])
        self.w.add("<|im_end|>\n")

    def resample(
        self, features: Features, texts: tuple[str, str], sources: tuple[int, int], frames: int
    ) -> tuple[list[int], int]:
        """The call of resample_frames and what it gives back."""
        w = self.w
        w.add('</think>\n<tool_call>\n{"name": "resample_frames", "arguments": {"start": ', 1.0)
        marks = []
        for k, (text, source) in enumerate(zip(texts, sources, strict=True)):
            mark = w.add(text, VARYING)
            word = mark - len('"start": ' if k == 0 else '"end": ') + 1
            w.guide(0, 3, mark, [word], before=True)
            w.guide(1, 3, mark, [source], before=True)
            if "." in text:
                tail = text.index(".") + 1
                w.guide(0, 3, mark + tail, [word], before=True)
                w.guide(1, 3, mark + tail, [source + tail], before=True)
            marks.append(mark)
            if k == 0:
                w.add(', "end": ', 1.0)
        w.add(f', "num_frames": {frames}}}}}\n</tool_call><|im_end|>', 1.0)
        w.add("\n")
        self.called(marks[0], marks[1], *texts)
        return self.response(features, texts, frames)

    def response(self, features: Features, texts: tuple[str, str], frames: int) -> tuple[list[int], int]:
        """What resample_frames gives back: marks of its tokens and of the response's opening."""
        w = self.w
        w.add("<|im_start|>user\n")
        opening = w.add("<tool_response>\n")
        start, end = (float(text) for text in texts)
        pads: list[int] = []
        for k, feature in enumerate(features):
            time = start + (end - start) * 2 * k / (frames - 1)
            w.add(label(math.floor(time * 10 + 1e-6) / 10))
            pads += w.pads(feature[None])
        for mark in pads:
            w.guide(0, 0, mark, [opening])
        w.add("\n</tool_response><|im_end|>\n")
        return pads, opening
