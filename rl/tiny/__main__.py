"""`python -m closeup.rl.tiny`: train closeup-tiny from nothing, evaluate it, and only then put it in place.

Stages, each leaving a file or folder under the work folder and skipped when that is there (so a stopped run goes on):

1. pool      generated videos, encoded, decoded by `closeup.tools.video`, kept as arrays
2. vision    the tower against the text embeddings, then frozen
3. units     features of the pool's events
4. skills    single lookups and short episodes
5. episodes  whole episodes; snapshots on the way
6. half      the snapshot whose accuracy is nearest to one half
7. evaluation of the final model on unseen tasks, through the same path as `closeup eval`
"""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import shutil
import time
from pathlib import Path

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from closeup.agent.policies.transformers_policy import TransformersPolicy
from closeup.agent.preset import get_preset
from closeup.agent.task import load_tasks
from closeup.rl.data.needles import write
from closeup.rl.evaluate import evaluate
from closeup.rl.tiny import pool
from closeup.rl.tiny.checkpoint import new_model, save_checkpoint, shape_of
from closeup.rl.tiny.forward import weights_of
from closeup.rl.tiny.language import Drawer, Stage, train_language
from closeup.rl.tiny.recipe import RECIPE, Recipe
from closeup.rl.tiny.units import SceneUnits, extract
from closeup.rl.tiny.vision import Source, train_vision

HALF = 0.55  # far from finished, and every kind of question begun: what reinforcement learning needs to start from
log = logging.getLogger(__name__)
BUNDLED = Path(__file__).resolve().parents[2] / "agent" / "models"


