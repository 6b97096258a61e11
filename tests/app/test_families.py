"""`closeup ask` and `eval` on a random checkpoint of every family: no sense is expected, but an end in order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from closeup.agent.models.load import FAMILIES
from closeup.agent.models.testing import write_random_checkpoint
from closeup.agent.preset import get_preset
from closeup.agent.task import load_tasks
from closeup.app.errors import NO_ANSWER
from closeup.rl.data.needles import write

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("families")
    return {family: write_random_checkpoint(place / family, family=family) for family in FAMILIES}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task file of two short films."""
    return write(2, 23, tmp_path_factory.mktemp("needles"), seconds=(16, 18))


@pytest.fixture
def brief(tmp_path: Path) -> Path:
    """The default preset with short messages: what a random model goes on to say is worth no time."""
    preset = get_preset("default")
    changes = {"budget": preset.budget.model_copy(update={"max_new_tokens": 16})}
    changes["overview"] = preset.overview.model_copy(update={"max_frames": 8})
    path = tmp_path / "brief.json"
    path.write_text(preset.model_copy(update=changes).model_dump_json(), encoding="utf-8")
    return path


def check_answer(ran: Any) -> None:
    assert ran.code in (0, NO_ANSWER), ran.err
    found = json.loads(ran.out)
    assert found["visual_tokens"] > 0 and found["steps"] >= 1
    assert (found["answer"] is None) == (ran.code == NO_ANSWER)
    assert found["answer"] is not None or found["reason"]
    assert "Traceback" not in ran.err and "internal error" not in ran.err


@pytest.mark.parametrize("family", FAMILIES)
def test_ask(cli: Cli, folders: dict[str, Path], videos: Path, brief: Path, family: str) -> None:
    video = load_tasks(videos)[0].videos[0]
    check_answer(
        cli("ask", video, "Which?", "--model", folders[family], "--preset", brief, "--max-steps", "2", "--json")
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_ask_with_the_default_preset(
    cli: Cli, folders: dict[str, Path], make_video: Callable[..., Path], family: str
) -> None:
    words = ("ask", make_video(seconds=4.0), "Which?", "--model", folders[family], "--preset", "default", "--json")
    check_answer(cli(*words, "--temperature", "1", "--max-steps", "1"))


@pytest.mark.parametrize("family", FAMILIES)
def test_eval(cli: Cli, folders: dict[str, Path], videos: Path, brief: Path, tmp_path: Path, family: str) -> None:
    words = ("eval", videos, "--model", folders[family], "--preset", brief, "--max-steps", "2")
    ran = cli(*words, "--out", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    overall = json.loads(ran.out)["overall"]
    assert (overall["n"], overall["failed"]) == (2, 0)
    assert "Traceback" not in ran.err
