"""Questions about a generated scene, each with four options, the gold answer and the window that proves it.

Four kinds, none answerable from the overview (see `needle_world`):

- digit: "Which digit is in the red box?" The other boxes' digits are the first wrong options, so looking at the wrong
  box gives a wrong option.
- colour: "Which colour shows digit 7?" Four colours of the video; every one may need a look.
- when: "When does the blue box appear?" Four consecutive tenths of the spacing between two neighbouring overview
  frames, ascending; the onset is exactly one of them.
- count: "How often does the green light flash between 20 s and 22 s?" 1, 2, 3 or 4 times in two spacings.

Invariant: the answer's letter is uniform over A to D and independent of everything the overview shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from closeup.rl.data.needle_world import Box, FlashWindow, Scene

KINDS = ("digit", "colour", "when", "count")


@dataclass(frozen=True)
class Needle:
    """One question: four options, the gold option's exact text, and the evidence windows in seconds."""

    kind: str
    question: str
    options: tuple[str, ...]
    answer: str
    evidence: tuple[tuple[float, float], ...]


def boxes_needed(kind: str) -> tuple[int, int]:
    """Fewest and most boxes of a scene made for this kind of question."""
    return (4, 6) if kind == "colour" else (2, 6)


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Needle:
    """A random question of `kind` about `scene`.

    Raises:
        ValueError: the scene lacks what the kind asks about, or the kind is unknown.
    """
    if kind == "count":
        if not scene.flashes:
            raise ValueError("this scene has no flashes to count; plan it with flash_windows >= 1")
        return ask_count(scene.flashes[rng.integers(len(scene.flashes))], rng)
    if len(scene.boxes) < boxes_needed(kind)[0]:
        raise ValueError(f"a {kind!r} question needs {boxes_needed(kind)[0]} boxes, the scene has {len(scene.boxes)}")
    box = scene.boxes[rng.integers(len(scene.boxes))]
    if kind == "digit":
        return ask_digit(scene, box, rng)
    if kind == "colour":
        return ask_colour(scene, box, rng)
    if kind == "when":
        return ask_when(scene, box)
    raise ValueError(f"unknown kind {kind!r}; one of {', '.join(KINDS)}")


def ask_digit(scene: Scene, box: Box, rng: np.random.Generator) -> Needle:
    """Which digit is in the box of this colour?"""
    near = [str(other.digit) for other in scene.boxes if other is not box]
    present = {other.digit for other in scene.boxes}
    far = [str(digit) for digit in rng.permutation(10) if int(digit) not in present]
    wrong = ([str(v) for v in rng.permutation(near)] + far)[:3]
    options = _shuffled([str(box.digit), *wrong], rng)
    return Needle("digit", f"Which digit is in the {box.colour} box?", options, str(box.digit), ((box.start, box.end),))


def ask_colour(scene: Scene, box: Box, rng: np.random.Generator) -> Needle:
    """Which colour shows this digit?"""
    others = [str(v) for v in rng.permutation([other.colour for other in scene.boxes if other is not box])]
    options = _shuffled([box.colour, *others[:3]], rng)
    return Needle("colour", f"Which colour shows digit {box.digit}?", options, box.colour, ((box.start, box.end),))


def ask_when(scene: Scene, box: Box) -> Needle:
    """When does this box appear? The letter is the box's own `step`, which was drawn uniformly.

    The evidence begins one option earlier: that the box was not there yet belongs to the proof.
    """
    times = [box.before + k * scene.spacing / 10 for k in range(1, 5)]
    options = tuple(f"{time:.1f} s" for time in times)
    question = f"When does the {box.colour} box appear?"
    evidence = ((round(box.start - scene.spacing / 10, 1), box.end),)
    return Needle("when", question, options, options[box.step - 1], evidence)


def ask_count(window: FlashWindow, rng: np.random.Generator) -> Needle:
    """How often does the light flash in this window?"""
    question = f"How often does the green light flash between {window.start:g} s and {window.end:g} s?"
    options = _shuffled(["1", "2", "3", "4"], rng)
    return Needle("count", question, options, str(len(window.slots)), ((window.start, window.end),))


def _shuffled(values: list[str], rng: np.random.Generator) -> tuple[str, ...]:
    return tuple(values[i] for i in rng.permutation(len(values)))
