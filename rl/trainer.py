"""`TreeTrainer`: the one trainer core, on `transformers.Trainer`. A batch is a list of trees; each brings its loss.

What is the Trainer's: the loop, optimizer, schedule, clipping, trackers. What is ours: where batches come from
(`next_batches`), what a step is (`TreeForward.backward` per tree), evaluation by real episodes, and checkpoints.

Invariants
1. A loss arrives divided by the denominators of the whole global batch, and gradients are summed over processes, so
   that 1, 2 or 4 processes give one update. Processes may hold different numbers of trees, even none.
2. What update N trains on is a pure function of settings, N and what a checkpoint holds: a run that was killed and
   resumed is the run that was not (`tests/rl/test_resume.py`).
3. While the vision tower is frozen, features come from the `MediaStore`; a trainable one runs once per tree and pass
   (old and reference log-probabilities where they are needed, and each update).
4. The model is in eval mode while it writes, and dropout is 0 everywhere.
"""

from __future__ import annotations

import logging
import shutil
import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import TrainOutput, set_seed

from closeup.agent.models.adapter import Adapter, Media
from closeup.agent.models.featurecache import FeatureCache
from closeup.agent.models.media import MediaStore
from closeup.agent.policies.base import Policy
from closeup.agent.policies.transformers_policy import SMALL_MODEL, TransformersPolicy
from closeup.agent.preset import Preset
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory
from closeup.extras import require
from closeup.rl import checkpoints
from closeup.rl.config import TrainConfig
from closeup.rl.evaluate import EvalError, evaluate
from closeup.rl.forward import LossOf, TreeForward
from closeup.rl.processes import gathered, leave_in_order, sum_gradients
from closeup.rl.resumable import ResumableTrainer, shape_of_run
from closeup.rl.statistics import Summary, summarise
from closeup.rl.tally import MeasuredForward, Tally, figures_of
from closeup.rl.trainable import OpenVideos, one_thread, trainable_model, training_arguments
from closeup.rl.tree import TreeBatch

log = logging.getLogger(__name__)


class TrainingStopped(Exception):
    """Training ended early because it was asked to; `checkpoint` is where to go on from."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(f"stopped; {checkpoint} holds everything to go on from")
        self.checkpoint = checkpoint


class _StopNow(Exception):
    """Raised where stopping is safe: weights, optimizer and step number agree."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainTree:
    """A tree with its loss.

    Attributes:
        loss_of: see `TreeForward.backward`; weights are those of the global batch.
        videos: paths by content identity, for clips whose features have to be made.
    """

    tree: TreeBatch
    loss_of: LossOf
    videos: Mapping[str, str]


