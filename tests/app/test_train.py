"""`closeup train` as typed: a run from nothing to a model, stopping and going on, and every refusal in one sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from closeup import extras
from closeup.app.errors import INTERRUPTED, USAGE
from closeup.rl.statistics import Summary

Cli = Callable[..., Any]
NEEDLES = {"count": 2, "seed": 5, "seconds": [16, 18]}
UNSEEN = {"count": 2, "seed": 500_005, "seconds": [16, 18]}


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """`config("grpo", max_steps=3)` writes a small configuration into this test's folder."""

    def write(kind: str, **changes: Any) -> Path:
        raw: dict[str, Any] = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "evaluation": {"tasks": {"needles": UNSEEN}},
            "learning_rate": 1e-5,
            "lr_scheduler_type": "constant",
            "save_steps": 1,
            "max_steps": 1,
        }
        if kind == "grpo":
            raw |= {"tasks": {"needles": NEEDLES}, "num_generations": 2, "per_device_train_batch_size": 2}
        else:
            raw |= {"teacher": {"model": "tiny", "tasks": {"needles": NEEDLES}}}
        path = tmp_path / f"{kind}.yaml"
        path.write_text(yaml.safe_dump(raw | changes), encoding="utf-8")
        return path

    return write


def test_grpo_from_nothing_to_a_model(cli: Cli, config: Callable[..., Path], tmp_path: Path) -> None:
    path = config("grpo")
    ran = cli("train", "grpo", "--config", path, "--log-completions", "true")
    assert ran.code == 0, ran.err
    run = tmp_path / "run"
    lines = ran.out.splitlines()
    assert any(line.startswith("step 0/1  evaluation: ") for line in lines)
    assert any(line.startswith("step 1/1  loss ") and "correct" in line for line in lines)
    assert any("generation 0" in line for line in lines)
    summary = [
        Summary.model_validate_json((run / "evaluations" / name / "summary.json").read_text(encoding="utf-8")).overall
        for name in ("step-000000", "step-000001")
    ]
    assert f"before {summary[0].accuracy:.1%}" in lines[-2]
    assert f"after {summary[1].accuracy:.1%}" in lines[-2]
    assert lines[-1] == str(run / "final")
    card = (run / "final" / "README.md").read_text(encoding="utf-8")
    assert "base_model: tiny-half" in card
    assert f"{summary[1].accuracy:.1%}" in card
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {"loss", "entropy"} <= set(logged[1])
    assert (run / "rollouts" / "generation-000000.jsonl").is_file()
    assert (run / "data" / "needles-5-2-16-18" / "tasks.jsonl").is_file()

    again = cli("train", "grpo", "--config", path)
    assert again.code == USAGE
    assert "holds a run already (up to step 1); go on with --resume" in again.err
    done = cli("train", "grpo", "--config", path, "--log-completions", "true", "--resume")
    assert done.code == 0
    assert done.out.splitlines()[-2:] == lines[-2:]
    other = cli("train", "grpo", "--config", path, "--resume", "--epsilon", "0.1")
    assert other.code == USAGE
    assert "other settings" in other.err

    used = cli("eval", run / "data" / "needles-500005-2-16-18" / "tasks.jsonl", "--model", run / "final", "--json")
    assert used.code == 0
    assert json.loads(used.out)["overall"]["accuracy"] == summary[1].accuracy


