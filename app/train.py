"""`closeup train`: settings in, a trained model out; progress, accuracy before and after, and a way to go on.

Ctrl-C ends the run at the next place where nothing is lost, writes a checkpoint and says how to go on; a second one
ends it at once.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from closeup.app.errors import INTERRUPTED, complain
from closeup.app.progress import bar
from closeup.app.setup import check_overviews, quiet_libraries
from closeup.extras import require

if TYPE_CHECKING:
    from closeup.rl.config import TrainConfig
    from closeup.rl.trainer import TreeTrainer


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """The command's arguments, as typed; `overrides` are `--key value` words."""

    kind: Literal["grpo", "sft"]
    config: Path
    overrides: tuple[str, ...] = ()
    resume: bool = False


def run(options: TrainOptions) -> int:
    """Train; 0 when it is done, 130 when it was interrupted. Raises what becomes a sentence."""
    require("train", "accelerate")
    quiet_libraries()
    from closeup.rl.config import GRPOConfig, SFTConfig
    from closeup.rl.configfile import load_config
    from closeup.rl.trainer import TrainingStopped

    kind: type[TrainConfig] = GRPOConfig if options.kind == "grpo" else SFTConfig
    config = load_config(kind, options.config, options.overrides)
    trainer = _trainer(options, config)
    with bar("train", None) as advance:
        from closeup.rl.callbacks import Narrator

        trainer.add_callback(Narrator(_say, advance))
        try:
            with _stopping(trainer):
                trainer.train(resume_from_checkpoint=options.resume or None)
        except TrainingStopped as stopped:
            complain(f"{stopped}; go on with: {_again(options)}")
            return INTERRUPTED
    if trainer.is_world_process_zero():
        _report(trainer, options.kind)
    return 0


def _trainer(options: TrainOptions, config: Any) -> TreeTrainer:
    from closeup.agent.models.load import load_adapter
    from closeup.agent.task import Task
    from closeup.rl.callbacks import MetricsFile, SampleTable
    from closeup.rl.grpo import GRPOTrainer
    from closeup.rl.preflight import check
    from closeup.rl.sft import SFTTrainer
    from closeup.rl.sources import check_files, episodes_from, missing_videos, preset_of, tasks_from
    from closeup.rl.trainable import first_process_first

    preset = preset_of(config.model, config.preset)
    check(config, preset, resume=options.resume)
    check_files(config)
    data = Path(config.output_dir) / "data"

    def told(what: str, done: int, total: int) -> None:
        if done == total or done % max(1, total // 10) == 0:
            _say(f"{what}: {done}/{total}")

    def tasks(source: Any) -> list[Task]:
        found = tasks_from(source, data, progress=told)
        if missing := missing_videos(found):
            complain(f"{len(missing)} of {len(found)} tasks have no video file ({missing[0]} first); they will fail")
        return found

    with first_process_first():
        unseen = tasks(config.evaluation.tasks) if config.evaluation is not None else []
        asked = tasks(config.tasks) if options.kind == "grpo" else []
        shown = episodes_from(config, data, progress=told) if options.kind == "sft" else []
    check_overviews(config.model, preset, [*asked, *unseen], trust_remote_code=config.trust_remote_code)
    adapter = load_adapter(
        config.model,
        dtype=config.dtype,
        device="cpu" if config.use_cpu else "auto",
        timestamps=preset.timestamps,
        trust_remote_code=config.trust_remote_code,
    )
    callbacks: list[Any] = [MetricsFile(Path(config.output_dir) / "metrics.jsonl")]
    if options.kind == "sft":
        return SFTTrainer(adapter, config, preset, shown, evaluation_tasks=unseen, callbacks=callbacks)
    trainer = GRPOTrainer(adapter, config, preset, asked, evaluation_tasks=unseen, callbacks=callbacks)
    if config.log_completions:
        trainer.add_callback(SampleTable(trainer, _say))
    return trainer


def _report(trainer: TreeTrainer, kind: str) -> None:
    from closeup.rl.hub import figures, model_card, push

    config, folder = trainer.config, Path(trainer.config.output_dir)
    if trainer.after is not None:
        before = "" if trainer.before is None else f"before {figures(trainer.before)}   "
        _say(f"{before}after {figures(trainer.after)}   greedy, unseen tasks")
    _say(f"{folder / 'final'}")
    card = model_card(config, kind, steps=trainer.state.global_step, before=trainer.before, after=trainer.after)
    (folder / "final" / "README.md").write_text(card, encoding="utf-8")
    if config.push_to_hub:
        _say(push(folder / "final", card, config))


def _say(line: str) -> None:
    sys.stdout.write(line.rstrip("\n") + "\n")
    sys.stdout.flush()


def _again(options: TrainOptions) -> str:
    words = ["closeup", "train", options.kind, "--config", str(options.config), *options.overrides, "--resume"]
    return shlex.join(words)


@contextmanager
def _stopping(trainer: TreeTrainer) -> Iterator[None]:
    """Within it the first Ctrl-C asks the trainer to stop, and the next one interrupts as usual."""

    def ask(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        complain("stopping after what is being done now; press Ctrl-C again to stop at once")
        trainer.stop()

    before: Callable[..., Any] | int | None = signal.getsignal(signal.SIGINT)
    if trainer.accelerator.num_processes > 1:  # processes would stop at different places, and wait for one another
        yield
        return
    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
