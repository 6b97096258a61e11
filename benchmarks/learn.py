"""Does step credit teach better than one number per episode? GRPO from the half-trained model, arm against arm.

    python benchmarks/learn.py                     every arm and seed; results/learn-cpu.json and learn-cpu.svg
    python benchmarks/learn.py --seeds 3 --jobs 2  fewer seeds, two runs at a time
    python benchmarks/learn.py --report            the table of what is in --work already

Arms, all with the same tasks in the same order per seed, the same number of updates and rollouts:
- `decoupled`: format, zoom and answer rewards, each step credited with what came after it, stream by stream;
- `episode_sum`: the same streams summed to one number for the episode (credit differs, supervision does not);
- `outcome_only`: the answer alone, one number for the episode;
- `sufficiency`: decoupled, but the zoom reward needs no gold windows: it is whether the close looks alone answer.

Every run is greedily evaluated before and after on the same unseen tasks; differences between arms are paired by seed
and task. Each run is a process of its own; a finished one is read from --work, an interrupted one resumes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import _report
from _chart import lines

from closeup.agent.trajectory import read_trajectories
from closeup.rl.statistics import wilson

STREAMS = {
    "streams": [
        {"name": "format", "weight": 0.5},
        {"name": "zoom", "weight": 1.0, "function": "zoom_gain"},
        {"name": "answer", "weight": 1.0},
    ]
}
ARMS: dict[str, dict[str, Any]] = {
    "decoupled": {"advantage": "decoupled", "advantage_options": {"gamma": {"format": 0.0}}, "rewards": STREAMS},
    "episode_sum": {"advantage": "episode_sum", "rewards": STREAMS},
    "outcome_only": {"advantage": "outcome_only", "rewards": {"streams": {"answer": 1.0}}},
    "sufficiency": {
        "advantage": "decoupled",
        "advantage_options": {"gamma": {"format": 0.0}},
        "rewards": {"streams": {"format": 0.5, "sufficiency": 1.0, "answer": 1.0}},
    },
}
TRAIN = {"needles": {"count": 400, "seed": 40_000, "seconds": [16, 120]}}
EVALUATION = {"needles": {"count": 256, "seed": 700_001, "seconds": [16, 120]}}
SETTINGS: dict[str, Any] = {
    "model": "tiny-half",
    "max_steps": 60,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 3,
    "max_grad_norm": 0.2,
    "loss_type": "grpo",
    "per_device_train_batch_size": 8,
    "num_generations": 8,
    "rollout_cohorts": 1,
    "temperature": 0.9,
    "save_steps": 25,
    "save_total_limit": 1,
    "keep_rollouts": 0,
}
log = logging.getLogger("learn")


def train(arm: str, seed: int, work: Path, steps: int) -> None:
    """One run, in this process: train, evaluate, write `result.json` into the run's folder."""
    from transformers.trainer_callback import TrainerCallback

    from closeup.agent.models.load import load_adapter
    from closeup.agent.preset import get_preset
    from closeup.agent.task import load_tasks
    from closeup.rl.config import GRPOConfig
    from closeup.rl.grpo import GRPOTrainer

    folder = work / f"{arm}-{seed}"
    tasks, unseen = (load_tasks(work / name / "tasks.jsonl") for name in ("train", "evaluation"))
    config = GRPOConfig.model_validate(
        SETTINGS
        | ARMS[arm]
        | {
            "output_dir": str(folder),
            "seed": seed,
            "max_steps": steps,
            "tasks": {"file": str(work / "train" / "tasks.jsonl")},
            "evaluation": {"tasks": {"file": str(work / "evaluation" / "tasks.jsonl")}, "batch": 64},
        }
    )
    curve: list[dict[str, float]] = []

    class Curve(TrainerCallback):  # type: ignore[misc]
        """Keeps what is logged of the rollouts."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            kept = {k: v for k, v in (logs or {}).items() if k.startswith("rollouts/") or k == "entropy"}
            if kept:
                curve.append({"step": state.global_step, **kept})
                log.info("step %d %s", state.global_step, {k: round(v, 3) for k, v in kept.items()})

    preset = get_preset("tiny")
    began = time.process_time()
    trainer = GRPOTrainer(
        load_adapter(config.model, device="cpu", timestamps=preset.timestamps),
        config,
        preset,
        tasks,
        evaluation_tasks=unseen,
        callbacks=[Curve()],
    )
    trainer.train(resume_from_checkpoint=True)
    assert trainer.before is not None and trainer.after is not None
    result = {
        "arm": arm,
        "seed": seed,
        "before": trainer.before.overall.accuracy,
        "after": trainer.after.overall.accuracy,
        "kinds": {kind: group.accuracy for kind, group in trainer.after.by_kind.items()},
        "hit_rate": trainer.after.overall.hit_rate,
        "steps": trainer.after.overall.steps,
        "visual_tokens": trainer.after.overall.visual_tokens,
        "cpu_seconds": round(time.process_time() - began),
        "curve": curve,
    }
    (folder / "result.json").write_text(json.dumps(result))


def right_answers(folder: Path, steps: int) -> dict[str, bool]:
    """Per evaluation task, whether the trained model answered it rightly."""
    file = folder / "evaluations" / f"step-{steps:06d}" / "trajectories.jsonl"
    return {t.task.id: bool(t.outcome.correct) for t in read_trajectories(file)}


def paired(ours: list[dict[str, bool]], theirs: list[dict[str, bool]]) -> tuple[float, float, float]:
    """Mean difference in accuracy and its 95 % interval, by resampling seeds and, within them, tasks (bootstrap)."""
    rng = random.Random(0)
    tasks = sorted(ours[0])
    differences = [[a[t] - b[t] for t in tasks] for a, b in zip(ours, theirs, strict=True)]
    mean = sum(map(sum, differences)) / (len(differences) * len(tasks))
    drawn = []
    for _ in range(2000):
        seeds = rng.choices(differences, k=len(differences))
        picks = rng.choices(range(len(tasks)), k=len(tasks))
        drawn.append(sum(row[i] for row in seeds for i in picks) / (len(seeds) * len(picks)))
    drawn.sort()
    return mean, drawn[50], drawn[1949]


def report(work: Path, seeds: list[int], steps: int) -> None:
    """Table, chart and JSON of all finished runs."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for arm in ARMS:
        files = [work / f"{arm}-{seed}" / "result.json" for seed in seeds]
        runs[arm] = [json.loads(file.read_text()) for file in files if file.exists()]
    runs = {arm: found for arm, found in runs.items() if found}
    answers = {
        arm: {r["seed"]: right_answers(work / f"{arm}-{r['seed']}", steps) for r in found}
        for arm, found in runs.items()
    }
    arms: dict[str, Any] = {}
    for arm, found in runs.items():
        tasks = sum(len(row) for row in answers[arm].values())
        right = sum(sum(row.values()) for row in answers[arm].values())
        after = [r["after"] for r in found]
        arms[arm] = {
            "seeds": [r["seed"] for r in found],
            "before": sum(r["before"] for r in found) / len(found),
            "after": right / tasks,
            "interval": list(wilson(right, tasks)),
            "worst_seed": min(after),
            "best_seed": max(after),
            "kinds": {k: sum(r["kinds"][k] for r in found) / len(found) for k in found[0]["kinds"]},
            "hit_rate": sum(r["hit_rate"] or 0.0 for r in found) / len(found),
            "steps": sum(r["steps"] for r in found) / len(found),
            "cpu_minutes": sum(r["cpu_seconds"] for r in found) / len(found) / 60,
        }
    against: dict[str, Any] = {}
    for arm in arms:
        common = [s for s in answers.get("decoupled", {}) if s in answers[arm]]
        if arm != "decoupled" and common:
            mean, low, high = paired([answers["decoupled"][s] for s in common], [answers[arm][s] for s in common])
            against[arm] = {"seeds": len(common), "difference": mean, "interval": [low, high]}
    _report.show(
        f"{steps} updates of 8 x 8 rollouts from tiny-half; greedy accuracy on 256 unseen tasks",
        [
            "arm",
            "seeds",
            "before",
            "after",
            "95 %",
            "seeds' range",
            "zoom hits",
            "steps",
            "CPU min",
            "decoupled is ahead by",
        ],
        [
            [
                arm,
                str(len(a["seeds"])),
                f"{a['before']:.1%}",
                f"{a['after']:.1%}",
                f"{a['interval'][0]:.1%}-{a['interval'][1]:.1%}",
                f"{a['worst_seed']:.1%}-{a['best_seed']:.1%}",
                f"{a['hit_rate']:.1%}",
                f"{a['steps']:.2f}",
                f"{a['cpu_minutes']:.1f}",
                "" if arm not in against else _difference(against[arm]),
            ]
            for arm, a in arms.items()
        ],
    )
    longest = max(a["cpu_minutes"] for a in arms.values())
    best = arms.get("decoupled", {}).get("after", 0.0)
    others = [arms[arm]["after"] for arm in ("episode_sum", "outcome_only") if arm in arms]
    result = {
        "environment": _report.environment(("torch", "transformers", "accelerate", "numpy")),
        "settings": SETTINGS | {"max_steps": steps, "train": TRAIN, "evaluation": EVALUATION, "arms": ARMS},
        "arms": arms,
        "decoupled_against": against,
        "targets": {
            "decoupled reaches 90 %": [best >= 0.9, best],
            "under 20 CPU minutes a run": [longest < 20, longest],
            "decoupled ahead of both, beyond chance": [
                len(others) == 2 and all(against[arm]["interval"][0] > 0 for arm in ("episode_sum", "outcome_only")),
                best - max(others, default=0.0),
            ],
        },
        "rows": [{k: v for k, v in r.items() if k != "curve"} for found in runs.values() for r in found],
    }
    _report.write("learn-cpu", result)
    curves = {arm: [mean_curve([r["curve"] for r in found], "rollouts/correct")] for arm, found in runs.items()}
    chart = lines(
        "Sampled rollouts answered rightly, mean of seeds", {a: c[0] for a, c in curves.items()}, "update", "share"
    )
    (_report.RESULTS / "learn-cpu.svg").write_text(chart)


