"""`closeup eval`: run an agent over a task file, keep every trajectory, and go on where a stopped run left off.

Invariants
1. A run's folder holds one run: its `run.json` names model, preset, seed and task file, and another run is refused.
2. A task with a line in `trajectories.jsonl` is done, unless it failed: failed ones run again, and the last line of a
   task counts. A half-written last line (a killed run) is dropped.
3. The figures come from the recorded trajectories alone (`closeup.rl.statistics`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from closeup.agent.episode import run_episodes
from closeup.agent.events import Event, Finished
from closeup.agent.policies.base import Policy, Sampling
from closeup.agent.preset import Preset
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory, read_trajectories, write_trajectories
from closeup.rl.rewards import DEFAULT_REWARDS, is_correct
from closeup.rl.statistics import Summary, summarise


class EvalError(ValueError):
    """An evaluation that cannot start or go on; the message says why and what to do."""


def evaluate(
    tasks: Sequence[Task],
    policy: Policy,
    preset: Preset,
    *,
    out: Path | None = None,
    batch: int = 16,
    seed: int = 0,
    temperature: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Summary, list[Trajectory]]:
    """Run every task once and summarise.

    Args:
        out: folder for `run.json`, `trajectories.jsonl` and `summary.json`; tasks already there are not run again.
        batch: episodes that run together.
        progress: called with the number of finished tasks after each.

    Raises:
        EvalError: `out` holds another run.
    """
    done: dict[str, Trajectory] = {}
    if out is not None:
        _open_run(out, _fingerprint(tasks, policy, preset, seed, temperature))
        done = {t.task.id: t for t in _recorded(out / "trajectories.jsonl") if not t.outcome.failed}
    waiting = [task for task in tasks if task.id not in done]
    sampling = Sampling(
        temperature=preset.temperature if temperature is None else temperature,
        max_new_tokens=preset.budget.max_new_tokens,
    )

    def keep(event: Event) -> None:
        if isinstance(event, Finished):
            if out is not None:
                write_trajectories(out / "trajectories.jsonl", [event.trajectory], append=True)
            done[event.trajectory.task.id] = event.trajectory
            if progress:
                progress(len(done))

    run_episodes(
        waiting,
        policy,
        preset=preset,
        rewards=DEFAULT_REWARDS,
        judge=is_correct,
        sampling=sampling,
        seed=seed,
        max_live=batch,
        on_event=keep,
    )
    trajectories = [done[task.id] for task in tasks]
    summary = summarise(trajectories)
    if out is not None:
        _write(out / "summary.json", summary.model_dump())
    return summary, trajectories


def _fingerprint(
    tasks: Sequence[Task], policy: Policy, preset: Preset, seed: int, temperature: float | None
) -> dict[str, Any]:
    digest = hashlib.sha256("\n".join(t.model_dump_json() for t in tasks).encode()).hexdigest()[:16]
    return {
        "tasks": {"count": len(tasks), "sha256": digest},
        "policy": policy.settings(),
        "preset": preset.model_dump(mode="json"),
        "seed": seed,
        "temperature": temperature,
    }


def _open_run(out: Path, run: dict[str, Any]) -> None:
    path = out / "run.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write(path, run)
            return
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvalError(f"cannot use {out} for results: {error}") from None
    changed = [key for key in run if json.loads(json.dumps(run[key])) != recorded.get(key)]
    if changed:
        raise EvalError(
            f"{out} holds another run (other {', '.join(changed)}); give a new folder with --out, or delete that one"
        )


def _recorded(path: Path) -> list[Trajectory]:
    if not path.exists():
        return []
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) != len(raw):
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(whole)
        os.replace(temporary, path)
    return list(read_trajectories(path))


def _write(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
