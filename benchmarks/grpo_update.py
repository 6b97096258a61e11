"""What one policy update costs: ours against row by row and against TRL's `GRPOTrainer`.

    python benchmarks/grpo_update.py                          1k, 4k and 8k tokens, 3 repetitions (about an hour)
    python benchmarks/grpo_update.py --tokens 1024            minutes
    python benchmarks/grpo_update.py --tokens 4096 --train-vision --name grpo_update-vision

One update is the old log-probabilities without gradient, then one forward and backward pass of the clipped loss: the
same rollouts (G = 8 of one prompt, 128 new tokens each, frames of 60 tokens), model (random weights, costs per token in
the ratio of Qwen2.5-VL-7B, `_update_model.py`), loss, passes, precision (float32) and threads for every arm:

- packed, two_phase: this project. The group is one tree, every frame is encoded once.
- rows_1_shared_features: the stock text model row by row, every frame encoded once: what encoding once gives alone.
- rows_1, rows_8: the stock model, one row or all eight at a time.
- trl_1, trl_8: TRL's own `_get_per_token_logps_and_entropies` and `_compute_loss` with a batch of 1 and of 8, frames as
  images. Its pixels are prepared before the clock starts, ours (the patches) within.

All rollouts are equally long, so that nobody pads, which spares the baselines their masks. Every measurement is a
process of its own; arms take turns in random order within each repetition. CPU seconds are user and system time of the
process, memory is the peak of resident memory above the warmed-up model, with the group's pixels. The tower is frozen
unless --train-vision. Gradients are compared with those of rows_1, relative to each tensor's largest value.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import _chart
import _report
from _update_model import QWEN_7B_TEXT, QWEN_7B_VISION, TEXT, VISION, Scale, arithmetic, cost_of, write_model

ARMS = ("packed", "two_phase", "rows_1_shared_features", "rows_1", "rows_8", "trl_1", "trl_8")
ORACLE = "rows_1"
Runs = dict[tuple[int, str], list[dict[str, Any]]]


def run(arm: str, scale: Scale, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One measurement of one arm; the gradients' difference to those of the oracle is added where these are there."""
    gradients = folder / f"{arm}-{scale.prompt}.pt"
    request = folder / f"{arm}-{scale.prompt}.json"
    asked = {
        "arm": arm,
        "model": str(folder / "model"),
        "scale": dataclasses.asdict(scale),
        "threads": options.threads,
        "train_vision": options.train_vision,
        "gradients": str(gradients),
    }
    request.write_text(json.dumps(asked))
    load = os.getloadavg()[0]
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "_update_arms.py", request],
        env={**os.environ, "OMP_NUM_THREADS": str(options.threads), "TRL_EXPERIMENTAL_SILENCE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"arm {arm} at {scale.prompt} tokens failed ({done.returncode}):\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(request.with_suffix(".out.json").read_text())
    return {**found, "load_before": round(load, 2)}


def measured_tokens(model: Path, threads: int) -> tuple[float, float]:
    """CPU seconds of a visual and of a text token of the model at `model`."""
    import torch
    from _update_model import load, make_group, seconds_per_token

    torch.set_num_threads(threads)
    adapter = load(model, train_vision=False)
    return seconds_per_token(adapter, make_group(adapter, Scale(1024)))


def difference(folder: Path, arm: str, prompt: int) -> float:
    """Largest difference of any gradient to the oracle's, relative to its tensor's largest value."""
    import torch

    ours, theirs = (torch.load(folder / f"{name}-{prompt}.pt") for name in (arm, ORACLE))
    if set(ours) != set(theirs):
        raise SystemExit(f"{arm} and {ORACLE} have gradients of other tensors: {sorted(set(ours) ^ set(theirs))[:3]}")
    return max(float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()) for name in theirs)