def _difference(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['difference']:+.1%} ({low:+.1%} to {high:+.1%})"


def mean_curve(curves: list[list[dict[str, float]]], name: str, window: int = 5) -> list[tuple[float, float]]:
    """(step, value) of a logged figure: mean over runs, smoothed over `window` updates."""
    by_step: dict[float, list[float]] = {}
    for curve in curves:
        for point in curve:
            if name in point:
                by_step.setdefault(point["step"], []).append(point[name])
    steps = sorted(by_step)
    means = [sum(by_step[s]) / len(by_step[s]) for s in steps]
    return [
        (s, sum(means[max(0, i - window + 1) : i + 1]) / len(means[max(0, i - window + 1) : i + 1]))
        for i, s in enumerate(steps)
    ]


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".tiny/learn"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=SETTINGS["max_steps"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--report", action="store_true", help="only the table of what is there")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)  # ARM:SEED, in this process
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    seeds = list(range(1, options.seeds + 1))
    if options.one:
        arm, seed = options.one.split(":")
        train(arm, int(seed), options.work, options.steps)
        return
    if not options.report:
        from closeup.rl.data.needles import write

        for name, source in (("train", TRAIN), ("evaluation", EVALUATION)):
            if not (options.work / name / "tasks.jsonl").exists():
                needles = source["needles"]
                write(needles["count"], needles["seed"], options.work / name, tuple(needles["seconds"]))
        waiting = [
            (arm, seed)
            for seed in seeds
            for arm in options.arms.split(",")
            if not (options.work / f"{arm}-{seed}" / "result.json").exists()
        ]
        running: list[tuple[str, int, subprocess.Popen[bytes]]] = []
        while waiting or running:
            while waiting and len(running) < options.jobs:
                arm, seed = waiting.pop(0)
                arguments = ["--one", f"{arm}:{seed}", "--work", str(options.work), "--steps", str(options.steps)]
                log_file = (options.work / f"{arm}-{seed}.log").open("ab")
                process = subprocess.Popen(
                    [sys.executable, __file__, *arguments],
                    stdout=log_file,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
                )
                log.info("%s, seed %d: begun", arm, seed)
                running.append((arm, seed, process))
            time.sleep(2)
            for entry in [e for e in running if e[2].poll() is not None]:
                running.remove(entry)
                arm, seed, process = entry
                if process.returncode:
                    raise SystemExit(
                        f"{arm}, seed {seed} ended with {process.returncode}; see {options.work}/{arm}-{seed}.log"
                    )
                log.info("%s, seed %d: done", arm, seed)
    report(options.work, seeds, options.steps)


if __name__ == "__main__":
    main()