class Run:
    """One training run in a work folder."""

    def __init__(self, work: Path, seed: int, recipe: Recipe = RECIPE) -> None:
        self.work, self.seed, self.recipe = work, seed, recipe
        work.mkdir(parents=True, exist_ok=True)

    def pool(self) -> Path:
        """Stage 1: the folder of pool files."""
        folder = self.work / "pool"
        spare = self.recipe.held_out
        pool.build(
            folder,
            scenes=self.recipe.scenes + spare,
            drills=self.recipe.drills + spare,
            skims=self.recipe.skims + spare,
        )
        return folder

    def _source(self, files: Path, *, held_out: bool) -> Source:
        sizes = {"scene": self.recipe.scenes, "drill": self.recipe.drills, "skim": self.recipe.skims}
        spare = self.recipe.held_out
        ranges = {sort: range(n, n + spare) if held_out else range(n) for sort, n in sizes.items()}
        items = {sort: pool.load(files, sort, chosen) for sort, chosen in ranges.items()}
        return Source(items["scene"], items["drill"], items["skim"], 2 if held_out else 1)

    def vision(self) -> Path:
        """Stage 2: a checkpoint whose tower is trained."""
        folder = self.work / "vision"
        if not _complete(folder):
            files = self.pool()
            train, test = (self._source(files, held_out=held_out) for held_out in (False, True))
            model = new_model(self.seed)
            found = train_vision(model, train, test, steps=self.recipe.vision_steps)
            log.info("vision, held out: %s", {key: round(value, 3) for key, value in found.items()})
            save_checkpoint(model, folder)
        return folder

    def units(self) -> list[SceneUnits]:
        """Stage 3: features of the pool's events."""
        file = self.work / "units.pkl"
        if not file.exists():
            model = _load(self.vision())
            shape, weights = shape_of(model.config), weights_of(model)
            items = (pool.load(self.work / "pool", "scene", [i])[0] for i in range(self.recipe.scenes))
            found = [extract(item, weights, shape) for item in items]
            file.with_suffix(".part").write_bytes(pickle.dumps(found, protocol=5))
            file.with_suffix(".part").replace(file)
        units: list[SceneUnits] = pickle.loads(file.read_bytes())
        return units

    def language(self) -> Path:
        """Stages 4 and 5: the final checkpoint, with snapshots beside it."""
        final = self.work / "episodes"
        start = self.vision()
        for stage, folder in ((self.recipe.skills, self.work / "skills"), (self.recipe.episodes, final)):
            if not _complete(folder):
                self._stage(stage, start, folder)
            start = folder
        return final

    def _stage(self, stage: Stage, start: Path, folder: Path) -> None:
        model = _load(start)
        model.model.visual.requires_grad_(False)
        torch.manual_seed(self.seed)

        def snapshot(step: int) -> None:
            if step % self.recipe.snapshot_every == 0:
                save_checkpoint(model, self.work / "snapshots" / f"{stage.name}-{step:04d}")

        train_language(model, stage, Drawer(self.units(), stage), seed=self.seed + 11, each=snapshot)
        save_checkpoint(model, folder)

    def half(self) -> Path:
        """Stage 6: the snapshot whose accuracy is nearest to `HALF`."""
        folder = self.work / "half"
        if not _complete(folder):
            scored = {}
            for snapshot in sorted((self.work / "snapshots").iterdir()):
                scored[snapshot] = self.score(snapshot, self.recipe.development_seed, self.recipe.development_tasks)[
                    "accuracy"
                ]
                log.info("snapshot %s: %.3f", snapshot.name, scored[snapshot])
                if scored[snapshot] > 0.75:
                    break
            best = min(scored, key=lambda name: abs(scored[name] - HALF))
            shutil.copytree(best, folder, dirs_exist_ok=True)
        return folder

    def score(self, checkpoint: Path, seed: int, count: int) -> dict[str, float]:
        """Accuracy on `count` generated tasks of `seed`, overall and per kind, by real episodes."""
        folder = self.work / f"tasks-{seed}"
        if not (folder / "tasks.jsonl").exists():
            write(count, seed, folder)
        tasks = list(load_tasks(folder / "tasks.jsonl"))[:count]
        policy = TransformersPolicy(str(checkpoint))
        _, trajectories = evaluate(tasks, policy, get_preset("tiny"), batch=32)
        right: dict[str, list[bool]] = {}
        for trajectory in trajectories:
            for key in ("accuracy", trajectory.task.kind):
                right.setdefault(key, []).append(bool(trajectory.outcome.correct))
        return {key: sum(values) / len(values) for key, values in right.items()}

    def finish(self) -> tuple[Path, Path]:
        """Everything: the final and the half-trained checkpoint, evaluated.

        Raises:
            SystemExit: the final model is not good enough to be put in place.
        """
        began, recipe = time.time(), self.recipe
        final, half = self.language(), self.half()
        scores = {
            name: self.score(folder, recipe.test_seed, recipe.test_tasks)
            for name, folder in (("closeup-tiny", final), ("tiny-half", half))
        }
        result = {**scores, "tasks": recipe.test_tasks, "seconds": round(time.time() - began)}
        (self.work / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        log.info("evaluation: %s", json.dumps(result))
        reached = scores["closeup-tiny"]["accuracy"]
        if reached < recipe.accept:
            raise SystemExit(
                f"the new model answers {reached:.1%} of unseen tasks, less than {recipe.accept:.0%}; "
                f"nothing was put in place. Its checkpoint is {final}."
            )
        return final, half


def main() -> None:
    """Command line: train, evaluate, and copy into the package when good enough."""
    parser = argparse.ArgumentParser(prog="python -m closeup.rl.tiny", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".tiny"), help="folder for everything the run makes")
    parser.add_argument("--out", type=Path, default=None, help="where the checkpoints go; default: <work>/out")
    parser.add_argument("--install", action="store_true", help="put them in place of the bundled ones instead")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    run = Run(options.work, options.seed)
    final, half = run.finish()
    target = BUNDLED if options.install else options.out or options.work / "out"
    for name, folder in (("closeup-tiny", final), ("tiny-half", half)):
        save_checkpoint(_load(folder), target / name, dtype=torch.bfloat16)
    log.info("checkpoints are in %s", target)


def _complete(folder: Path) -> bool:
    return (folder / "closeup.json").exists()  # written last


def _load(folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


if __name__ == "__main__":
    main()
