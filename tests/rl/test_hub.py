"""The model card, the upload, and the metrics file of a run that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from closeup.rl.callbacks import MetricsFile
from closeup.rl.config import GRPOConfig
from closeup.rl.configfile import ConfigError, checked
from closeup.rl.hub import HubError, model_card, push
from closeup.rl.statistics import summarise


@pytest.fixture
def config() -> GRPOConfig:
    raw: dict[str, Any] = {"output_dir": "runs/mine", "max_steps": 3, "tasks": {"file": "t.jsonl"}, "push_to_hub": True}
    return checked(GRPOConfig, raw | {"hub_model_id": "org/mine", "hub_private_repo": True, "learning_rate": 3e-4})


def test_the_card_says_what_was_done_and_what_came_of_it(config: GRPOConfig) -> None:
    nothing = summarise([])
    card = model_card(config, "grpo", steps=3, before=nothing, after=nothing)
    assert card.startswith("---\nlibrary_name: transformers\nbase_model: tiny-half\n")
    assert "GRPO" in card
    assert card.count("0.0% (0.0% to 100.0%, 0 tasks)") == 2
    settings = json.loads(card.split("```json\n")[1].split("```")[0])
    assert settings["learning_rate"] == 3e-4
    assert "output_dir" not in settings  # a path of this machine
    assert "was not evaluated" in model_card(config, "sft", steps=3)


def test_the_folder_is_uploaded_with_its_card(
    config: GRPOConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def create_repo(self, name: str, **how: Any) -> Any:
            calls.append((name, how))
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, **how: Any) -> None:
            assert (Path(how["folder_path"]) / "README.md").read_text(encoding="utf-8") == "the card"
            calls.append(("upload", how))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    push(tmp_path, "the card", config)
    assert calls[0] == ("org/mine", {"private": True, "exist_ok": True})
    assert calls[1][1]["repo_id"] == "org/mine"


@pytest.mark.parametrize("where", ["create_repo", "upload_folder"])
def test_what_cannot_be_uploaded_is_said_in_a_sentence(
    config: GRPOConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    class Api:
        def create_repo(self, name: str, **how: Any) -> Any:
            self.fail("create_repo")
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, **how: Any) -> None:
            self.fail("upload_folder")

        def fail(self, place: str) -> None:
            if place == where:
                raise ConnectionError("403 Forbidden:\n you have no right")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(HubError) as refused:
        push(tmp_path, "the card", config)
    said = str(refused.value)
    assert "ConnectionError: 403 Forbidden: you have no right" in said
    assert isinstance(refused.value, ConfigError)  # which the command says as a sentence
    if where == "upload_folder":
        assert f"the model is in {tmp_path}" in said
        assert f"hf upload org/mine {tmp_path}" in said
    else:
        assert "the repository org/mine cannot be made" in said


def test_a_resumed_run_takes_back_what_it_will_say_again(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"

    def say(step: int, *steps: int) -> None:
        callback = MetricsFile(path)
        state = SimpleNamespace(global_step=step, is_world_process_zero=True)
        callback.on_train_begin(None, state, None)
        for state.global_step in steps:
            callback.on_log(None, state, None, logs={"loss": float("nan") if state.global_step == 3 else 0.5})

    say(0, 1, 2, 3)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    say(2, 3, 4)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[2]["loss"] is None
    say(0, 1)  # a new run in the same place
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1
