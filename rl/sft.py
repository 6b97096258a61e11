"""`SFTTrainer`: the agent's own messages in recorded episodes, learnt on the same trees as everything else.

Episodes of one task share their overview, question and often their first looks: they are one tree, forwarded once.
With `packing`, episodes of several tasks are put into one forest up to a budget of distinct tokens. Only what the agent
said is a target; a record without token ids (an expert's, a remote model's) is rendered first (`closeup.rl.render`).

Invariants
1. The loss of an update is the mean negative log-likelihood over all targets of its global batch.
2. What update N trains on is a pure function of the episodes, the settings and N.
3. What does not fit `max_length` is counted: episodes that were cut, and episodes of which nothing was left.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from transformers.trainer_callback import TrainerCallback

from closeup.agent.budget import text_tokens
from closeup.agent.models.adapter import Adapter
from closeup.agent.policies.base import Policy
from closeup.agent.preset import Preset
from closeup.agent.task import Task
from closeup.agent.trajectory import StepRecord, Trajectory
from closeup.rl.config import SFTConfig
from closeup.rl.forward import LossOf
from closeup.rl.generation import shortest_path
from closeup.rl.losses import nll_loss, pair_weights
from closeup.rl.processes import gathered
from closeup.rl.render import with_ids
from closeup.rl.resumable import contents_of_episodes
from closeup.rl.rollout import task_order
from closeup.rl.rows import Row, RowError, rows_of
from closeup.rl.trainer import TrainTree, TreeTrainer
from closeup.rl.tree import TreeBatch, build_tree


class NothingToLearn(ValueError):
    """No episode is left to learn from; the message counts why."""


class SFTTrainer(TreeTrainer):
    """Supervised fine-tuning on trees."""

    config: SFTConfig
    _cut = _dropped = 0

    def __init__(
        self,
        adapter: Adapter,
        config: SFTConfig,
        preset: Preset,
        trajectories: Sequence[Trajectory],
        *,
        policy: Policy | None = None,
        evaluation_tasks: Sequence[Task] = (),
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        """Prepare; see `TreeTrainer`.

        Args:
            trajectories: episodes to learn from; those that failed, and with `only_correct` those that did not answer
                rightly, are left out.
            policy: for evaluation.

        Raises:
            NothingToLearn: nothing is left to learn from, or nothing of it fits `max_length`.
            RowError: token ids that the model does not have.
        """
        chosen = learnable(trajectories, only_correct=config.only_correct)
        check_ids(chosen, adapter)
        if config.max_length is not None:
            check_lengths(chosen, adapter, config.max_length)
        self.packs = packs_of(chosen, budget=config.max_tree_tokens, packing=config.packing)
        self.each = config.per_device_train_batch_size * config.gradient_accumulation_steps  # packs per update
        steps = config.max_steps
        if steps is None:
            assert config.num_train_epochs is not None  # the configuration has one of the two
            processes = int(os.environ.get("WORLD_SIZE", "1"))  # the launcher's; no process group is there yet
            steps = math.ceil(config.num_train_epochs * len(self.packs) / (self.each * processes))
        super().__init__(
            adapter,
            config,
            preset,
            max_steps=steps,
            policy=policy,
            evaluation_tasks=evaluation_tasks,
            callbacks=callbacks,
        )
        self.begun_with["episodes"] = contents_of_episodes(chosen)

    def next_batches(self, number: int) -> list[list[TrainTree]]:
        config = self.config
        begin = (number * self.accelerator.num_processes + self.accelerator.process_index) * self.each
        chosen = [self.packs[i] for i in task_order(len(self.packs), begin, self.each, seed=config.seed)]
        self._cut = self._dropped = 0
        trees = [self._tree(pack) for pack in chosen]
        if config.max_length is not None:
            self.tally.note(**{"episodes/cut": float(self._cut), "episodes/dropped": float(self._dropped)})
        total = sum(gathered([sum(len(tree.targets) for tree in trees if tree is not None)]))
        weight = float(pair_weights([total], "dapo")[0]) if total else 0.0
        made = [
            None if tree is None else TrainTree(tree, self._loss(tree, weight), videos_of(pack))
            for tree, pack in zip(trees, chosen, strict=True)
        ]
        known = [tree for tree in trees if tree is not None]
        if known:
            self.tally.note(**{"tree/saved": 1 - sum(map(len, known)) / sum(tree.row_tokens for tree in known)})
        size = config.per_device_train_batch_size
        return [
            [tree for tree in made[i * size : (i + 1) * size] if tree is not None]
            for i in range(config.gradient_accumulation_steps)
        ]

    def _tree(self, pack: Sequence[Trajectory]) -> TreeBatch | None:
        """The tree of a pack; None when nothing in it fits `max_length`. Raises `RowError` for what cannot be read."""
        rows: list[Row] = []
        for index, trajectory in enumerate(pack):
            known = with_ids(readable(trajectory, self.adapter), self.adapter)
            found = rows_of(known, self.adapter, rollout=index, max_tokens=self.config.max_length)
            learnt = sum(len(row.spans) for row in found)
            self._dropped += not learnt
            self._cut += 0 < learnt < sum(bool(s.ids) and s.finish not in ("error", "cancelled") for s in known.steps)
            rows += found
        return build_tree(rows, self.adapter) if rows else None

    def _loss(self, tree: TreeBatch, weight: float) -> LossOf:
        weights = torch.full((len(tree.targets),), weight, dtype=torch.float64, device=self.adapter.model.device)

        def loss_of(logprobs: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            loss, metrics = nll_loss(logprobs, weights[index])
            self.tally.measure(metrics)
            return loss

        return loss_of

    def epochs(self, number: int) -> float:
        """Passes over the packs after `number` updates."""
        return float(number * self.each * self.accelerator.num_processes / len(self.packs))


def learnable(trajectories: Sequence[Trajectory], *, only_correct: bool) -> list[Trajectory]:
    """Those that did not fail and have steps (and answered rightly). Raises `NothingToLearn` when none is left."""
    sound = [t for t in trajectories if not t.outcome.failed and t.steps]
    chosen = [t for t in sound if t.outcome.correct] if only_correct else sound
    if not chosen:
        raise NothingToLearn(
            f"none of the {len(trajectories)} episodes can be learnt from: {len(trajectories) - len(sound)} failed or"
            f" are empty, {len(sound) - len(chosen)} did not answer rightly (only_correct)"
        )
    return chosen


def check_ids(trajectories: Sequence[Trajectory], adapter: Adapter) -> None:
    """Raise `RowError` for recorded ids, of this very tokenizer by their record, that the model has no row for."""
    size = int(adapter.model.get_input_embeddings().num_embeddings)
    for trajectory in trajectories:
        for index, step in enumerate(readable(trajectory, adapter).steps):
            ids = (*(step.prompt_ids or ()), *(step.ids or ()))
            if ids and not 0 <= min(ids) <= max(ids) < size:
                odd = next(token for token in ids if not 0 <= token < size)
                raise RowError(
                    f"step {index} of trajectory {trajectory.id!r} holds the token id {odd}, and the model has ids from"
                    f" 0 to {size - 1}: the file is damaged or of another model; record the episode again"
                )


def check_lengths(trajectories: Sequence[Trajectory], adapter: Adapter, max_length: int) -> None:
    """Raise `NothingToLearn` unless some message of some episode fits."""
    needed = []
    for trajectory in trajectories:
        needed.append(shortest_path(with_ids(readable(trajectory, adapter), adapter)))
        if 0 < needed[-1] <= max_length:
            return
    raise NothingToLearn(
        f"no message of the {len(trajectories)} episodes fits in max_length {max_length}: the shortest takes"
        f" {min(filter(None, needed), default=0)} tokens with all that stands before it; raise max_length"
    )


def readable(trajectory: Trajectory, adapter: Adapter) -> Trajectory:
    """The trajectory, without its ids where they are of another tokenizer or another way to write times."""
    policy = trajectory.settings.get("policy", {})
    known = (policy.get("tokenizer"), policy.get("timestamps"))
    if known == (adapter.tokenizer_digest, adapter.timestamps):
        return trajectory
    bare = {"prompt_ids": None, "ids": None, "logprobs": None}
    return trajectory.model_copy(update={"steps": tuple(s.model_copy(update=bare) for s in trajectory.steps)})


def packs_of(trajectories: Sequence[Trajectory], *, budget: int, packing: bool) -> list[list[Trajectory]]:
    """Episodes that become one tree each, in the order of their tasks' first appearance.

    Episodes of one task stay together as long as `budget` distinct tokens (counted from above) suffice; with `packing`
    small packs of neighbouring tasks are joined within it. An episode larger than the budget is a pack of its own.
    """
    by_task: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        by_task.setdefault(trajectory.task.model_dump_json(), []).append(trajectory)
    packs: list[list[Trajectory]] = []
    room = 0  # what the last pack may still take; with packing also from another task
    for group in by_task.values():
        fresh = True
        for trajectory in group:
            cost = new_tokens(trajectory, alone=fresh)
            if packs and cost <= room and (packing or not fresh):
                packs[-1].append(trajectory)
                room -= cost
            else:
                packs.append([trajectory])
                room = budget - new_tokens(trajectory, alone=True)
            fresh = False
    return packs


def new_tokens(trajectory: Trajectory, *, alone: bool) -> int:
    """Most tokens an episode adds to a tree; the first prompt is there already unless it is `alone` of its task."""
    return sum(_tokens(trajectory, step) for i, step in enumerate(trajectory.steps) if alone or i) + (
        0 if alone else text_tokens(trajectory.steps[0].text)
    )


def _tokens(trajectory: Trajectory, step: StepRecord) -> int:
    if step.prompt_ids is not None and step.ids is not None:
        return len(step.prompt_ids) + len(step.ids)
    clips = sum(trajectory.clips[clip.key].tokens for message in step.messages for clip in message.clips)
    return clips + sum(text_tokens(message.text) for message in step.messages) + text_tokens(step.text)


def videos_of(trajectories: Sequence[Trajectory]) -> dict[str, str]:
    """Paths of the videos of some episodes by content identity."""
    return {name: record.path for t in trajectories for name, record in t.videos.items()}
