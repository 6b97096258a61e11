"""`GRPOTrainer`: groups of multi-turn rollouts, step credit, and the policy-gradient losses of GRPO's family.

One generation: rollouts of `num_generations` episodes per task, rewards, advantages, one tree per group, and (where
more than one update follows) old log-probabilities through the very forward that trains. Then `updates_per_generation`
updates. Reference log-probabilities come from a frozen copy, or from the model with its adapters switched off.

Sources: GRPO (Shao et al. 2024, arXiv 2402.03300); dynamic sampling (DAPO, Yu et al. 2025, arXiv 2503.14476). The loss
is `closeup.rl.losses`, credit `closeup.rl.advantages`.

Invariants
1. Generation k has tasks and seeds that depend on (seed, k, attempt) alone; processes share its tasks out.
2. Denominators count the targets and rows of the whole global batch, of all processes; masked rows too, as TRL does.
3. A group that teaches nothing (all advantages 0) is counted, and forwarded only when a KL term wants it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_callback import TrainerCallback

from closeup.agent.events import Event
from closeup.agent.models.adapter import Adapter
from closeup.agent.policies.base import Policy
from closeup.agent.preset import Preset
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory, write_trajectories
from closeup.rl.advantages import estimate, has_signal, lone
from closeup.rl.config import GRPOConfig
from closeup.rl.credit import (
    GroupRewards,
    as_metrics,
    group_rewards,
    masked_second_zoom,
    stream_statistics,
    without_truncated,
)
from closeup.rl.forward import LossOf
from closeup.rl.generation import TrainGroup, load_groups, longest_path, save_groups, too_long, train_group
from closeup.rl.losses import group_weights, policy_loss
from closeup.rl.processes import gathered
from closeup.rl.resumable import contents_of_tasks
from closeup.rl.reward_config import build_rewards
from closeup.rl.rollout import Group, Rollouts, draw_seed, task_order
from closeup.rl.scorers import Unanswered, check_scorers
from closeup.rl.statistics import zoom_hit
from closeup.rl.trainable import reference_of
from closeup.rl.trainer import TrainTree, TreeTrainer

log = logging.getLogger(__name__)
FAILED_GENERATIONS = 3
"""So many generations in a row without one episode that could be run end the training."""


class RolloutError(RuntimeError):
    """Generation after generation has nothing to learn from; the message says why."""


class GRPOTrainer(TreeTrainer):
    """Group-relative policy optimisation on trees."""

    config: GRPOConfig

    def __init__(
        self,
        adapter: Adapter,
        config: GRPOConfig,
        preset: Preset,
        tasks: Sequence[Task],
        *,
        policy: Policy | None = None,
        evaluation_tasks: Sequence[Task] = (),
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        """Prepare; see `TreeTrainer`.

        Args:
            tasks: to train on; gold answers and evidence are for the rewards.

        Raises:
            ValueError: no tasks, or two with one id. RewardError: a reward that cannot be used, or a judge that does
                not answer.
        """
        if not tasks:
            raise ValueError("there is no task to train on")
        if len({task.id for task in tasks}) != len(tasks):
            raise ValueError("two tasks to train on have one id; ids name episodes and seeds")
        super().__init__(
            adapter,
            config,
            preset,
            max_steps=config.max_steps,
            policy=policy,
            evaluation_tasks=evaluation_tasks,
            temperature=config.temperature,
            callbacks=callbacks,
        )
        self.tasks = tuple(tasks)
        self.begun_with["tasks"] = contents_of_tasks(self.tasks)
        self.rewards = build_rewards(config.rewards, policy=self.policy, preset=preset)
        check_scorers(self.rewards.scorers)
        self._unanswered = Unanswered(self.rewards.scorers)
        self.reference = reference_of(adapter) if config.beta and config.lora is None else None
        self.rollouts = Rollouts(
            self.policy,
            preset,
            num_generations=config.num_generations,
            rewards=self.rewards.immediate,
            scorers=self.rewards.scorers,
            temperature=config.temperature,
            max_completion_length=config.max_completion_length,
            max_live=config.max_live,
            cohorts=config.rollout_cohorts,
            greedy=config.advantage == "remax",
        )
        self.generation: tuple[int, list[TrainGroup]] | None = None
        self._prefetched: Future[None] | None = None
        self._failed_generations = 0
        self._long_generations = 0

    # ---- updates -----------------------------------------------------------------------------------------------------

    def next_batches(self, number: int) -> list[list[TrainTree]]:
        config = self.config
        wanted, place = divmod(number, config.updates_per_generation)
        if self.generation is None or self.generation[0] != wanted:
            self.generation = (wanted, self._generate(wanted))
        groups = self.generation[1]
        each = config.per_device_train_batch_size
        begin = (place % config.slices) * config.gradient_accumulation_steps * each
        mine = groups[begin : begin + config.gradient_accumulation_steps * each]
        trees = self._with_losses(mine)
        return [
            [tree for tree in trees[i * each : (i + 1) * each] if tree is not None]
            for i in range(config.gradient_accumulation_steps)
        ]

    def _with_losses(self, groups: Sequence[TrainGroup]) -> list[TrainTree | None]:
        """Each group's tree with its loss, None for one that teaches nothing; weights over the whole global batch."""
        config, rank = self.config, self.accelerator.process_index
        mine = [(rank, index, group.row_counts) for index, group in enumerate(groups)]
        every = mine if self.accelerator.num_processes == 1 else gathered(mine)
        constant = (config.max_completion_length or self.preset.budget.max_new_tokens) * self.preset.budget.max_steps
        weights = group_weights([counts for _, _, counts in every], config.loss_type, max_completion_length=constant)
        made = list[TrainTree | None]()
        for (owner, index, counts), of_rows in zip(every, weights, strict=True):
            if owner != rank:
                continue
            group = groups[index]
            learns = any(counts.lengths) and (config.beta > 0 or has_signal(group.advantages))
            if group.tree is None or not learns:
                made.append(None)
            else:
                made.append(TrainTree(group.tree, self._loss(group, of_rows.numpy()), group.videos))
        return made

    def _loss(self, group: TrainGroup, weights: Any) -> LossOf:
        batch = group.batch(weights, self.adapter.model.device)
        settings = self.config.loss

        def loss_of(logprobs: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            loss, metrics = policy_loss(logprobs, batch.take(index), settings)
            self.tally.measure(metrics)
            return loss

        return loss_of

    # ---- rollouts ----------------------------------------------------------------------------------------------------

    def _generate(self, number: int) -> list[TrainGroup]:
        """Generation `number`: rollouts, credit, trees, and the log-probabilities that later updates compare with."""
        config = self.config
        places = config.per_device_train_batch_size * config.micro_steps
        seed = draw_seed(config.seed, number)
        earlier, mine = self._tasks_of(number, places)
        groups = self._sampled(number, mine, seed, earlier)
        self._check_failures(groups)
        self._check_lengths(number, groups)
        if config.dynamic_sampling:
            groups = self._refilled(number, groups)
        self._write(number, groups)
        self._note_rollouts(groups)
        if config.updates_per_generation > 1 or config.beta:
            self.model.eval()
            for group in groups:
                self._score(group)
        self._prefetched = self.rollouts.prefetch(self._tasks_of(number + 1, places)[1])
        return groups

    def _check_failures(self, groups: Sequence[TrainGroup]) -> None:
        """Raise when generation after generation has nothing but failed episodes: a fault, not bad luck."""
        every = [t for group in groups for t in group.trajectories]
        if not all(t.outcome.failed for t in every):
            self._failed_generations = 0
            return
        self._failed_generations += 1
        first = f"{every[0].id}: {every[0].outcome.reason}"
        log.warning("all %d episodes of a generation failed; the first, %s", len(every), first)
        if self._failed_generations >= FAILED_GENERATIONS:
            raise RolloutError(
                f"all episodes of {FAILED_GENERATIONS} generations in a row failed, so there is nothing to learn from;"
                f" the last began with {first}"
            )

    def _check_lengths(self, number: int, groups: Sequence[TrainGroup]) -> None:
        """Raise when nothing fits `max_length`, generation after generation, or from the first one to the last."""
        config = self.config
        if config.max_length is None:
            return
        needed = gathered([too_long(groups, config.max_length, whole=config.overlength == "mask")])
        if any(length is None for length in needed):
            self._long_generations = 0
            return
        self._long_generations += 1
        last = (number + 1) * config.updates_per_generation >= config.max_steps
        if self._long_generations >= FAILED_GENERATIONS or (last and self._long_generations == number + 1):
            what = "no episode" if config.overlength == "mask" else "no message of any episode"
            raise RolloutError(
                f"{what} of {self._long_generations} generations in a row fits in max_length {config.max_length}, so"
                f" there is nothing to learn from; the shortest takes {min(needed)} tokens: raise max_length"
            )

    def _tasks_of(self, number: int, places: int) -> tuple[list[Task], list[Task]]:
        """A generation's tasks of the processes before this one, and its own."""
        count = places * self.accelerator.num_processes
        order = task_order(
            len(self.tasks), number * count, count, seed=self.config.seed, shuffle=self.config.shuffle_dataset
        )
        every = [self.tasks[index] for index in order]
        begin = self.accelerator.process_index * places
        return every[:begin], every[begin : begin + places]

    def _sampled(self, number: int, tasks: Sequence[Task], seed: int, earlier: Sequence[Task] = ()) -> list[TrainGroup]:
        """Rollouts of these tasks with their advantages."""
        if self._prefetched is not None:
            self._prefetched.result()
            self._prefetched = None
        with self.writing():
            found = self.rollouts.groups(tasks, seed=seed, earlier=earlier, on_event=self._told)
        return self._credited(found)

    def _told(self, event: Event) -> None:
        self.check_stop()

    def _credited(self, found: Sequence[Group]) -> list[TrainGroup]:
        config = self.config
        rewards = [self._rewards(group.trajectories) for group in found]
        greedy = (
            [self._rewards([g.greedy]) for g in found if g.greedy is not None] if config.advantage == "remax" else None
        )
        every, mine = rewards, slice(0, len(rewards))
        if config.advantage == "reinforce_plus_plus" and self.accelerator.num_processes > 1:
            shared = gathered([(self.accelerator.process_index, rewards)])
            before = sum(len(of) for rank, of in shared if rank < self.accelerator.process_index)
            every, mine = [r for _, of in shared for r in of], slice(before, before + len(rewards))
        advantages = estimate(config.advantage, every, self.rewards.weights, greedy=greedy, **config.estimator_options)[
            mine
        ]
        if config.advantage == "decoupled":
            self.tally.note(lone_steps=float(sum(lone(r, self.rewards.weights).sum() for r in rewards)))
        if config.mask_truncated_completions:
            rewards = [without_truncated(of, group.trajectories) for group, of in zip(found, rewards, strict=True)]
            advantages = [np.where(of.reached, a, 0.0) for of, a in zip(rewards, advantages, strict=True)]
        return [
            train_group(group.trajectories, of, advantage, self.adapter, max_length=config.max_length)
            for group, of, advantage in zip(found, rewards, advantages, strict=True)
        ]

    def _rewards(self, trajectories: Sequence[Trajectory]) -> GroupRewards:
        config = self.config

        def masked(trajectory: Trajectory) -> frozenset[int]:
            if config.overlength == "mask" and longest_path(trajectory) > (config.max_length or 0):
                return frozenset(range(len(trajectory.steps)))
            return masked_second_zoom(trajectory) if config.mask_second_zoom else frozenset()

        return group_rewards(trajectories, self.rewards.streams, masked=masked)

    def _refilled(self, number: int, groups: list[TrainGroup]) -> list[TrainGroup]:
        """With groups that teach nothing replaced by other tasks' as long as tries are left; the rest left out."""
        config, dropped = self.config, 0
        for attempt in range(1, config.dynamic_sampling_max_tries + 1):
            empty = [i for i, group in enumerate(groups) if not has_signal(group.advantages)]
            if not empty:
                break
            dropped += len(empty)
            seed = draw_seed(config.seed, number, attempt, self.accelerator.process_index)
            drawn = np.random.default_rng(seed).integers(len(self.tasks), size=len(empty))
            fresh = self._sampled(number, [self.tasks[i] for i in drawn], seed)
            for place, group in zip(empty, fresh, strict=True):
                groups[place] = group
        kept = [group for group in groups if has_signal(group.advantages)]
        self.tally.note(
            **{
                "dynamic_sampling/dropped": float(dropped + len(groups) - len(kept)),
                "dynamic_sampling/unfilled": float(len(groups) - len(kept)),
            }
        )
        return kept

    @torch.no_grad()
    def _score(self, group: TrainGroup) -> None:
        """Old and reference log-probabilities of a group."""
        if group.tree is None:
            return
        if self.config.updates_per_generation > 1:
            group.old = self.score(group.tree, group.videos).cpu()
        if self.config.beta:
            off = self.model.disable_adapter() if self.reference is None else nullcontext()
            with off:
                group.reference = self.score(group.tree, group.videos, reference=self.reference).cpu()

    # ---- records -----------------------------------------------------------------------------------------------------

    def _write(self, number: int, groups: Sequence[TrainGroup]) -> None:
        """Keep the generation's trajectories on disk, and forget the oldest."""
        if not self.config.keep_rollouts:
            return
        folder, rank = Path(self.args.output_dir) / "rollouts", self.accelerator.process_index
        suffix = f"-rank{rank}" if self.accelerator.num_processes > 1 else ""
        place = folder / f"generation-{number:06d}{suffix}.jsonl"
        partial = place.with_suffix(".part")
        write_trajectories(partial, [t for group in groups for t in group.trajectories])
        partial.replace(place)
        old = sorted(folder.glob(f"generation-*{suffix}.jsonl"))
        for path in old[: -self.config.keep_rollouts]:
            path.unlink()

    def _note_rollouts(self, groups: Sequence[TrainGroup]) -> None:
        """Take the generation's figures into the next log."""
        every = [t for group in groups for t in group.trajectories]
        sound = [t for t in every if not t.outcome.failed]
        hits = [hit for t in sound if (hit := zoom_hit(t)) is not None]
        judged = [t.outcome.correct for t in sound if t.outcome.correct is not None]
        trees = [group.tree for group in groups if group.tree is not None]
        numbers = {
            "rollouts/failed": sum(t.outcome.failed for t in every),
            "rollouts/truncated": _mean(t.outcome.truncated for t in sound),
            "rollouts/correct": _mean(judged),
            "rollouts/hit_rate": _mean(hits),
            "rollouts/steps": _mean(t.outcome.steps for t in sound),
            "rollouts/visual_tokens": _mean(t.outcome.visual_tokens for t in sound),
            "rollouts/cut": sum(group.cut for group in groups),
            "rollouts/without_signal": _mean(not has_signal(group.advantages) for group in groups),
            "tree/saved": 1 - sum(map(len, trees)) / max(1, sum(tree.row_tokens for tree in trees)),
        }
        self.tally.note(**{name: float(value) for name, value in numbers.items() if value == value})
        rewards = [self._rewards(group.trajectories) for group in groups]
        self.tally.note(**as_metrics(stream_statistics(rewards)), **self._unanswered.since())

    def epochs(self, number: int) -> float:
        """Passes over the tasks after `number` updates."""
        config = self.config
        each = config.per_device_train_batch_size * config.micro_steps * self.accelerator.num_processes
        return float(-(-number // config.updates_per_generation) * each / len(self.tasks))

    def save_more(self, folder: Path) -> None:
        """The rollouts that later updates will still train on."""
        if self.generation is not None and (self.state.global_step % self.config.updates_per_generation):
            save_groups(folder, self.accelerator.process_index, *self.generation)

    def load_more(self, folder: Path) -> None:
        """Read them again."""
        self.generation = load_groups(
            folder, self.accelerator.process_index, self.adapter, max_length=self.config.max_length
        )


def _mean(values: Iterable[Any]) -> float:
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers) if numbers else math.nan