def row_of(arm: str, scale: Scale, runs: list[dict[str, Any]], gap: float) -> dict[str, Any]:
    """What is kept of an arm at one scale: medians over its runs, and the runs."""
    return {
        "tokens": scale.prompt,
        "arm": arm,
        "cpu_seconds": statistics.median(found["cpu_seconds"] for found in runs),
        "peak_mib": statistics.median(found["peak_bytes"] for found in runs) / 2**20,
        "encodings": runs[0]["encodings"],
        "gradient_difference": gap,
        "runs": runs,
    }


def compare(rows: list[dict[str, Any]], scale: Scale) -> dict[str, Any]:
    """The ratios at one scale; "faster" is how many times fewer CPU seconds, "memory" how many times as much."""
    at = {row["arm"]: row for row in rows if row["tokens"] == scale.prompt}
    pairs = {
        "packed faster than trl_8": ("cpu_seconds", "trl_8", "packed"),
        "packed faster than trl_1": ("cpu_seconds", "trl_1", "packed"),
        "packed faster than rows_1": ("cpu_seconds", "rows_1", "packed"),
        "two_phase faster than trl_8": ("cpu_seconds", "trl_8", "two_phase"),
        "from encoding once": ("cpu_seconds", "rows_1", "rows_1_shared_features"),
        "from sharing the prefix": ("cpu_seconds", "rows_1_shared_features", "packed"),
        "packed memory of trl_8": ("peak_mib", "packed", "trl_8"),
        "two_phase memory of rows_1": ("peak_mib", "two_phase", "rows_1"),
        "two_phase memory of trl_8": ("peak_mib", "two_phase", "trl_8"),
    }
    return {name: at[a][key] / at[b][key] for name, (key, a, b) in pairs.items() if a in at and b in at}


def targets(ratios: dict[str, Any]) -> dict[str, Any]:
    """The issue's three targets, at the longest prompt that was measured."""
    found = {}
    if {"packed faster than trl_8", "packed faster than trl_1"} <= set(ratios):
        least = min(ratios["packed faster than trl_8"], ratios["packed faster than trl_1"])
        found["at least 5 times fewer CPU seconds than TRL at its faster batch"] = [least >= 5, least]
    if "packed memory of trl_8" in ratios:
        found["memory not above TRL's at batch 8"] = [
            ratios["packed memory of trl_8"] <= 1,
            ratios["packed memory of trl_8"],
        ]
    if "two_phase memory of rows_1" in ratios:
        value = ratios["two_phase memory of rows_1"]
        found["two_phase memory within 1.1 times that of rows_1"] = [value <= 1.1, value]
    return found


def show(rows: list[dict[str, Any]], scales: list[Scale]) -> None:
    """Print one table per scale."""
    for scale in scales:
        columns = ["arm", "CPU s", "peak MiB", "frames encoded", "gradient difference"]
        at = [row for row in rows if row["tokens"] == scale.prompt]
        _report.show(
            f"one update, {scale.prompt} tokens, {scale.rollouts} rollouts of {scale.new}",
            columns,
            [
                [
                    row["arm"],
                    f"{row['cpu_seconds']:.2f}",
                    f"{row['peak_mib']:.0f}",
                    str(row["encodings"]),
                    f"{row['gradient_difference']:.1e}",
                ]
                for row in at
            ],
        )


def draw(rows: list[dict[str, Any]], scales: list[Scale]) -> str:
    """The plot: CPU seconds and peak memory at each scale."""
    panels: list[_chart.Panel] = []
    for scale in scales:
        at = [row for row in rows if row["tokens"] == scale.prompt]
        for key, unit in (("cpu_seconds", "CPU seconds"), ("peak_mib", "peak MiB above the model")):
            bars = [
                (
                    row["arm"],
                    row[key],
                    f"{row[key]:.1f}" if key == "cpu_seconds" else f"{row[key]:.0f}",
                    row["arm"] in ARMS[:2],
                )
                for row in at
            ]
            panels.append((f"{scale.prompt} tokens: {unit}", bars))
    return _chart.bars(f"One GRPO update, {scales[0].rollouts} rollouts of {scales[0].new} new tokens", panels)


