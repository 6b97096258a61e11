"""`.ci/checks.py` finds what it is there to find: each check passes on a sound sample and fails on a faulty one."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def checks(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("ci_checks", root / ".ci" / "checks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(folder: Path, *skips: str, tests: int = 3) -> Path:
    """A JUnit report with `tests` passed tests and one skipped test for each reason."""
    file = folder / "report.xml"
    passed = "".join(f'<testcase classname="t" name="p{i}"/>' for i in range(tests))
    skipped = "".join(
        f'<testcase classname="t" name="s{i}"><skipped type="pytest.skip" message="{reason}"/></testcase>'
        for i, reason in enumerate(skips)
    )
    file.write_text(f"<testsuites><testsuite>{passed}{skipped}</testsuite></testsuites>", encoding="utf-8")
    return file


def test_skips_for_what_a_checkout_cannot_bring_are_fine(checks: ModuleType, tmp_path: Path) -> None:
    assert checks.skips([report(tmp_path, "the clips of ../shared/videos are not here")]) == []


@pytest.mark.parametrize("reason", ["torchcodec is not installed", "ffmpeg is not there", ""])
def test_a_skip_for_anything_else_is_a_fault(checks: ModuleType, tmp_path: Path, reason: str) -> None:
    (fault,) = checks.skips([report(tmp_path, reason)])
    assert fault.startswith("t::s0 did not run")


def test_a_report_without_tests_is_a_fault(checks: ModuleType, tmp_path: Path) -> None:
    assert checks.skips([report(tmp_path, tests=0)]) == ["report.xml: no test ran"]


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        ({"torch": "2.13.0+cpu", "numpy": "2.4.6"}, ""),
        ({"torch": "2.13.0+cpu", "torchvision": "0.28.0"}, "torchvision is installed"),
        ({"torch": "2.13.0+cpu", "nvidia_cublas_cu12": "12.8"}, "nvidia-cublas-cu12 is installed"),
        ({"torch": "2.13.0"}, "the CPU build was offered"),
        ({"torch": "2.14.0+cpu"}, "exactly one torch 2.13"),
        ({"numpy": "2.4.6"}, "exactly one torch 2.13"),
    ],
    ids=str,
)
def test_a_second_torch_or_cuda_is_a_fault(
    checks: ModuleType, monkeypatch: pytest.MonkeyPatch, names: dict[str, str], fault: str
) -> None:
    listed = [SimpleNamespace(name=name, version=version) for name, version in names.items()]
    monkeypatch.setattr(checks, "distributions", lambda: listed)
    found = checks.installed()
    assert len(found) == (1 if fault else 0)
    assert fault in "".join(found)


def test_the_right_answer_is_looked_for_where_an_answer_is_named(checks: ModuleType, tmp_path: Path) -> None:
    gold = json.loads((checks.EXAMPLES / "tasks.jsonl").read_text(encoding="utf-8").splitlines()[0])["answer"]
    shown = tmp_path / "ask.log"
    for text, right in [
        (f"zoom 18 s\n\x1b[1mAnswer\x1b[0m: {gold}\n", True),
        (f"Answer: {gold}{gold}\n", False),
        (f"{gold} frames\nno answer was given\n", False),
    ]:
        shown.write_text(text, encoding="utf-8")
        assert (checks.answer(shown) == []) is right, text


@pytest.mark.parametrize("arguments", [[], ["skips"], ["everything"]])
def test_wrong_arguments_are_refused(checks: ModuleType, arguments: list[str]) -> None:
    assert checks.main(arguments) == 2
