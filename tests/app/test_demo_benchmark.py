"""The demo's benchmark in miniature: its arithmetic, its schedule, and two questions to the real server."""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
EXAMPLES = Path(__file__).resolve().parents[2] / "app" / "examples"


@pytest.fixture(scope="module")
def demo() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("benchmarks_demo", BENCHMARKS / "demo.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["benchmarks_demo"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCHMARKS))


def test_a_spread(demo: ModuleType) -> None:
    found = demo.spread([float(n) for n in random.Random(0).sample(range(1, 21), 20)])
    assert (found["n"], found["median"], found["p90"], found["most"]) == (20, 10.5, 18.0, 20.0)
    assert demo.spread([3.0, 1.0])["p90"] == 3.0  # nine in ten of two are both
    assert demo.spread([2.0])["median"] == demo.spread([2.0])["p90"] == 2.0
    assert demo.spread([])["median"] is None


def test_the_line_is_that_of_least_squares(demo: ModuleType) -> None:
    draw = np.random.default_rng(0)
    xs = draw.uniform(0, 50, 40)
    ys = 3 + 0.7 * xs + draw.normal(0, 2, 40)
    slope, error = demo.line(xs.tolist(), ys.tolist())
    expected, covariance = np.polyfit(xs, ys, 1, cov="unscaled")
    rest = ys - np.polyval(expected, xs)
    assert slope == pytest.approx(expected[0], rel=1e-9)
    assert error == pytest.approx((covariance[0, 0] * (rest @ rest) / 38) ** 0.5, rel=1e-9)
    assert demo.line([1, 2, 3], [5, 5, 5]) == (0, 0)
    for xs_, ys_ in (([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [1, 2])):
        with pytest.raises(ValueError, match="three points at two places"):
            demo.line(xs_, ys_)


def test_growth_leaves_the_warm_up_out_and_a_leak_is_one(demo: ModuleType) -> None:
    def samples(leak: float) -> list[dict[str, float]]:
        heights = [min(n, 10) * 30 + leak * n + (n % 3) * 0.5 for n in range(1, 51)]
        return [{"questions": n, **dict.fromkeys(demo.USED, height)} for n, height in enumerate(heights, 1)]

    flat, leaking = (demo.growth(samples(leak), 10) for leak in (0.0, 0.4))
    assert demo.steady(flat)["met"] is True and demo.steady(leaking)["met"] is False
    assert leaking["per_question"]["anonymous_mib"]["slope"] == pytest.approx(0.4, abs=0.01)
    assert demo.steady(demo.growth(samples(0.4)[:12], 10)) is None  # two points tell nothing


def state(thought: str = "", calls: Any = (), answer: str | None = None) -> dict[str, Any]:
    return {"steps": [{"thought": thought, "calls": list(calls)}], "answer": answer}


def test_moments_are_the_first_states_that_show_a_thing(demo: ModuleType) -> None:
    card = {"tool": "zoom_clip", "state": "running", "windows": []}
    states = [
        (0.1, state()),
        (0.3, state("The")),
        (0.5, state("The box", [card])),
        (0.9, state("The box", [{**card, "state": "refused"}])),
        (1.1, state("The box", [{**card, "state": "done", "windows": [[1, 2]]}])),
        (1.4, state("The box", [{"tool": "answer", "state": "done", "windows": []}], "6")),
    ]
    assert demo.moments(states) == {"thought": 0.3, "card": 0.5, "look": 1.1, "answer": 1.4}
    assert demo.moments(states[:1]) == {"thought": None, "card": None, "look": None, "answer": None}


@pytest.mark.parametrize(("questions", "clients"), [(50, 4), (50, 1), (7, 3)])
def test_the_schedule_asks_all_and_nobody_twice_in_a_row(demo: ModuleType, questions: int, clients: int) -> None:
    bundled = demo.load_tasks(EXAMPLES / "tasks.jsonl")
    generated = [bundled[0].model_copy(update={"videos": (Path(f"/films/{n}.mp4"),)}) for n in range(40)]
    plan = demo.schedule(questions, clients, list(bundled), generated)
    assert sum(map(len, plan)) == questions and max(map(len, plan)) - min(map(len, plan)) <= 1
    for asked in plan:
        videos = [one.task.videos[0] for one in asked]
        assert all(a != b for a, b in zip(videos, videos[1:], strict=False))
    fresh = [one.task.videos[0] for asked in plan for one in asked if one.way != "example"]
    assert len(set(fresh)) == len(fresh) >= questions // 2 - 1
    assert {one.way for asked in plan for one in asked} == {"example", "allowed", "upload"}


def test_what_a_process_uses(demo: ModuleType, tmp_path: Path) -> None:
    before, cpu = demo.memory(os.getpid()), demo.cpu_seconds(os.getpid())
    block = np.ones(64 << 20, np.uint8)
    path = tmp_path / "film"
    path.write_bytes(bytes(3 << 20))
    assert demo.disk(tmp_path) == 3
    with path.open("rb"):
        path.unlink()
        after = demo.memory(os.getpid())
        assert after["deleted_mib"] - before["deleted_mib"] == 3 and after["files"] == before["files"] + 1
    assert demo.disk(tmp_path) == 0
    assert 60 < after["anonymous_mib"] - before["anonymous_mib"] < 80
    while demo.cpu_seconds(os.getpid()) <= cpu:  # it counts
        block += 1


def test_flags_that_cannot_be(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--clients", "0"], ["--questions", "2"], ["--films", "0"], ["--alone", "-1"]):
        with pytest.raises(SystemExit):
            demo.parse(arguments)
        assert "at least" in capsys.readouterr().err


@pytest.mark.slow
def test_two_questions_to_the_real_demo(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    out = tmp_path / "result.json"
    flags = ["--questions", "2", "--clients", "2", "--alone", "1", "--films", "2", "--only", "default", "--rest", "0"]
    command = [sys.executable, str(BENCHMARKS / "demo.py"), *flags, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["default"]
    assert (found["one"]["questions"], found["several"]["questions"]) == (1, 2)
    assert found["one"]["right"] == 1 and found["one"]["answer_s"]["median"] > 0
    assert found["at_rest"]["anonymous_mib"] > 50 and found["start"]["cpu_s"] > 0.5
    assert [sample["questions"] for sample in found["samples"]] == [1, 2]
    assert found["temporary_files_after_the_end"] == 0
