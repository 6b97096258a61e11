"""A generation of rollouts made ready for updates: trees, advantages and log-probabilities, and their place on disk.

Invariants
1. Everything here is a pure function of the trajectories, the settings and what is kept beside them in a checkpoint
   (old and reference log-probabilities, advantages); nothing is drawn.
2. A target learns only if its step counts (`GroupRewards.reached`): failed, cancelled and masked episodes do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from closeup.agent.models.adapter import Adapter
from closeup.agent.trajectory import Trajectory, read_trajectories, write_trajectories
from closeup.rl.credit import GroupRewards, ran
from closeup.rl.losses import RowCounts, TargetBatch
from closeup.rl.rows import Row, rows_of
from closeup.rl.tree import TreeBatch, build_tree


@dataclass(slots=True, eq=False)
class TrainGroup:
    """One group, ready to be trained on.

    Attributes:
        trajectories: its G rollouts.
        advantages: float64 (G, T). reached: bool (G, T), the steps that count.
        tree: None when no step counts. cut: episodes of which something did not fit `max_length`.
        old, reference: float (M,) on the CPU, per target of the tree; None where they are not needed.
    """

    trajectories: tuple[Trajectory, ...]
    advantages: NDArray[np.float64]
    reached: NDArray[np.bool_]
    tree: TreeBatch | None = None
    cut: int = 0
    old: torch.Tensor | None = None
    reference: torch.Tensor | None = None

    @property
    def videos(self) -> dict[str, str]:
        """Paths of the group's videos by content identity."""
        return {name: record.path for t in self.trajectories for name, record in t.videos.items()}

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Bool (M,): which targets learn."""
        assert self.tree is not None
        targets = self.tree.targets
        return np.asarray(self.reached[targets.rollout, targets.step])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many targets of each row learn, (rows,)."""
        if self.tree is None:
            return np.zeros(0, dtype=np.int64)
        return np.bincount(self.tree.targets.row[self.counted], minlength=self.tree.rows)

    @property
    def row_counts(self) -> RowCounts:
        """What the loss's denominators have to know."""
        sound = [(t, bool(reached.any())) for t, reached in zip(self.trajectories, self.reached, strict=True) if ran(t)]
        masked = sum(_leaves(trajectory) for trajectory, counts in sound if not counts)
        return RowCounts(tuple(self.lengths.tolist()), masked, len(sound))

    def batch(self, weights: NDArray[np.float64], device: torch.device) -> TargetBatch:
        """The tree's targets for the loss; `weights`: float64 (rows,), the weight of each row's pairs."""
        assert self.tree is not None
        targets = self.tree.targets
        pair = np.where(self.counted, weights[targets.row], 0.0)
        batch = TargetBatch(
            advantages=torch.from_numpy(self.advantages[targets.rollout, targets.step]),
            weights=torch.from_numpy(pair),
            rows=torch.from_numpy(targets.row),
            old=self.old,
            reference=self.reference,
            rollout=torch.from_numpy(targets.logprob),
        )
        return batch.to(device)


def train_group(
    trajectories: Sequence[Trajectory],
    rewards: GroupRewards,
    advantages: NDArray[np.float64],
    adapter: Adapter,
    *,
    max_length: int | None = None,
) -> TrainGroup:
    """A group with its tree; trajectories no step of which counts are not in it.

    Raises:
        RowError: a trajectory that counts cannot be trained on (its policy gave no ids).
    """
    rows: list[Row] = []
    cut = 0
    for index, trajectory in enumerate(trajectories):
        if rewards.reached[index].any():
            found = rows_of(trajectory, adapter, rollout=index, max_tokens=max_length)
            learnt = sum(len(row.spans) for row in found)
            cut += learnt < sum(bool(s.ids) and s.finish not in ("error", "cancelled") for s in trajectory.steps)
            rows += found
    tree = build_tree(rows, adapter) if rows else None
    return TrainGroup(tuple(trajectories), advantages, rewards.reached, tree, cut)


def _leaves(trajectory: Trajectory) -> int:
    """Rows that `rows_of` would make of an episode."""
    return len(set(range(len(trajectory.steps))) - {step.parent for step in trajectory.steps})


def longest_path(trajectory: Trajectory) -> int:
    """Tokens of the longest path of an episode; 0 without ids."""
    return max(_path_lengths(trajectory), default=0)


def shortest_path(trajectory: Trajectory) -> int:
    """Fewest tokens up to the end of a message that can be learnt: `max_length` has to be that large; 0 without one."""
    lengths = _path_lengths(trajectory)
    said = [bool(step.ids) and step.finish not in ("error", "cancelled") for step in trajectory.steps]
    return min((length for length, learnt in zip(lengths, said, strict=True) if learnt), default=0)


def _path_lengths(trajectory: Trajectory) -> list[int]:
    """Tokens from the root to the end of each step."""
    lengths = list[int]()
    for step in trajectory.steps:
        before = 0 if step.parent is None else lengths[step.parent]
        lengths.append(before + len(step.prompt_ids or ()) + len(step.ids or ()))
    return lengths


def too_long(groups: Sequence[TrainGroup], max_length: int, *, whole: bool) -> int | None:
    """The smallest `max_length` that would let something of these groups be learnt; None when this one does.

    `whole`: an episode counts only as a whole (`overlength: mask`). None also when every episode failed.
    """
    sound = [t for group in groups for t in group.trajectories if not t.outcome.failed]
    shortest = min(filter(None, map(longest_path if whole else shortest_path, sound)), default=0)
    return shortest if shortest > max_length else None


def save_groups(folder: Path, rank: int, number: int, groups: Sequence[TrainGroup]) -> None:
    """Write a generation into a checkpoint, for one process."""
    write_trajectories(folder / f"rollouts_{rank}.jsonl", [t for group in groups for t in group.trajectories])
    kept: dict[str, Any] = {
        "number": number,
        "sizes": [len(group.trajectories) for group in groups],
        "advantages": [torch.from_numpy(group.advantages) for group in groups],
        "reached": [torch.from_numpy(np.array(group.reached)) for group in groups],
        "old": [group.old for group in groups],
        "reference": [group.reference for group in groups],
    }
    torch.save(kept, folder / f"generation_{rank}.pt")


def load_groups(
    folder: Path, rank: int, adapter: Adapter, *, max_length: int | None = None
) -> tuple[int, list[TrainGroup]] | None:
    """What `save_groups` wrote: the generation's number and its groups; None when the checkpoint holds none."""
    path = folder / f"generation_{rank}.pt"
    if not path.is_file():
        return None
    kept = torch.load(path, weights_only=True)
    waiting = list(read_trajectories(folder / f"rollouts_{rank}.jsonl"))
    groups = []
    for index, size in enumerate(kept["sizes"]):
        mine, waiting = waiting[:size], waiting[size:]
        reached = kept["reached"][index].numpy()
        rewards = GroupRewards((), np.zeros((0, *reached.shape)), reached)
        group = train_group(mine, rewards, kept["advantages"][index].numpy(), adapter, max_length=max_length)
        group.old, group.reference = kept["old"][index], kept["reference"][index]
        groups.append(group)
    return int(kept["number"]), groups
