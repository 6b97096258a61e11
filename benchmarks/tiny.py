"""How good is the bundled model, and could it have answered without looking closer?

    python benchmarks/tiny.py                    everything; results/tiny-cpu.json
    python benchmarks/tiny.py --only agent       the model and its half-trained sibling, no baselines

The agent answers unseen generated tasks by real episodes (`closeup.rl.evaluate`, what `closeup eval` runs). The arms
are the same model trained to answer at once from the overview, or from uniform frames that cost as many visual tokens
as the agent's episodes do on average (`closeup.rl.tiny.baselines`). Everything made on the way stays in --work, and a
second run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import _report
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from closeup.agent.models.load import find_checkpoint
from closeup.agent.policies.transformers_policy import TransformersPolicy
from closeup.agent.preset import Preset, get_preset
from closeup.agent.task import load_tasks
from closeup.agent.trajectory import read_trajectories
from closeup.rl.data.needles import write
from closeup.rl.evaluate import evaluate
from closeup.rl.statistics import Group
from closeup.rl.tiny.baselines import arms, look_all, train_arm
from closeup.rl.tiny.checkpoint import save_checkpoint

SEED, TASKS = 600_001, 256
POOL, HELD_OUT = 400, 40
# Training steps of the language model. Four times as many moved the arm that reads best, 112, from 27.3 to 29.3 %.
STEPS = {28: 240, 56: 240, 112: 1000}
# By frame size: further videos to study and steps of the tower. At 28 a digit is 2.5 pixels tall; at 112 it is as the
# agent knows it; 56 lies between, where reading can be learned but takes many more digits than the scenes hold.
TOWER = {28: (0, 250), 56: (800, 700), 112: (0, 250)}
log = logging.getLogger(__name__)


def figures(group: Group) -> dict[str, Any]:
    """What is kept of a group of episodes."""
    kept = group.model_dump(include={"n", "accuracy", "hit_rate", "steps", "frames", "visual_tokens", "format_errors"})
    return {**kept, "interval": [group.low, group.high]}


def measure(model: str, preset: Preset, tasks: Path, out: Path) -> dict[str, Any]:
    """Accuracy and costs of a model on a task file, overall and per kind."""
    policy = TransformersPolicy(model)
    summary, _ = evaluate(list(load_tasks(tasks)), policy, preset, out=out, batch=32)
    kinds = {name: figures(group) for name, group in summary.by_kind.items()}
    return {**figures(summary.overall), "kinds": kinds}


def perfect_reader(run: Path) -> float:
    """What reading every digit it was shown would give on "digit" tasks: hits, and a guess among four otherwise."""
    hits = []
    for trajectory in read_trajectories(run / "trajectories.jsonl"):
        if trajectory.task.kind == "digit":
            times = [time for clip in trajectory.clips.values() for time in clip.times]
            hits.append(any(start <= t < end for start, end in trajectory.task.evidence for t in times))
    return (sum(hits) + 0.25 * (len(hits) - sum(hits))) / len(hits)


def baselines(tasks: Path, work: Path, visual_tokens: int, only: str) -> dict[str, dict[str, Any]]:
    """Train and measure every arm that has no result in `work` yet."""
    chosen = arms(visual_tokens)
    found: dict[str, dict[str, Any]] = {}
    for n, arm in enumerate(chosen):
        if only not in ("all", arm.key):
            continue
        file = work / f"{arm.preset.name}.json"
        if not file.exists():
            began = time.process_time()
            items = look_all(POOL, chosen, work)[n]
            model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                find_checkpoint("tiny").path, dtype=torch.float32
            )
            study, tower = TOWER[arm.size]
            read = train_arm(model, items, arm, held_out=HELD_OUT, tower=tower, steps=STEPS[arm.size], study=study)
            save_checkpoint(model, work / arm.preset.name)
            result = measure(str(work / arm.preset.name), arm.preset, tasks, work / f"run-{arm.preset.name}")
            result |= {"name": arm.name, "digits_read": read, "cpu_seconds": round(time.process_time() - began)}
            result |= {"training_steps": STEPS[arm.size]}
            file.write_text(json.dumps(result))
            log.info("%s: %.3f", arm.name, result["accuracy"])
        found[arm.key] = json.loads(file.read_text())
        found[arm.key]["perfect_reader"] = perfect_reader(work / f"run-{arm.preset.name}")
    return found


def main() -> None:
    """Measure, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".tiny/benchmark"))
    parser.add_argument("--only", default="all", help="all, agent, overview, uniform_28, uniform_56 or uniform_112")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    tasks = options.work / "tasks" / "tasks.jsonl"
    if not tasks.exists():
        write(TASKS, SEED, tasks.parent)
    preset = get_preset("tiny")
    agent = measure("tiny", preset, tasks, options.work / "run-tiny")
    half = measure("tiny-half", preset, tasks, options.work / "run-half")
    found = (
        {} if options.only == "agent" else baselines(tasks, options.work, round(agent["visual_tokens"]), options.only)
    )
    rows = [("agent (closeup-tiny)", agent), ("agent (tiny-half)", half)] + [(r["name"], r) for r in found.values()]
    columns = ["arm", "all", "95 %", *agent["kinds"], "zoom hits", "visual tokens"]
    _report.show(
        f"{TASKS} unseen tasks, greedy",
        columns,
        [
            [
                name,
                f"{row['accuracy']:.1%}",
                f"{row['interval'][0]:.0%}-{row['interval'][1]:.0%}",
                *(f"{row['kinds'][kind]['accuracy']:.0%}" for kind in agent["kinds"]),
                "" if row["hit_rate"] is None else f"{row['hit_rate']:.1%}",
                f"{row['visual_tokens']:.0f}",
            ]
            for name, row in rows
        ],
    )
    targets = {
        "agent at least 90 %": [agent["accuracy"] >= 0.9, agent["accuracy"]],
        "half between 40 and 60 %": [0.4 <= half["accuracy"] <= 0.6, half["accuracy"]],
    }
    if "overview" in found:
        worst = max(kind["accuracy"] for kind in found["overview"]["kinds"].values())
        targets["overview alone at most 35 % for every kind"] = [worst <= 0.35, worst]
    result = {
        "environment": _report.environment(("torch", "transformers", "av", "numpy")),
        "settings": {
            "tasks": TASKS,
            "seed": SEED,
            "preset": preset.model_dump(mode="json"),
            "baseline_training": {
                "videos": POOL - HELD_OUT,
                "tower": {str(size): list(pair) for size, pair in TOWER.items()},
                "steps": {str(size): steps for size, steps in STEPS.items()},
            },
        },
        "agent": agent,
        "half": half,
        "arms": found,
        "targets": targets,
    }
    _report.write("tiny-cpu", result)


if __name__ == "__main__":
    main()
