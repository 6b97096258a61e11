"""Expert trajectories, written as training samples: what an ideal agent sees, thinks, calls and answers, per kind.

Design note. A virtual timeline is put together from pooled units (`units`): a duration, boxes with distinct colours and
digits, flash windows, empty pairs. The expert then plays: digit and colour questions look boxes up in the overview and
zoom; "when" and "count" resample densely. With some probability its first window is wrong (the wrong times are not
learned); it says what it sees there and looks again. The text is exactly what the `tiny` preset shows and what the
`hermes` dialect reads (a test replays it through the environment).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from closeup.rl.data.needle_tasks import Needle, ask_colour, ask_digit
from closeup.rl.data.needle_world import COLOURS, SECONDS, Box, Scene, overview_spacing
from closeup.rl.tiny.samples import VARYING, Sample
from closeup.rl.tiny.script import Rng, Script
from closeup.rl.tiny.timeline import Timeline, number, timeline_of
from closeup.rl.tiny.units import BoxUnit, FlashUnit, SceneUnits, Zoom

DRILLS = ("letters_drill", "counts_drill", "onsets_drill")


@dataclass(frozen=True)
class Mix:
    """How samples are drawn: overview pairs (None = all), chances of a wrong first window and of a forced answer."""

    pairs: tuple[int, int] | None = None
    wrong: float = 0.15
    forced: float = 0.02
    late: float = 0.06
    refused: float = 0.04
    misread: float = 0.2


class Expert:
    """Draws trajectories from pooled units."""

    def __init__(self, units: list[SceneUnits], tokenizer: Tokenizer, seed: int) -> None:
        self._scenes = units
        self._boxes = [box for scene in units for box in scene.boxes]
        self._flashes = [flash for scene in units for flash in scene.flashes]
        self._tokenizer = tokenizer
        self._rng = np.random.default_rng(seed)

    def sample(self, kind: str, mix: Mix) -> Sample:
        """One trajectory of `kind` ("digit", "colour", "when", "count") or one series of lookups ("lookup")."""
        timeline = self.timeline(kind, mix)
        writer = _Episode(self._tokenizer, timeline, self._rng, mix)
        return writer.play(kind)

    def timeline(self, kind: str, mix: Mix) -> Timeline:
        """A random timeline that can carry a question of `kind`."""
        rng = self._rng
        if mix.pairs is None:
            seconds = int(rng.integers(SECONDS[0], SECONDS[1] + 1))
            spacing, first = overview_spacing(seconds), 0
            pairs = math.ceil(math.ceil(seconds * 2 / spacing) / 2)
            room = seconds // spacing - 2
        else:
            spacing, pairs = int(rng.integers(1, 5)), int(rng.integers(mix.pairs[0], mix.pairs[1] + 1))
            first, room = spacing * int(rng.integers(0, max(1, SECONDS[1] // spacing - pairs))), pairs - 2
        if kind in DRILLS:
            blank = self._scenes[0].empty[:2]
            boxes = tuple((1, self._boxes[n]) for n in rng.integers(len(self._boxes), size=6))
            flashes = tuple((1, self._flashes[n]) for n in rng.integers(len(self._flashes), size=5))
            return Timeline(spacing, first + spacing * int(rng.integers(8)), blank, boxes, flashes, ())
        windows = 1 if kind == "count" or (room > 12 and rng.random() < 0.3) else 0
        most = min(6, (room - 3 * windows) // 2)
        count = int(rng.integers(min(most, 4 if kind in ("colour", "lookup") else 2), most + 1))
        sizes = np.array([2] * count + [3] * windows)[rng.permutation(count + windows)]
        gaps = rng.multinomial(room - int(sizes.sum()), np.ones(len(sizes) + 1) / (len(sizes) + 1))
        starts = 1 + np.cumsum(gaps[:-1]) + np.concatenate([[0], np.cumsum(sizes[:-1])])
        background = self._scenes[rng.integers(len(self._scenes))]
        overview = background.empty[rng.integers(len(background.empty), size=pairs)].copy()
        found: list[tuple[int, BoxUnit]] = []
        lights: list[tuple[int, FlashUnit]] = []
        for start, size in zip(starts, sizes, strict=True):
            if size == 3:
                lights.append((int(start), self._flashes[rng.integers(len(self._flashes))]))
                continue
            while True:
                unit = self._boxes[rng.integers(len(self._boxes))]
                if all(unit.colour != other.colour and unit.digit != other.digit for _, other in found):
                    break
            found.append((int(start), unit))
            overview[start : start + 2] = unit.skim
        busy = {pair + k for pair, _ in found for k in (0, 1)}
        free = [k for k in range(pairs - 1) if k not in busy]
        empty = tuple(
            (int(rng.choice(free)), background.empty_zooms[rng.integers(len(background.empty_zooms))])
            for _ in range(2 if background.empty_zooms else 0)
        )
        return Timeline(spacing, first, overview, tuple(found), tuple(lights), empty)


def expert_sample(scene: Scene, needle: Needle, tokenizer: Tokenizer) -> Sample:
    """The ideal episode about a real scene, without features: token ids and positions as the agent would see them."""
    subject = 0
    if needle.kind == "count":
        subject = next(i for i, w in enumerate(scene.flashes) if (w.start, w.end) == needle.evidence[0])
    else:
        subject = next(i for i, b in enumerate(scene.boxes) if b.end == needle.evidence[0][1])
    rng, never = np.random.default_rng(0), Mix(wrong=0.0, forced=0.0, late=0.0, refused=0.0, misread=0.0)
    return _Episode(tokenizer, timeline_of(scene), rng, never, (subject, needle)).play(needle.kind)


def expert_messages(scene: Scene, needle: Needle, tokenizer: Tokenizer) -> list[str]:
    """What the ideal agent says about a real scene, message by message."""
    text = tokenizer.decode(expert_sample(scene, needle, tokenizer).ids.tolist(), skip_special_tokens=False)
    return re.findall(r"<\|im_start\|>assistant\n(.*?)<\|im_end\|>", text, flags=re.DOTALL)


class _Episode(Script):
    """Decides what happens in one trajectory."""

    def __init__(
        self, tokenizer: Tokenizer, timeline: Timeline, rng: Rng, mix: Mix, given: tuple[int, Needle] | None = None
    ) -> None:
        super().__init__(tokenizer, timeline, rng)
        self.mix, self.given = mix, given

    def play(self, kind: str) -> Sample:
        if kind in DRILLS:
            self.w.add("<|im_start|>user\n")
        else:
            self.overview()
        getattr(self, kind)()
        return self.w.finish()

    def _scene(self) -> Scene:
        boxes = tuple(Box(u.colour, u.digit, 0, u.step, 0, 0, 0, 0) for _, u in self.t.boxes)
        return Scene(0, self.t.spacing, boxes, ())

    def _draw(self, ask: Callable[[Scene, Box, Rng], Needle]) -> tuple[int, Needle]:
        index, scene = int(self.rng.integers(len(self.t.boxes))), self._scene()
        return index, ask(scene, scene.boxes[index], self.rng)

    def _detour(self, avoid: int) -> tuple[int, Zoom, BoxUnit | None] | None:
        """Perhaps a wrong first window: another box, or nothing."""
        if self.rng.random() >= self.mix.wrong:
            return None
        others = [(p + k, u.zooms[k], u) for n, (p, u) in enumerate(self.t.boxes) for k in (0, 1) if n != avoid]
        nothing: list[tuple[int, Zoom, BoxUnit | None]] = [(p, z, None) for p, z in self.t.empty]
        choices = [c for c in others if c[1].box]
        if nothing and (not choices or self.rng.random() < 0.5):
            return nothing[self.rng.integers(len(nothing))]
        return choices[self.rng.integers(len(choices))] if choices else None

    def _look(self, index: int, source: int, key: int | None, detour: tuple[int, Zoom, BoxUnit | None] | None) -> bool:
        """Look at box `index`, after a detour if one is given. Returns whether the sample goes on."""
        pair, unit = self.t.boxes[index]
        w = self.w
        if detour is not None:
            at, zoom, seen = detour
            time = self.point(unit, at, source, key=key, learn=False)
            target = self.target
            self.zoom(at, time)
            box, opening = self.show(zoom, at)
            if self.rng.random() < self.mix.forced:
                return False
            self.turn()
            self.see(box, opening, seen, target)
            w.add(". ", VARYING)
            source, key = target, None
        if self.rng.random() < self.mix.refused:
            source, key = self._refused(unit, source, key), None
        late = len(unit.zooms[1].box) > 0 and self.rng.random() < self.mix.late
        at = pair + late
        time = self.point(unit, at, source, key=key, learn=not late)
        target = self.target
        self.zoom(at, time)
        self.box, opening = self.show(unit.zooms[late], at)
        if self.rng.random() < self.mix.forced:
            return False
        self.turn()
        self.seen = self.see(self.box, opening, unit, target)
        return True

    def _refused(self, unit: BoxUnit, source: int, key: int | None) -> int:
        """A call that is turned down (not learned), and the next thought's beginning; returns the target's mark."""
        w, at = self.w, int(self.rng.integers(len(self.labels) - 1))
        time = self.point(unit, at, source, key=key, learn=False)
        target = self.target
        start, end = (number(self.t.time(at + k)) for k in (0, 1))
        w.add('</think>\n<tool_call>\n{"name": "zoom_clip", "arguments": {"start": ', 1.0)
        w.guide(1, 3, w.add(start, VARYING), [time], before=True)
        w.add(', "end": ', 1.0)
        error = (
            f"you already looked closely at {start} to {end} s (overlap 1.00, allowed 0.9). "
            "Choose another window or answer."
        )
        if self.rng.random() < 0.5:
            end = start
            error = f"a window must end after it starts, got {start} to {start} s. Give 0 <= start < end <= 120."
        w.add(end)
        w.add("}}\n</tool_call><|im_end|>", 1.0)
        w.add(f"\n<|im_start|>user\n<tool_response>\nError: {error}\n</tool_response><|im_end|>\n")
        self.turn()
        w.add("I see no box. ", 1.0)
        return target

    def digit(self) -> None:
        index, needle = self.given or self._draw(ask_digit)
        _, unit = self.t.boxes[index]
        self.ask("Which digit is in the ", unit.colour, " box?", needle.options)
        choice = needle.options.index(needle.answer)
        self.turn()
        if not self._look(index, self.asked, None, self._detour(index)):
            return self.give_up(choice)
        digit = self.read(unit, self.box, self.seen)
        return self.conclude(choice, key=digit, source=choice)

    def colour(self) -> None:
        scene = self._scene()
        if len(scene.boxes) < 4:
            return self.digit()
        index, needle = self.given or self._draw(ask_colour)
        self.ask("Which colour shows digit ", str(scene.boxes[index].digit), "?", needle.options)
        choice = needle.options.index(needle.answer)
        detour_at = int(self.rng.integers(choice + 1))
        source, key = self.values[0], None
        self.turn()
        for step in range(choice + 1):
            now = next(i for i, box in enumerate(scene.boxes) if box.colour == needle.options[step])
            if not self._look(now, source, key, self._detour(now) if step == detour_at else None):
                return self.give_up(choice)
            unit = self.t.boxes[now][1]
            misread = step == choice == 3 and self.rng.random() < self.mix.misread
            digit = self.read(unit, self.box, self.seen, misread=misread)
            if not misread:
                self.w.guide(1, 3, digit, [self.asked])
            if step == choice:
                return self.conclude(choice, key=self.seen, source=choice)
            self.w.add(". ", VARYING)
            source, key = self.values[step + 1], self.seen
        return None

    def lookup(self) -> None:
        """A series of lookups without looking: not an episode, but the same words, many per overview."""
        self.w.add("<|im_end|>\n")
        for index in self.rng.permutation(len(self.t.boxes)):
            pair, unit = self.t.boxes[index]
            self.w.add("<|im_start|>user\n")
            asked = self.w.add(unit.colour)
            self.w.add("<|im_end|>\n")
            self.turn()
            self.zoom(pair, self.point(unit, pair, asked, key=asked))

    def when(self) -> None:
        index = self.given[0] if self.given else int(self.rng.integers(len(self.t.boxes)))
        pair, unit = self.t.boxes[index]
        before = self.t.time(pair) - (0 if unit.late else self.t.spacing / 2)
        options = tuple(f"{before + k * self.t.spacing / 10:.1f} s" for k in (1, 2, 3, 4))
        self.ask("When does the ", unit.colour, " box appear?", options)
        self.turn()
        self.w.add("The options need a closer look.", 1.0)
        texts = options[0][:-2], options[3][:-2]
        box, _ = self.resample(unit.onset, texts, (self.values[0], self.values[3]), 7)
        self.turn()
        self.conclude(unit.step - 1, key=self.looks(unit, box), source=None)

    def count(self) -> None:
        start, unit = self.t.flashes[self.given[0] if self.given else int(self.rng.integers(len(self.t.flashes)))]
        a, b = (number(self.t.time(start + k)) for k in (0, 2))
        w = self.w
        w.add("\nHow often does the green light flash between ")
        first = w.add(a)
        w.guide(0, 0, first, [first - len("between ")])
        w.add(" s and ")
        second = w.add(b)
        w.guide(0, 0, second, [second - len("and ")])
        options = self.given[1].options if self.given else tuple(str(v) for v in self.rng.permutation([1, 2, 3, 4]))
        self.plain_options(" s?", options)
        self.turn()
        w.add("That stretch needs a denser look.", 1.0)
        box, _ = self.resample(unit.dense, (a, b), (first, second), 21)
        self.turn()
        counted = self.tally(unit.count, box)
        choice = options.index(str(unit.count))
        self.conclude(choice, key=counted, source=choice)

    def letters_drill(self) -> None:
        """Only the step from a digit to its letter, many times; the digits are given."""
        options = [str(v) for v in self.rng.permutation(10)[:4]]
        self.w.add("Which digit is in the ")
        self.w.add(colour := str(self.rng.choice(list(COLOURS))))
        self.plain_options(" box?", tuple(options))
        for choice in self.rng.permutation([0, 1, 2, 3, 0, 1, 2, 3]):
            self.turn()
            self.w.add(f"I see {'an' if colour[0] in 'aeiou' else 'a'} {colour} box: ")
            digit = self.w.add(options[choice])
            self.letter(int(choice), digit, int(choice))

    def counts_drill(self) -> None:
        """Only the counting of flashes, several times."""
        options = tuple(str(v) for v in self.rng.permutation([1, 2, 3, 4]))
        start, unit = self.t.flashes[0]
        a, b = (number(self.t.time(start + k)) for k in (0, 2))
        self.w.add(f"How often does the green light flash between {a} s and {b}")
        self.plain_options(" s?", options)
        for _, unit in self.t.flashes:
            pads, _ = self.response(unit.dense, (a, b), 21)
            self.turn()
            counted = self.tally(unit.count, pads)
            choice = options.index(str(unit.count))
            self.letter(choice, counted, choice)

    def onsets_drill(self) -> None:
        """Only the reading of onsets, several times."""
        first = self.t.time(1)
        options = tuple(f"{first + k * self.t.spacing / 10:.1f} s" for k in (1, 2, 3, 4))
        self.w.add("When does the " + self.t.boxes[0][1].colour)
        self.plain_options(" box appear?", options)
        for _, unit in self.t.boxes:
            pads, _ = self.response(unit.onset, (options[0][:-2], options[3][:-2]), 7)
            self.turn()
            self.letter(unit.step - 1, self.looks(unit, pads), None)
