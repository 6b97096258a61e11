"""What a run tells while it goes on: a line per log, every number in `metrics.jsonl`, tables of sample rollouts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerCallback

from closeup.agent.trajectory import Trajectory
from closeup.rl.generation import TrainGroup
from closeup.rl.grpo import GRPOTrainer

Say = Callable[[str], None]
SHOWN = {
    "loss": "loss {:.4f}",
    "nll": "nll {:.4f}",
    "rollouts/correct": "correct {:.1%}",
    "rollouts/hit_rate": "hit {:.1%}",
    "rollouts/steps": "steps {:.2f}",
    "rollouts/failed": "failed {:.0f}",
    "entropy": "entropy {:.3f}",
    "kl": "kl {:.4f}",
    "clip_ratio/region_mean": "clipped {:.1%}",
    "tree/saved": "tree saves {:.0%}",
    "rollouts/cut": "cut {:.1f}",
    "episodes/cut": "cut {:.1f}",
    "episodes/dropped": "too long {:.1f}",
}
"""Metrics of the line that is shown, and how."""
ONLY_ABOVE_ZERO = frozenset({"rollouts/cut", "episodes/cut", "episodes/dropped"})
"""Those that are shown only when there is something to see."""


class Narrator(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Says a line per log, and moves a bar after every update."""

    def __init__(self, say: Say, advance: Callable[[int, int], None] | None = None) -> None:
        """`say` gets whole lines; `advance` is called as `advance(done, total)`."""
        self._say, self._advance = say, advance

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        if logs is None or not state.is_world_process_zero:
            return
        if "loss" in logs:
            parts = [
                form.format(logs[name])
                for name, form in SHOWN.items()
                if name in logs and (logs[name] or name not in ONLY_ABOVE_ZERO)
            ]
            self._say(f"step {state.global_step}/{state.max_steps}  " + "  ".join(parts))
        elif "eval_accuracy" in logs:
            self._say(
                f"step {state.global_step}/{state.max_steps}  evaluation: {logs['eval_accuracy']:.1%} right"
                f" ({logs['eval_accuracy_low']:.1%} to {logs['eval_accuracy_high']:.1%}),"
                f" {logs['eval_steps']:.2f} steps, {logs['eval_truncated']:.1%} without an answer"
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._advance is not None:
            self._advance(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._advance is not None:
            self._advance(state.global_step, state.max_steps)


class MetricsFile(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Every log as a line of `metrics.jsonl` in the run's folder; a resumed run takes back what it will say again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        kept = []
        if self._path.is_file() and state.global_step:
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= state.global_step:
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError):
                    break  # a line cut short by a kill, and nothing behind it
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("".join(kept), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        if logs is not None and state.is_world_process_zero:
            finite = {name: value if math.isfinite(value) else None for name, value in logs.items()}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **finite}) + "\n")


class SampleTable(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Some rollouts of each generation as a table: said, written to `samples/`, and given to the trackers."""

    def __init__(self, trainer: GRPOTrainer, say: Say) -> None:
        self._trainer, self._say = trainer, say
        self._shown = -1

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        generation = self._trainer.generation
        if generation is None or generation[0] == self._shown or not state.is_world_process_zero:
            return
        number, groups = generation
        self._shown = number
        rows = sample_rows(groups, self._trainer.config.num_completions_to_print)
        text = as_text(rows, f"generation {number}")
        folder = Path(args.output_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"generation-{number:06d}.txt").write_text(text, encoding="utf-8")
        self._say(text)
        for tracker in self._trainer.config.report_to:
            give_table(tracker, rows)


def sample_rows(groups: Sequence[TrainGroup], count: int) -> list[dict[str, str]]:
    """One row per step of the first rollouts, one rollout of each group in turn."""
    rows = []
    for place in range(count):
        if not groups:
            break
        turn, which = divmod(place, len(groups))
        group = groups[which]
        if turn < len(group.trajectories):
            rows += _rows_of(group.trajectories[turn], group.advantages[turn])
    return rows


def _rows_of(trajectory: Trajectory, advantages: Any) -> list[dict[str, str]]:
    outcome = trajectory.outcome
    end = "failed: " + outcome.reason if outcome.failed else outcome.answer or f"no answer ({outcome.reason})"
    rows = []
    for index, step in enumerate(trajectory.steps):
        scored = {name: value for name, value in step.rewards.items() if value is not None}
        rows.append(
            {
                "episode": trajectory.id if index == 0 else "",
                "question": trajectory.task.question if index == 0 else "",
                "message": step.text,
                "rewards": ", ".join(f"{name} {value:g}" for name, value in scored.items()),
                "advantage": f"{advantages[index]:+.2f}",
                "end": f"{end} (gold: {trajectory.task.answer})" if index == len(trajectory.steps) - 1 else "",
            }
        )
    return rows


def as_text(rows: Sequence[Mapping[str, str]], title: str) -> str:
    """The table as plain text, 160 columns wide."""
    import io

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, show_lines=False)
    for name in rows[0] if rows else ("episode",):
        table.add_column(name, overflow="fold", justify="right" if name == "advantage" else "left")
    for row in rows:
        table.add_row(*(Text(value) for value in row.values()))
    file = io.StringIO()
    Console(file=file, width=160).print(table)
    return file.getvalue()


def give_table(tracker: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Log the table to a tracker that has tables (wandb, trackio)."""
    if not rows:
        return
    columns = list(rows[0])
    values = [list(row.values()) for row in rows]
    if tracker == "wandb":
        import wandb

        if wandb.run is not None:
            wandb.log({"completions": wandb.Table(columns=columns, data=values)})
    elif tracker == "trackio":
        import trackio

        trackio.log({"completions": trackio.Table(columns=columns, data=values)})