class _Places(Dataset[int]):
    """As many places as a run has micro-batch entries: the Trainer counts them, `next_batches` fills them."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index


class TreeTrainer(ResumableTrainer):
    """Shared by GRPO and SFT; a subclass says what is trained on."""

    def __init__(
        self,
        adapter: Adapter,
        config: TrainConfig,
        preset: Preset,
        *,
        max_steps: int,
        policy: Policy | None = None,
        evaluation_tasks: Sequence[Task] = (),
        temperature: float = 1.0,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        """Prepare a model for training.

        Args:
            adapter: of the model to train, loaded with the preset's `timestamps`. It is changed in place.
            max_steps: updates in all.
            policy: writes the rollouts; default: a `TransformersPolicy` around the very model that is trained.
            evaluation_tasks: for `evaluate`; needed when the configuration has an evaluation.
            temperature: of the distribution whose log-probabilities are trained.
            callbacks: beside the Trainer's own.

        Raises:
            MissingExtra: accelerate, or peft for LoRA, is not installed.
            CheckpointError: the model has dropout. ValueError: an evaluation without tasks.
        """
        require("train", "accelerate")
        if config.evaluation is not None and not evaluation_tasks:
            raise ValueError("the configuration has an evaluation, but no evaluation_tasks were given")
        self.adapter, self.config, self.preset = adapter, config, preset
        self.evaluation_tasks = tuple(evaluation_tasks)
        set_seed(config.seed)
        checkpoints.check_no_dropout(adapter.model)
        self.begun_with = shape_of_run(adapter, preset, self.evaluation_tasks)
        model = trainable_model(adapter, config)
        arguments = training_arguments(config, max_steps)
        places = max_steps * config.gradient_accumulation_steps * config.per_device_train_batch_size
        super().__init__(
            model=model,
            args=arguments,
            data_collator=list,
            train_dataset=_Places(places * arguments.world_size),
            eval_dataset=list(evaluation_tasks) or None,
            callbacks=list(callbacks),
        )
        leave_in_order()
        self.model_accepts_loss_kwargs = False
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(_Begin(self))
        small = sum(p.numel() for p in adapter.model.parameters()) < SMALL_MODEL
        self._one_thread = adapter.model.device.type == "cpu" and small
        cache = None if config.feature_cache_dir is None else Path(config.feature_cache_dir)
        self.policy: Policy = policy or TransformersPolicy(
            adapter, feature_cache_bytes=config.feature_cache_bytes, feature_cache_dir=cache
        )
        if isinstance(self.policy, TransformersPolicy) and self.policy.adapter is adapter:
            self.store = self.policy.media
        else:
            disk = None if cache is None else FeatureCache(cache)
            self.store = MediaStore(adapter, max_bytes=config.feature_cache_bytes, disk=disk)
        self.trains_vision = not self.store.frozen
        self.forward = MeasuredForward(
            adapter, core=config.attention_core, temperature=temperature, head_chunk=config.head_chunk
        )
        self.tally = Tally(self.forward)
        self.before: Summary | None = None
        self.after: Summary | None = None
        self._stop = threading.Event()

    # ---- what a subclass says --------------------------------------------------------------------------------------

    @abstractmethod
    def next_batches(self, number: int) -> list[list[TrainTree]]:
        """Update `number`'s micro-batches on this process, one list of trees each. Called on all processes."""

    def epochs(self, number: int) -> float:
        """Passes over the data after `number` updates, for logs."""
        return float(number / max(1, self.args.max_steps))

    # ---- training --------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Train, evaluate before and after as configured, and write `best` and `final`.

        Args:
            resume_from_checkpoint: True goes on from the newest complete checkpoint of `output_dir`, or begins when
                there is none yet; a path goes on from there; None begins, and refuses a folder that holds another run.

        Raises:
            CheckpointError: nothing to resume at a path, other settings, tasks, preset or starting model than the
                checkpoint's, files that cannot be read, weights that do not fit, or a folder in use.
            TrainingStopped: `stop` was called.
        """
        folder = Path(self.args.output_dir)
        checkpoint = self.checkpoint_for(folder, resume_from_checkpoint)
        if self.is_world_process_zero():
            folder.mkdir(parents=True, exist_ok=True)
            checkpoints.clear_partial(folder)
        with one_thread(self._one_thread):
            if checkpoint is not None and self.is_finished(checkpoint):
                checkpoints.load_weights(self.model, checkpoint)
                output = TrainOutput(self.state.global_step, 0.0, {})
            else:
                try:
                    output = super().train(
                        resume_from_checkpoint=None if checkpoint is None else str(checkpoint), **kwargs
                    )
                except _StopNow:
                    raise TrainingStopped(self.save_now()) from None
            try:
                self._finish()
            except _StopNow:
                raise TrainingStopped(self.save_now()) from None
        return output

    def stop(self) -> None:
        """End training at the next place where nothing is lost (from a signal handler or another thread)."""
        self._stop.set()

    def check_stop(self) -> None:
        """Raises when `stop` was called and this is the only process."""
        if self._stop.is_set() and self.accelerator.num_processes == 1:
            raise _StopNow

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], None]:
        """The update's micro-batches; the Trainer's iterator only counts."""
        self.begin_update()
        return self.next_batches(self.state.global_step), None

    def training_step(self, model: Any, inputs: Sequence[TrainTree], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of a micro-batch; returns its share of the global loss."""
        model.train()
        total = 0.0
        for item in inputs:
            self.check_stop()
            with self.accelerator.autocast():
                total += self._backward(item)
        if self.accelerator.sync_gradients:
            sum_gradients([p for p in self.model.parameters() if p.requires_grad])
        return torch.tensor(total * self.accelerator.num_processes, device=self.args.device)  # the log takes the mean

    def _backward(self, item: TrainTree) -> float:
        with self.frames_of(item.videos) as frames:
            if not self.trains_vision:
                features = self._frozen_features(item.tree.media, frames)
                return float(self.forward.backward(item.tree, features, item.loss_of, two_phase=self.config.two_phase))
            made = self.store.features(item.tree.media, frames, trainable=True)
        leaves = [features.detach().requires_grad_() for features in made]
        loss = self.forward.backward(item.tree, leaves, item.loss_of, two_phase=self.config.two_phase)
        grown = [(out, leaf.grad) for out, leaf in zip(made, leaves, strict=True) if leaf.grad is not None]
        if grown:
            torch.autograd.backward([out for out, _ in grown], [grad for _, grad in grown])
        return float(loss)

    @torch.no_grad()
    def score(self, tree: TreeBatch, videos: Mapping[str, str], *, reference: Adapter | None = None) -> torch.Tensor:
        """Log-probabilities (M,) of a tree's targets by the model as it is, or by another adapter's; no gradient."""
        forward: TreeForward = self.forward
        if reference is not None:
            forward = TreeForward(
                reference, core=forward.core, temperature=forward.temperature, head_chunk=forward.head_chunk
            )
        with self.frames_of(videos) as frames, self.accelerator.autocast():
            if self.trains_vision:
                features = forward.adapter.encode_clips([frames(media) for media in tree.media])
            else:
                features = self._frozen_features(tree.media, frames)
            return forward.scores(tree, features).logprobs

    def _frozen_features(self, media: Sequence[Media], frames: Any) -> list[torch.Tensor]:
        # Not in the Trainer's half precision: rollouts read the same features, and the store holds one kind.
        with torch.no_grad(), torch.autocast(self.args.device.type, enabled=False):
            return self.store.features(media, frames)

    @contextmanager
    def frames_of(self, videos: Mapping[str, str]) -> Iterator[Any]:
        """A `FrameSource` over videos by identity."""
        opened = OpenVideos(videos)
        try:
            yield lambda media: self.adapter.frames(media, opened)
        finally:
            opened.close()

    # ---- writing with the model --------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[Policy]:
        """Within it the policy may generate: the model is in eval mode, and nothing of older weights is used."""
        training = self.model.training
        self.model.eval()
        if isinstance(self.policy, TransformersPolicy):
            self.policy.weights_changed()
        try:
            yield self.policy
        finally:
            self.model.train(training)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Greedy episodes on the evaluation tasks; the figures of `closeup eval`. Keeps the best weights in `best`."""
        figures = self._episodes()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures_of(figures).items()}
        step = self.state.global_step
        if step == 0:
            self.before = figures
        if step == self.args.max_steps:
            self.after = figures
        if self.state.best_metric is None or figures.overall.accuracy > self.state.best_metric:
            self.state.best_metric = figures.overall.accuracy
            if self.is_world_process_zero() and step > 0:
                checkpoints.save_whole_model(self.model, self.adapter, Path(self.args.output_dir) / "best")
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _episodes(self) -> Summary:
        assert self.config.evaluation is not None
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        out = Path(self.args.output_dir) / "evaluations" / f"step-{self.state.global_step:06d}"
        out = out / f"rank-{rank}" if world > 1 else out
        outside = self.state.global_step in (0, self.args.max_steps)  # within a run, stopping here would skip this one
        with self.writing() as policy:

            def run() -> list[Trajectory]:
                assert self.config.evaluation is not None
                return evaluate(
                    self.evaluation_tasks[rank::world],
                    policy,
                    self.preset,
                    out=out,
                    batch=self.config.evaluation.batch,
                    seed=self.config.seed,
                    temperature=0.0,
                    progress=lambda done: self.check_stop() if outside else None,
                )[1]

            try:
                found = run()
            except EvalError:  # of other weights: an earlier run was resumed from before this step, with other settings
                shutil.rmtree(out)
                found = run()
        return summarise(found if world == 1 else gathered(found))

    # ---- logs --------------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `Trainer.log`; a training log carries what was tallied since the last one."""
        if "loss" in logs:
            logs = {**logs, **self.tally.drain()}
        self.state.epoch = self.epochs(self.state.global_step)
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the Trainer's estimate needs a dict of tensors."""
        return 0

    def _finish(self) -> None:
        if self.config.evaluation is not None and self.after is None and self.config.evaluation.at_end:
            self.evaluate()
        if self.config.evaluation is not None and self.before is None:
            path = Path(self.args.output_dir) / "evaluations" / "step-000000" / "summary.json"
            if path.is_file():
                self.before = Summary.model_validate_json(path.read_text(encoding="utf-8"))
        if self.is_world_process_zero():
            checkpoints.save_whole_model(self.model, self.adapter, Path(self.args.output_dir) / "final")
        self.accelerator.wait_for_everyone()  # nobody leaves before it is written


class _Begin(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Takes up what was not logged, evaluates before the first update, and stops where it was asked to."""

    def __init__(self, trainer: TreeTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.carry_on()
        settings = self._trainer.config.evaluation
        if settings is not None and settings.at_start and state.global_step == 0:
            self._trainer.evaluate()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.check_stop()
