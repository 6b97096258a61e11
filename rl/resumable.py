"""`ResumableTrainer`: a `transformers.Trainer` whose checkpoints are whole or absent, resumed exactly or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer import Trainer
from transformers.trainer_callback import TrainerState

from closeup.agent.models.adapter import Adapter
from closeup.rl import checkpoints
from closeup.rl.config import TrainConfig
from closeup.rl.preflight import refuse_used

CONFIG_NAME = "train_config.json"


class ResumableTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """What `TreeTrainer` knows of checkpoints. A subclass adds what it needs beside weights, optimizer and schedule."""

    config: TrainConfig
    adapter: Adapter

    def save_more(self, folder: Path) -> None:
        """Write what else a resumed run needs (on every process)."""

    def load_more(self, folder: Path) -> None:
        """Read it again."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write `checkpoint-N` beside its place and rename it into it: it is whole, or it is not there."""
        folder = Path(self.args.output_dir)
        place = folder / f"checkpoint-{self.state.global_step}"
        temporary = folder / f"{checkpoints.PARTIAL}{place.name}"
        if self.is_world_process_zero():
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.save_model(str(temporary), _internal_call=True)
        self._save_optimizer_and_scheduler(str(temporary))
        self._save_rng_state(str(temporary))
        self.save_more(temporary)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            self.state.stateful_callbacks[type(self.control).__name__] = self.control.state()
            self.state.save_to_json(str(temporary / "trainer_state.json"))
            record = {"processes": self.args.world_size, "settings": json.loads(self.config.model_dump_json())}
            (temporary / CONFIG_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            checkpoints.replace_folder(temporary, place)
            checkpoints.rotate(folder, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            checkpoints.copy_small_files(self.adapter, Path(output_dir or self.args.output_dir))

    def save_now(self) -> Path:
        """The checkpoint of the update just done, written unless it is there."""
        place = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if not place.exists():
            self._save_checkpoint(self.model_wrapped, None)
        return place

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoints.load_weights(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.load_more(Path(checkpoint))

    def checkpoint_for(self, folder: Path, wanted: str | bool | None) -> Path | None:
        """The checkpoint to go on from, checked; None to begin. Called by all processes. Raises `CheckpointError`."""
        if not isinstance(wanted, str):
            refuse_used(folder, resume=bool(wanted))
            self.accelerator.wait_for_everyone()  # nobody writes into the folder before all have looked
        if not wanted:
            return None
        checkpoint = checkpoints.last_checkpoint(folder) if wanted is True else Path(str(wanted))
        if checkpoint is None:
            return None
        if missing := checkpoints.missing_parts(checkpoint):
            raise checkpoints.CheckpointError(
                f"{checkpoint} is no complete checkpoint: no {', '.join(missing)}; give a folder checkpoint-N of a run"
            )
        self._check_settings(checkpoint)
        return checkpoint

    def _check_settings(self, checkpoint: Path) -> None:
        try:
            record = json.loads((checkpoint / CONFIG_NAME).read_text(encoding="utf-8"))
            recorded, processes = record["settings"], record["processes"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise checkpoints.CheckpointError(f"{checkpoint} is not of this trainer: {CONFIG_NAME}: {error}") from None
        if processes != self.args.world_size:
            raise checkpoints.CheckpointError(
                f"{checkpoint} is of a run on {processes} processes, this one has {self.args.world_size}: they would"
                " draw other tasks; resume on as many"
            )
        now = json.loads(self.config.model_dump_json())
        free = set(self.config.FREE)
        if self.config.lr_scheduler_type == "constant":
            free.add("max_steps")
        other = sorted(name for name in now if name not in free and now[name] != recorded.get(name))
        if other:
            raise checkpoints.CheckpointError(
                f"{checkpoint} was trained with other settings: "
                + ", ".join(f"{name} {recorded.get(name)!r}, now {now[name]!r}" for name in other[:3])
                + "; resume with the same settings, or begin a new run in another output_dir"
            )

    def is_finished(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is of the last update; its state is then this trainer's.

        `Trainer` of transformers 5.23 would train one more update.
        """
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step < self.args.max_steps:
            return False
        self.state = state
        return True
