"""A rollout group as something to look at: its tree of branches, with the credit of every step.

Rollouts are merged into one branch for as long as their messages are the same; where they differ, the branch parts.

Invariants
1. Every step of every rollout is in exactly one branch, and the rollouts of a branch's children are among its own.
2. In `Group.order` the rollouts of every branch stand together, so that the tree is also a table with high cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from closeup.app.credit import Credit, Crediting, credit_of
from closeup.app.scene import Scene, StepView, scene_of

if TYPE_CHECKING:
    from closeup.agent.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Branch:
    """A step that the rollouts `rollouts` (indices, ascending) took with the same message; the children part."""

    step: StepView
    rollouts: tuple[int, ...]
    children: tuple[Branch, ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """A branch as a cell of a table: `rows` rollouts high; None for the rows below its first."""

    branch: Branch
    rows: int


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one task.

    Attributes:
        task: its id. scenes: in the record's order. branches: the tree's first steps.
        order: indices of the rollouts, those that share branches together. width: most steps of any rollout.
        credit: by rollout and step; empty without advantages.
        estimator, weights: how the advantages were made. note: why there are none, or what was left out.
    """

    task: str
    scenes: tuple[Scene, ...]
    branches: tuple[Branch, ...]
    order: tuple[int, ...]
    width: int
    credit: tuple[tuple[Credit, ...], ...] = ()
    estimator: str = ""
    weights: tuple[tuple[str, float], ...] = ()
    note: str = ""

    @property
    def largest(self) -> float:
        """The largest advantage by size, for colours; at least a little above 0."""
        return max((abs(c.advantage) for row in self.credit for c in row if c.advantage is not None), default=0) or 1e-9

    @property
    def rows(self) -> tuple[tuple[int, tuple[Cell, ...], int], ...]:
        """The tree as a table: per rollout in `order` its index, the cells that begin in its row, its empty columns."""
        found: dict[int, list[Cell]] = {rollout: [] for rollout in self.order}

        def place(branch: Branch) -> None:
            found[min(branch.rollouts, key=self.order.index)].append(Cell(branch, len(branch.rollouts)))
            for child in branch.children:
                place(child)

        for branch in self.branches:
            place(branch)
        return tuple((i, tuple(found[i]), self.width - len(self.scenes[i].steps)) for i in self.order)


def split(trajectories: Sequence[Trajectory]) -> list[list[Trajectory]]:
    """The groups of a file: rollouts of one task from one start, each id once, in the order they first appear."""
    groups: list[list[Trajectory]] = []
    places: dict[str, int] = {}
    for trajectory in trajectories:
        key = trajectory.task.model_dump_json() + trajectory.start.model_dump_json()
        place = places.get(key)
        if place is None or any(other.id == trajectory.id for other in groups[place]):
            place = places[key] = len(groups)
            groups.append([])
        groups[place].append(trajectory)
    return groups


def group_of(trajectories: Sequence[Trajectory], crediting: Crediting) -> Group:
    """The view of one group (as `split` gives it)."""
    scenes = tuple(scene_of(trajectory) for trajectory in trajectories)
    keys = [[(s.text, s.clips) for s in trajectory.steps] for trajectory in trajectories]
    branches = _branches(scenes, keys, tuple(range(len(scenes))), 0)
    order: list[int] = []
    _leaves(branches, order)
    order += [i for i in range(len(scenes)) if i not in order]
    credit, weights, note = credit_of(trajectories, crediting)
    return Group(
        task=trajectories[0].task.id,
        scenes=scenes,
        branches=branches,
        order=tuple(order),
        width=max((len(scene.steps) for scene in scenes), default=0),
        credit=credit,
        estimator=crediting.estimator if credit else "",
        weights=tuple(weights.items()) if credit else (),
        note=note,
    )


def _branches(
    scenes: Sequence[Scene], keys: Sequence[Sequence[object]], rollouts: tuple[int, ...], depth: int
) -> tuple[Branch, ...]:
    parted: dict[object, list[int]] = {}
    for i in rollouts:
        if len(keys[i]) > depth:
            parted.setdefault(keys[i][depth], []).append(i)
    return tuple(
        Branch(scenes[same[0]].steps[depth], tuple(same), _branches(scenes, keys, tuple(same), depth + 1))
        for same in parted.values()
    )


def _leaves(branches: Sequence[Branch], order: list[int]) -> None:
    for branch in branches:
        inner = {i for child in branch.children for i in child.rollouts}
        order += [i for i in branch.rollouts if i not in inner]  # they end here
        _leaves(branch.children, order)
