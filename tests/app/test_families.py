"""`closeup ask` and `closeup eval` on a random checkpoint of a family: the whole way through the command line.

Random weights say nothing sensible, so an episode may end without an answer; what is asked is that it ends in order.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from closeup.agent.models.testing import write_random_checkpoint
from closeup.agent.trajectory import read_trajectories
from closeup.rl.data.needles import write

# A family is a line: tokens per second of a 160 x 90 video's overview (two frames), how a prompt with four seconds of
# it writes the last frame or pair of frames, and how it would write the next one.
FAMILIES = {
    "internvl": (2 * (2 * 4 + 1) * 4, "Frame8: <img>", "Frame9: <img>"),
    "qwen3_vl": (5 * 3, "<3.2 seconds><|vision_start|>", "<4.2 seconds><|vision_start|>"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("families")
    return {
        family: write_random_checkpoint(place / family, family=family, max_position_embeddings=32_768)
        for family in FAMILIES
    }


def no_traceback(*texts: str) -> None:
    assert not any("Traceback" in text for text in texts)


@pytest.mark.parametrize("family", FAMILIES)
def test_ask_runs_on_a_family(cli, folders, make_video, tmp_path, family) -> None:  # type: ignore[no-untyped-def]
    tokens, last, beyond = FAMILIES[family]
    saved = tmp_path / "asked.jsonl"
    ran = cli(
        *("ask", make_video(seconds=4.0, size=(90, 160)), "Which digit?", "--option", "5", "--option", "1"),
        *("--model", folders[family], "--preset", "default", "--max-steps", "2", "--save", saved, "--json"),
    )
    no_traceback(ran.out, ran.err)
    assert ran.code in (0, 1)
    found = json.loads(ran.out)
    assert found["steps"] >= 1
    (trajectory,) = read_trajectories(saved)
    (overview, *_) = trajectory.clips.values()
    assert overview.tokens == tokens * 4
    prompt = AutoTokenizer.from_pretrained(folders[family]).decode(trajectory.steps[0].prompt_ids)
    assert last in prompt and beyond not in prompt
    assert not trajectory.outcome.failed


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_eval_runs_on_a_family(cli, folders, tmp_path, family) -> None:  # type: ignore[no-untyped-def]
    tasks = write(2, 5, tmp_path / "needles", seconds=(16, 18))
    ran = cli(
        *("eval", tasks, "--model", folders[family], "--preset", "default", "--max-steps", "2"),
        *("--out", tmp_path / "out", "--json"),
    )
    no_traceback(ran.out, ran.err)
    assert ran.code == 0
    overall = json.loads(ran.out)["overall"]
    assert (overall["n"], overall["failed"]) == (2, 0)
