"""`closeup eval`: run the agent over a task file, show progress, print the figures, keep everything in a folder."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from closeup.app.errors import NO_ANSWER, BadInput, complain
from closeup.app.progress import bar
from closeup.app.setup import Overrides, check_overviews, choose_preset, open_policy

if TYPE_CHECKING:
    from closeup.rl.statistics import Summary


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """The command's arguments, as typed."""

    tasks: Path
    model: str = "tiny"
    preset: str | None = None
    out: Path | None = None
    overrides: Overrides = Overrides()
    limit: int | None = None
    batch: int = 16
    as_json: bool = False
    seed: int = 0
    feature_cache: Path | None = None


def run(options: EvalOptions) -> int:
    """Evaluate and print; 0 when at least one episode was judged, else 1. Raises what becomes a sentence."""
    from closeup.agent.task import load_tasks

    tasks = load_tasks(options.tasks)[: options.limit]
    preset = choose_preset(options.model, options.preset, options.overrides)
    missing = [task.id for task in tasks if not all(video.is_file() for video in task.videos)]
    if len(missing) == len(tasks):
        raise BadInput(f"none of the videos of {options.tasks} is there; see: closeup data validate {options.tasks}")
    if missing:
        complain(
            f"{len(missing)} of {len(tasks)} tasks have no video file ({missing[0]} first); they fail, and no failed"
            " task is part of the accuracy"
        )
    out = options.out or Path("runs") / "eval" / _name(options.tasks, options.model, preset.name)
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out takes a folder, and {out} is a file; give e.g. {out.parent / 'results'}")
    from closeup.rl.evaluate import evaluate

    if options.feature_cache is not None and options.feature_cache.exists() and not options.feature_cache.is_dir():
        raise BadInput(f"--feature-cache takes a folder, and {options.feature_cache} is a file; see: closeup cache")
    kept = {} if options.feature_cache is None else {"feature_cache": options.feature_cache}
    check_overviews(options.model, preset, tasks)
    policy = open_policy(options.model, preset, **kept)
    with bar("eval", len(tasks)) as advance:
        summary, _ = evaluate(
            tasks,
            policy,
            preset,
            out=out,
            batch=options.batch,
            seed=options.seed,
            temperature=options.overrides.temperature,
            progress=advance,
        )
    if left := len(tasks) - summary.overall.n:
        complain(
            f"{left} of {len(tasks)} tasks are no part of the accuracy: {summary.overall.failed} failed,"
            f" {left - summary.overall.failed} could not be judged (no gold answer, or one for a scorer)"
        )
    if options.as_json:
        sys.stdout.write(json.dumps({"out": str(out), **summary.model_dump()}) + "\n")
    else:
        _print(summary, out)
    return 0 if summary.overall.n else NO_ANSWER


def _name(tasks: Path, model: str, preset: str) -> str:
    parts = (tasks.resolve().parent.name, tasks.stem, model, preset)
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", part).strip("_") for part in parts)


def _print(summary: Summary, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("kind", "n", "accuracy", "95 %", "zoom hit", "steps", "visual tokens", "no answer", "failed")
    for kind, group in (*summary.by_kind.items(), ("all", summary.overall)):
        table.add_row(
            kind,
            str(group.n),
            f"{100 * group.accuracy:.1f} %",
            f"{100 * group.low:.1f}–{100 * group.high:.1f}",
            "–" if group.hit_rate is None else f"{100 * group.hit_rate:.1f} %",
            f"{group.steps:.2f}",
            f"{group.visual_tokens:.0f}",
            f"{100 * group.truncated:.1f} %",
            str(group.failed),
        )
    Console(width=None if sys.stdout.isatty() else 110).print(table)  # a log has no width to fit
    sys.stdout.write(f"{out}\n")
