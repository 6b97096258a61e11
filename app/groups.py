"""A rollout group as something to look at: its tree of branches, with the credit of every step.

Rollouts are merged into one branch for as long as their messages are the same; where they differ, the branch parts.

Invariants
1. Every step of every rollout is in exactly one branch, and the rollouts of a branch's children are among its own.
2. In `Group.order` the rollouts of every branch stand together, so that the tree is also a table with high cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

        for branch in _walk(self.branches):
            found[min(branch.rollouts, key=self.order.index)].append(Cell(branch, len(branch.rollouts)))
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
    branches = _branches(scenes, keys)
    order = _leaves(branches)
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


def _branches(scenes: Sequence[Scene], keys: Sequence[Sequence[object]]) -> tuple[Branch, ...]:
    """The tree, from its root down and then put together from its leaves up: an episode may have thousands of steps."""
    found: list[tuple[tuple[int, ...], int, list[int]]] = [(tuple(range(len(scenes))), -1, [])]
    for rollouts, depth, children in found:  # grows while it is walked: parents stand before their children
        parted: dict[object, list[int]] = {}
        for i in rollouts:
            if len(keys[i]) > depth + 1:
                parted.setdefault(keys[i][depth + 1], []).append(i)
        for same in parted.values():
            children.append(len(found))
            found.append((tuple(same), depth + 1, []))
    made: dict[int, Branch] = {}
    for number in range(len(found) - 1, 0, -1):
        rollouts, depth, children = found[number]
        step = scenes[rollouts[0]].steps[depth]
        made[number] = Branch(step, rollouts, tuple(made[child] for child in children))
    return tuple(made[child] for child in found[0][2])


def _walk(branches: Sequence[Branch]) -> Iterator[Branch]:
    """Every branch, before its children, in order."""
    todo = list(reversed(branches))
    while todo:
        branch = todo.pop()
        yield branch
        todo += reversed(branch.children)


def _leaves(branches: Sequence[Branch]) -> list[int]:
    order: list[int] = []
    for branch in _walk(branches):
        inner = {i for child in branch.children for i in child.rollouts}
        order += [i for i in branch.rollouts if i not in inner]  # they end here
    return order
