"""The recipe's numbers, in one place: pool sizes, steps, learning rates, mixtures.

Chosen by measurement on two cores of a server CPU with bfloat16 units (see docs/tiny.md); about half an hour there.
"""

from __future__ import annotations

from dataclasses import dataclass

from closeup.rl.tiny.experts import Mix
from closeup.rl.tiny.language import Stage

_DRILLS = {"letters_drill": 3.0, "counts_drill": 2.0, "onsets_drill": 1.0}
_EPISODES = {"digit": 2.0, "colour": 3.0, "when": 1.5, "count": 1.5}
SKILLS = Stage(
    name="skills",
    steps=420,
    lr=(2e-3, 1.5e-3),
    kinds={"lookup": 3.0, **_EPISODES, **_DRILLS},
    mixes=(Mix(pairs=(16, 20)),),
    tokens=6000,
)
EPISODES = Stage(
    name="episodes",
    steps=720,
    lr=(1.5e-3, 2e-5),
    kinds={"lookup": 1.0, **_EPISODES, **_DRILLS},
    mixes=(Mix(), Mix(wrong=0.1), Mix(pairs=(16, 22))),
    tokens=8000,
)


@dataclass(frozen=True)
class Recipe:
    """Pool sizes in videos, steps, stages, seeds of evaluation tasks, and the accuracy a bundled model must reach."""

    scenes: int = 600
    drills: int = 400
    skims: int = 2400
    held_out: int = 40
    vision_steps: int = 3000
    skills: Stage = SKILLS
    episodes: Stage = EPISODES
    snapshot_every: int = 60
    development_seed: int = 500_001
    development_tasks: int = 96
    test_seed: int = 600_001
    test_tasks: int = 256
    accept: float = 0.9


RECIPE = Recipe()