def test_sft_learns_from_a_teacher(cli: Cli, config: Callable[..., Path], tmp_path: Path) -> None:
    ran = cli("train", "sft", "--config", config("sft", max_steps=2, learning_rate=1e-3))
    assert ran.code == 0, ran.err
    nll = [float(line.split("nll ")[1].split()[0]) for line in ran.out.splitlines() if "nll" in line]
    assert len(nll) == 2
    assert nll[1] < nll[0]
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    assert len(list((tmp_path / "run" / "data").glob("teacher-*/trajectories.jsonl"))) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rte", "1"], "there is no setting 'learning_rte'; did you mean learning_rate?"),
        (["--epsilon", "7"], "epsilon is 7: input should be less than 1"),
        (["--model", "tiney"], "no model 'tiney'; did you mean 'tiny'?"),
        (["--preset", "tinny"], "no preset 'tinny'"),
        (["--tasks.needles", "null", "--tasks.file", "none.jsonl"], "no task file at none.jsonl"),
        (
            ["--report_to", "[wandb]"],
            "report_to names wandb, which is not installed; install it with: pip install wandb",
        ),
        (["--optim", "adamw_tochr"], "these settings cannot be used here"),
        (["--optim", "adamw_8bit"], "these settings cannot be used here: You need to install `bitsandbytes`"),
        (["--optim", "galore_adamw"], "these settings cannot be used here: You need to install `galore_torch`"),
        (["--optim", "sgd", "--adam_beta1", "0.5"], "adam_beta1 has no effect with optim: sgd"),
        (["--optim", "adafactor", "--adam_epsilon", "1e-6"], "adam_epsilon has no effect with optim: adafactor"),
        (["--rewards", "love_r1", "--advantage", "love_r1"], "no reward stream 'zoom'"),
        (["--advantage_options", "{gamma: abc}"], "gamma is 'abc': input should be a valid number"),
        (["--lora.target_modules", "("], "no regular expression"),
        (["--tasks.needles.seconds", "[5, 500]"], "videos are 16 to 128 whole seconds long"),
        (["--evaluation.tasks.needles", "null", "--evaluation.tasks.file", "none.jsonl"], "no task file at none.jsonl"),
        (["--preset", "tiny", "--model", "tiney"], "no model 'tiney'; did you mean 'tiny'?"),
        (["--rewards", "{streams: [{name: judge, options: {model: m, base_url: nowhere}}]}"], "base_url is like http"),
        (["--rewards", "{streams: {format: 1, sufficiency: 1, nope: 1}}"], "no reward 'nope'"),
        (
            ["--rewards", "{streams: [{name: answer}, {name: gated, options: {of: zoom}}]}"],
            "the stream 'gated' gates 'zoom', which is no stream before it; there are answer",
        ),
        (["--output_dir", __file__], "output_dir takes a folder, and"),
        (["--output_dir", __file__ + "/run"], "is a file or below one"),
        (["--output_dir", "/proc/none"], "output_dir /proc/none cannot be written to"),
        (["--feature_cache_dir", __file__], "feature_cache_dir takes a folder"),
        (["--push_to_hub", "true", "--hub_model_id", "a b/c"], "hub_model_id is 'a b/c'"),
        (["--rewards", "{streams: [{name: anser}]}"], "anser"),
        (["learning_rate"], "expected --key value, got 'learning_rate'"),
        (["--max_steps"], "--max_steps needs a value"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(
    cli: Cli,
    config: Callable[..., Path],
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("closeup.agent.models.load.load_adapter", load)
    ran = cli("train", "grpo", "--config", config("grpo"), *words)
    assert not (tmp_path / "run" / "data").exists()  # no video was made for it
    assert ran.code == USAGE
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert "Traceback" not in ran.err


def test_a_run_is_not_written_over(cli: Cli, config: Callable[..., Path], tmp_path: Path) -> None:
    path, run = config("grpo", save_steps=0), tmp_path / "run"
    (run / "final" / "mine").mkdir(parents=True)
    (run / "final" / "mine" / "notes.txt").write_text("mine", encoding="utf-8")
    for words in ((), ("--resume",)):
        ran = cli("train", "grpo", "--config", path, *words)
        assert ran.code == USAGE
        assert "holds a finished run already" in ran.err
        assert "give another output_dir, or delete that one" in ran.err
    assert (run / "final" / "mine" / "notes.txt").read_text(encoding="utf-8") == "mine"
    (run / "final").rename(tmp_path / "elsewhere")
    (run / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    ran = cli("train", "grpo", "--config", path)
    assert ran.code == USAGE
    assert "holds a run already (metrics.jsonl) that wrote no checkpoint; begin it again with --resume" in ran.err
    assert (run / "metrics.jsonl").read_text(encoding="utf-8") == "{}\n"
    assert not (run / "data").exists()


def test_an_account_that_cannot_upload_is_said_before_anything_is_made(
    cli: Cli, config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create_repo(*args: Any, **how: Any) -> None:
        raise OSError("401 Unauthorized\nInvalid user token")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
    ran = cli("train", "grpo", "--config", config("grpo", push_to_hub=True, hub_model_id="org/mine"))
    assert ran.code == USAGE
    assert (
        "the repository org/mine cannot be made: OSError: 401 Unauthorized Invalid user token; log in with" in ran.err
    )
    assert not (tmp_path / "run" / "data").exists()


def test_files_that_are_no_configuration(cli: Cli, tmp_path: Path) -> None:
    ran = cli("train", "sft", "--config", tmp_path / "none.yaml")
    assert ran.code == USAGE
    assert "cannot read the configuration" in ran.err
    assert cli("train", "sft").code == USAGE


def test_without_the_extra_the_install_line_is_named(
    cli: Cli, config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    ran = cli("train", "grpo", "--config", config("grpo"))
    assert ran.code == USAGE
    assert extras.install_line("train") in ran.err


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(config: Callable[..., Path], tmp_path: Path) -> None:
    path = config("grpo", max_steps=200, save_steps=0, evaluation=None)
    start = "from closeup.app.cli import main; main()"
    command = [sys.executable, "-c", start, "train", "grpo", "--config", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 2/200"):
            break
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, err = process.communicate(timeout=240)
    assert time.monotonic() - began < 200
    assert process.returncode == INTERRUPTED, err
    assert f"go on with: closeup train grpo --config {path} --resume" in err
    assert "Traceback" not in err
    (saved,) = (tmp_path / "run").glob("checkpoint-*")
    assert int(saved.name.split("-")[1]) >= 2
