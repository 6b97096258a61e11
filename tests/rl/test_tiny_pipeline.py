"""`make tiny` in miniature: every stage runs, a stopped run goes on, and a bad model is not put in place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from closeup.rl.tiny.__main__ import Run
from closeup.rl.tiny.recipe import EPISODES, RECIPE, SKILLS


@pytest.mark.slow
def test_every_stage_runs_and_a_model_that_learned_nothing_is_refused(tmp_path: Path) -> None:
    recipe = replace(
        RECIPE,
        scenes=24,
        drills=3,
        skims=4,
        held_out=2,
        vision_steps=6,
        skills=replace(SKILLS, steps=2),
        episodes=replace(EPISODES, steps=2),
        snapshot_every=1,
        development_tasks=4,
        test_tasks=4,
    )
    with pytest.raises(SystemExit, match="nothing was put in place"):
        Run(tmp_path, 0, recipe).finish()
    assert {"vision", "units.pkl", "skills", "episodes", "half", "evaluation.json"} <= {
        p.name for p in tmp_path.iterdir()
    }
    untouched = {name: (tmp_path / name / "model.safetensors").stat().st_mtime for name in ("vision", "skills")}
    (tmp_path / "episodes" / "closeup.json").unlink()  # as if stopped while it was written
    with pytest.raises(SystemExit):
        Run(tmp_path, 0, recipe).finish()
    assert untouched == {name: (tmp_path / name / "model.safetensors").stat().st_mtime for name in untouched}
    assert (tmp_path / "episodes" / "closeup.json").exists()
