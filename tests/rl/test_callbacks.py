"""What a run tells: the line of a log, trackers that `report_to` names, and tables given to those that have them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from closeup.rl.callbacks import Narrator, give_table
from closeup.rl.grpo import GRPOTrainer

Make = Callable[..., GRPOTrainer]
ROWS = [{"episode": "a/0", "message": "<answer>"}, {"episode": "", "message": "3"}]


class Tables(ModuleType):
    """Stands for a tracker's package: notes what is logged."""

    def __init__(self, name: str, *, running: bool = True) -> None:
        super().__init__(name)
        self.run = object() if running else None
        self.logged: list[Any] = []

    def Table(self, *, columns: list[str], data: list[list[str]]) -> Any:  # their name
        return columns, data

    def log(self, what: Any) -> None:
        self.logged.append(what)


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_tracker_with_tables_gets_them(tracker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Tables(tracker)
    monkeypatch.setitem(sys.modules, tracker, package)
    give_table(tracker, ROWS)
    give_table(tracker, [])
    assert package.logged == [{"completions": (["episode", "message"], [["a/0", "<answer>"], ["", "3"]])}]


def test_wandb_without_a_run_and_tensorboard_get_none(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {name: Tables(name, running=False) for name in ("wandb", "tensorboard")}
    for name, package in packages.items():
        monkeypatch.setitem(sys.modules, name, package)
        give_table(name, ROWS)
    assert all(not package.logged for package in packages.values())


def test_the_line_says_what_was_cut_only_when_something_was() -> None:
    said: list[str] = []
    state = SimpleNamespace(global_step=1, max_steps=2, is_world_process_zero=True)
    for cut in (0.0, 1.5):
        Narrator(said.append).on_log(None, state, None, {"loss": 0.5, "episodes/cut": cut, "episodes/dropped": cut})
    assert said == ["step 1/2  loss 0.5000", "step 1/2  loss 0.5000  cut 1.5  too long 1.5"]


def test_tensorboard_gets_every_log(make_grpo: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer = make_grpo(
        report_to=["tensorboard"], run_name="first", max_steps=1, num_generations=2, per_device_train_batch_size=1
    )
    trainer.train()
    events = accumulators.EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)
    assert {"train/rollouts/steps", "train/entropy"} <= set(events.Tags()["scalars"])


@pytest.mark.slow  # starts a process of its own: trackio looks for its folder when it is imported
def test_trackio_gets_logs_and_tables(grpo_settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    config = tmp_path / "c.json"  # JSON is YAML
    changes = {"report_to": ["trackio"], "run_name": "first", "log_completions": True, "num_completions_to_print": 1}
    config.write_text(json.dumps(grpo_settings(max_steps=1, num_generations=2, **changes)), encoding="utf-8")
    code = """
import sys
from closeup.app.cli import main
sys.argv = ["closeup", "train", "grpo", "--config", sys.argv[1]]
try:
    main()
finally:
    import json, trackio
    from trackio.sqlite_storage import SQLiteStorage
    projects = SQLiteStorage.get_projects()
    logs = [log for project in projects for log in SQLiteStorage.get_logs(project, "first")]
    print("\\nFOUND " + json.dumps(logs, default=str))
"""
    environment = {
        **os.environ,
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    ran = subprocess.run(
        [sys.executable, "-c", code, str(config)], capture_output=True, text=True, env=environment, timeout=240
    )
    assert ran.returncode == 0, ran.stderr
    logs = json.loads(ran.stdout.split("\nFOUND ")[1].splitlines()[0])
    assert any("train/loss" in log for log in logs)
    (tables,) = [log["completions"] for log in logs if "completions" in log]
    assert "advantage" in json.dumps(tables)