def result_of(
    runs: Runs,
    gaps: dict[tuple[int, str], float],
    scales: list[Scale],
    options: argparse.Namespace,
    seconds: tuple[float, float],
) -> dict[str, Any]:
    """All that is written; `seconds` of a visual and of a text token, as measured."""
    rows = [
        row_of(arm, s, runs[s.prompt, arm], gaps[s.prompt, arm])
        for s in scales
        for arm in options.arms
        if (s.prompt, arm) in runs
    ]
    ours, large = cost_of(TEXT, VISION), cost_of(QWEN_7B_TEXT, QWEN_7B_VISION)
    seven = dataclasses.replace(ours, vision=round(large.vision_to_text * ours.text))
    ratios = {str(scale.prompt): compare(rows, scale) for scale in scales}
    return {
        "environment": _report.environment(("torch", "transformers", "trl", "numpy")),
        "settings": {
            "command": "python benchmarks/grpo_update.py " + " ".join(sys.argv[1:]),
            "threads": options.threads,
            "repeat": options.repeat,
            "train_vision": options.train_vision,
            "seed": 0,
            "scales": [{**dataclasses.asdict(s), "frames": s.frames} for s in scales],
            "text": TEXT,
            "vision": VISION,
            "vision_to_text": {
                "Qwen2.5-VL-7B, multiply-adds": large.vision_to_text,
                "here, CPU seconds": seconds[0] / seconds[1],
                "here, multiply-adds": ours.vision_to_text,
            },
            "head_to_text": {"Qwen2.5-VL-7B": large.head_to_text, "here": ours.head_to_text},
        },
        "rows": rows,
        "ratios": ratios,
        "arithmetic": {str(s.prompt): arithmetic(TEXT, seven, s, train_vision=options.train_vision) for s in scales},
        "targets": targets(ratios[str(scales[-1].prompt)]),
    }


def main() -> None:
    """Measure, print the tables, write result and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 8192], help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=128, help="new tokens of each rollout")
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train-vision", action="store_true", help="the tower learns too")
    parser.add_argument("--name", default="grpo_update-cpu", help="of the result in benchmarks/results")
    parser.add_argument("--out", type=Path, help="folder for the result, instead of benchmarks/results")
    options = parser.parse_args()
    if ORACLE not in options.arms:
        parser.error(f"--arms must contain {ORACLE}, which the gradients are compared with; got {options.arms}")
    scales = [Scale(tokens, options.new, options.rollouts) for tokens in sorted(options.tokens)]
    if scales[0].frames < 1:
        parser.error(f"--tokens must leave room for one frame of {scales[0].frame_tokens} tokens beside 26 others")
    if options.out:
        _report.RESULTS = options.out
    turns = random.Random(0)
    runs: Runs = {}
    gaps: dict[tuple[int, str], float] = {}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        write_model(folder / "model")
        seconds = measured_tokens(folder / "model", options.threads)
        print(f"a visual token costs {seconds[0] / seconds[1]:.2f} of a text token here", flush=True)
        for _ in range(options.repeat):
            for scale in scales:
                order = [arm for arm in options.arms if arm != ORACLE]
                turns.shuffle(order)
                for arm in (ORACLE, *order):  # the oracle first: what it leaves is what the others are compared with
                    found = run(arm, scale, options, folder)
                    gaps[scale.prompt, arm] = difference(folder, arm, scale.prompt)
                    runs.setdefault((scale.prompt, arm), []).append(found)
                    print(
                        scale.prompt,
                        arm,
                        f"{found['cpu_seconds']:.2f} CPU s",
                        f"{found['peak_bytes'] >> 20} MiB",
                        flush=True,
                    )
                measured = [s for s in scales if (s.prompt, ORACLE) in runs]
                result = result_of(runs, gaps, measured, options, seconds)
                _report.write(options.name, result)
                (_report.RESULTS / f"{options.name}.svg").write_text(draw(result["rows"], measured))
    show(result["rows"], scales)
    for name, (met, value) in result["targets"].items():
        print(f"{'met' if met else 'MISSED'}: {name}: {value:.2f}")


if __name__ == "__main__":
    main()
