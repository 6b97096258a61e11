"""`closeup models`, and the support table: what is committed is what tests that ran have shown."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from closeup.agent.models.load import FAMILIES
from closeup.app import models

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def families() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_families", ROOT / "benchmarks" / "families.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_table_is_that_of_the_families_and_of_the_tests_that_ran(families: ModuleType) -> None:
    assert families.stale() == []


def test_a_table_that_somebody_typed_is_noticed(
    families: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = json.loads((families.RESULTS / "families-cpu.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(families, "RESULTS", tmp_path)
    monkeypatch.setattr(families, "SUPPORT", tmp_path / "support.json")
    assert "there is no support table" in families.stale()[0]

    def faults(result: dict[str, Any]) -> list[str]:
        (tmp_path / "families-cpu.json").write_text(json.dumps(result), encoding="utf-8")
        (tmp_path / "support.json").write_text(json.dumps(families.support_of(committed)), encoding="utf-8")
        found: list[str] = families.stale()
        return found

    assert faults(committed) == []
    claimed = json.loads(json.dumps(committed))
    claimed["families"]["qwen2_5_vl"]["tests"]["GRPO"] = {"passed": 3, "failed": 1}
    assert any("qwen2_5_vl: 'GRPO' is not what its tests say" in fault for fault in faults(claimed))
    claimed = json.loads(json.dumps(committed))
    claimed["table"]["rows"][3][1] = "YES!"
    assert "the table is not that of its own families" in faults(claimed)
    claimed = json.loads(json.dumps(committed))
    claimed["families"]["qwen2_5_vl"]["times"]["native"] = "none"
    assert any("states other facts" in fault for fault in faults(claimed))
    del claimed["families"]["qwen2_5_vl"]
    assert "there are internvl" in faults(claimed)[0]


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ({"passed": 2}, "yes"),
        ({}, "untested"),
        ({"passed": 2, "skipped": 1}, "untested"),
        ({"passed": 9, "failed": 1}, "no"),
        ({"skipped": 1}, "untested"),
    ],
)
def test_yes_needs_tests_that_all_passed(families: ModuleType, ends: dict[str, int], said: str) -> None:
    assert families.verdict(Counter(ends)) == said


def item(path: str, name: str, **params: Any) -> Any:
    return SimpleNamespace(path=Path(path), originalname=name, callspec=SimpleNamespace(params=params), nodeid=name)


@pytest.mark.parametrize(
    ("found", "proved"),
    [
        (item("tests/agent/models/test_internvl.py", "test_x"), ("internvl", "STOCK")),
        (item("tests/agent/models/test_text.py", "test_x"), ("qwen2_5_vl", "STOCK")),
        (item("tests/agent/models/test_media.py", "test_x"), None),
        (item("tests/agent/models/test_qwen3_vl.py", "test_x"), ("qwen3_vl", "STOCK")),
        (
            item(
                "tests/invariants/test_tree.py",
                "test_a_tree_equals_its_rows",
                adapter=("internvl", "native"),
                two_phase=True,
            ),
            ("internvl", "trees in two phases"),
        ),
        (item("tests/invariants/test_tree.py", "test_flex", adapter=("internvl", "native")), None),
        (
            item("tests/rl/test_families.py", "test_a_family_trains", family="qwen3_vl", kind="grpo", way="frozen"),
            ("qwen3_vl", "GRPO"),
        ),
        (item("tests/app/test_families.py", "test_ask", family="nobody"), None),
    ],
)
def test_what_a_test_proves(families: ModuleType, found: Any, proved: tuple[str, str] | None) -> None:
    given = list(families.proofs(found))
    expected = [] if proved is None else [(proved[0], getattr(families, proved[1], proved[1]))]
    assert given == expected


def test_a_failure_in_setup_or_call_is_a_failure(families: ModuleType) -> None:
    recorder = families.Recorder()
    test = item("tests/app/test_families.py", "test_ask", family="internvl")
    recorder.proves[test.nodeid] = list(families.proofs(test))
    for outcome in ("passed", "failed", "passed"):
        recorder.pytest_runtest_logreport(SimpleNamespace(nodeid=test.nodeid, outcome=outcome))
    known = families.result_of(recorder)["families"]["internvl"]["capabilities"]
    assert known["`closeup ask` and `eval`"] == "no" and known["SFT"] == "untested"


def test_models_prints_every_family(cli: Callable[..., Any]) -> None:
    ran = cli("models")
    assert ran.code == 0, ran.err
    assert all(family in ran.out for family in FAMILIES)
    assert "closeup doctor" in ran.out
    found = json.loads(cli("models", "--json").out)
    assert list(found) == list(FAMILIES)
    for facts in found.values():
        assert facts["class"].endswith("ForConditionalGeneration")
        assert facts["times"]["native"] in facts["times"]["accepted"]
        assert set(facts["capabilities"].values()) <= {"yes", "no", "untested"}


def test_a_family_without_a_record_says_so(monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any]) -> None:
    monkeypatch.setitem(models.FAMILIES, "new", "closeup.agent.models.new:New")
    assert models.support()["new"]["class"] == models.UNTESTED
    assert "new" in cli("models").out
