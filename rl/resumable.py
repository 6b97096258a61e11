"""`ResumableTrainer`: a `transformers.Trainer` whose checkpoints are whole or absent, resumed exactly or refused.

What a checkpoint was begun with is compared before anything is trained: the settings (but for those that touch nothing
that is learnt), the tasks or episodes, the preset and its prompts, the starting model. Not compared are the videos'
pixels (only their files' names and sizes), the code of rewards and tools, and the versions of packages.

Between two logs, sums have been collected that only the next log will show. They are part of a checkpoint, as they were
when its last update was done: an update that was interrupted is done again, and leaves nothing in them.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.trainer import Trainer
from transformers.trainer_callback import TrainerState

from closeup import prompts
from closeup.agent.models.adapter import Adapter
from closeup.agent.models.fingerprint import weights_digest
from closeup.agent.preset import Preset
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory
from closeup.rl import checkpoints
from closeup.rl.checkpoints import CONFIG_NAME
from closeup.rl.config import TrainConfig
from closeup.rl.preflight import refuse_used
from closeup.rl.tally import Tally

_NAMES = {
    "tasks": "the tasks to train on",
    "episodes": "the episodes to learn from",
    "evaluation": "the tasks of the evaluation",
    "preset": "the preset",
    "prompts": "the preset's prompts",
    "model": "the starting model",
}
_NOT_LEARNT: dict[str, Any] = {
    "videos": {"__all__": {"path"}},
    "task": {"videos", "audio"},
    "steps": {"__all__": {"generate_seconds", "tool_seconds"}},
    "clips": {"__all__": {"seconds"}},
    "outcome": {"seconds"},
}
"""What of a trajectory says where and how fast it was made."""


class ResumableTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """What `TreeTrainer` knows of checkpoints. A subclass adds what it needs beside weights, optimizer and schedule.

    Attributes:
        begun_with: plain values that name what the run is made of beside its settings; a subclass adds to them.
    """

    config: TrainConfig
    adapter: Adapter
    tally: Tally
    begun_with: dict[str, Any]
    _at_begin: tuple[int, dict[str, Any]] = (-1, {})
    _carried: dict[str, Any] | None = None

    def save_more(self, folder: Path) -> None:
        """Write what else a resumed run needs (on every process)."""

    def load_more(self, folder: Path) -> None:
        """Read it again."""

    # ---- writing ---------------------------------------------------------------------------------------------------

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
        self._save_unlogged(temporary)
        self.save_more(temporary)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            self.state.stateful_callbacks[type(self.control).__name__] = self.control.state()
            self.state.save_to_json(str(temporary / "trainer_state.json"))
            record = {
                "processes": self.args.world_size,
                "settings": json.loads(self.config.model_dump_json()),
                "begun_with": self.begun_with,
                "files": checkpoints.files_of(temporary),
            }
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
        if checkpoints.missing_parts(place):
            self._save_checkpoint(self.model_wrapped, None)
        return place

    # ---- between two logs ------------------------------------------------------------------------------------------

    def begin_update(self) -> None:
        """To be called before anything of the next update is collected."""
        self._at_begin = (self.state.global_step, self._unlogged())

    def _unlogged(self) -> dict[str, Any]:
        """What this process will put into the next log."""
        return {
            "loss": float(self._tr_loss),
            "last_logged": int(self._globalstep_last_logged),
            "tally": self.tally.state(),
        }

    def _unlogged_path(self, folder: Path) -> Path:
        return folder / f"unlogged_{self.args.process_index}.json"

    def _save_unlogged(self, folder: Path) -> None:
        step, values = self._at_begin
        # A checkpoint at the step that an update began at is written in the middle of that update.
        values = values if step == self.state.global_step else self._unlogged()
        self._unlogged_path(folder).write_text(json.dumps(values) + "\n", encoding="utf-8")

    def carry_on(self) -> None:
        """Take up what had not been logged; to be called when the loop has set its own sums to nothing."""
        self._at_begin = (-1, {})
        if self._carried is None:
            return
        carried, self._carried = self._carried, None
        self._tr_loss += carried["loss"]
        self._total_loss_scalar -= carried["loss"]  # the mean at the end is of the updates of this call
        self._globalstep_last_logged = carried["last_logged"]
        self.tally.restore(carried["tally"])

    # ---- reading ---------------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoints.load_weights(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        unlogged = self._unlogged_path(Path(checkpoint))
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
            self.load_more(Path(checkpoint))
            if unlogged.is_file():  # checkpoints of older versions have none
                self._carried = json.loads(unlogged.read_text(encoding="utf-8"))
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise checkpoints.CheckpointError(
                f"{checkpoint} cannot be read: {' '.join(str(error).split())[:300]}; delete that folder, and --resume"
                " goes on from the one before"
            ) from error

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
        self._check_record(checkpoint)
        return checkpoint

    def _check_record(self, checkpoint: Path) -> None:
        try:
            record = json.loads((checkpoint / CONFIG_NAME).read_text(encoding="utf-8"))
            recorded, processes = dict(record["settings"]), record["processes"]
            begun_with = dict(record.get("begun_with", {}))  # older versions did not note it
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
        known = [name for name in now if name in recorded or name in self.config.model_fields_set]  # others came later
        other = sorted(name for name in known if name not in free and now[name] != recorded.get(name))
        if other:
            raise checkpoints.CheckpointError(
                f"{checkpoint} was trained with other settings: "
                + ", ".join(f"{name} {recorded.get(name)!r}, now {now[name]!r}" for name in other[:3])
                + "; resume with the same settings, or begin a new run in another output_dir"
            )
        if changed := differences(begun_with, self.begun_with):
            raise checkpoints.CheckpointError(
                f"{checkpoint} was begun with other contents under the same settings: {', '.join(changed)}; put back"
                " what it was begun with, or begin a new run in another output_dir"
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


# ---- what a run is begun with --------------------------------------------------------------------------------------


def shape_of_run(adapter: Adapter, preset: Preset, evaluation: Sequence[Task]) -> dict[str, Any]:
    """What every run is made of beside its settings, as plain values. To be called before the model is changed.

    The starting model is named by some hundred values of each of its tensors, its tokenizer and its pixel settings.
    """
    return {
        "preset": preset.model_dump(mode="json"),
        "prompts": {"texts digest": prompts.fingerprint(preset.prompts)},
        "model": {
            "weights digest": weights_digest(adapter.model),
            "tokenizer digest": adapter.tokenizer_digest,
            "pixel settings digest": adapter.processor_digest,
        },
        "evaluation": contents_of_tasks(evaluation),
    }


def contents_of_tasks(tasks: Sequence[Task]) -> dict[str, Any]:
    """Count and digest of tasks in their order: all they say, and their files' names and sizes, not their places."""

    def lines() -> Iterable[str]:
        for task in tasks:
            files = [*task.videos, *([task.audio] if task.audio is not None else [])]
            yield task.model_dump_json(exclude={"videos", "audio"})
            yield json.dumps([[path.name, path.stat().st_size if path.is_file() else None] for path in files])

    return {"count": len(tasks), "content digest": _digest(lines())}


def contents_of_episodes(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Count and digest of recorded episodes in their order, but for where their videos lie and how long they took."""
    return {
        "count": len(trajectories),
        "content digest": _digest(t.model_dump_json(exclude=_NOT_LEARNT) for t in trajectories),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs among the things that both name, each in a few words for people."""
    found = []
    for name in now:
        if name not in before:
            continue
        old, new = _flat(before[name]), _flat(now[name])
        parts = [
            f"other {key.removesuffix(' digest')}"
            if key.endswith(" digest")
            else f"{key} {old.get(key)!r}, now {new.get(key)!r}"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
        ]
        if parts:
            found.append(f"{_NAMES.get(name, name)} ({'; '.join(parts[:3])})")
    return found


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted names; values as JSON has them."""
    if not isinstance(value, Mapping):
        return {prefix: json.loads(json.dumps(value))}
    return {k: v for key, of in value.items() for k, v in _flat(of, f"{prefix}.{key}".lstrip(".")).items()}


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for line in lines:
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
