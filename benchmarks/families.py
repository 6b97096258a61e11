"""What each family of models was seen to do: runs its tests and writes the support table from those that passed.

    python benchmarks/families.py            run them all (minutes on two cores)
    python benchmarks/families.py --check    say whether the table is that of the families there are; runs nothing

A capability of a family is proved by the tests that `CAPABILITIES` assigns to it: "yes" when at least one ran and all
of them passed, "no" when one failed, "untested" when none ran or one was skipped. Nothing else can put a "yes" into
`results/families-cpu.json`, into `agent/models/support.json` (what `closeup models` prints) or into the documents.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _report import RESULTS, ROOT, environment, write

from closeup.agent.models.load import FAMILIES, family_class

SUPPORT = ROOT / "agent" / "models" / "support.json"
PATHS = (
    "tests/agent/models",
    "tests/invariants/test_generation.py",
    "tests/invariants/test_tree.py",
    "tests/rl/test_families.py",
    "tests/app/test_families.py",
)
OWN = {  # files about one family; others are called test_FAMILY.py
    "test_text": "qwen2_5_vl",
    "test_forward": "qwen2_5_vl",
    "test_patches": "qwen2_5_vl",
    "test_positions": "qwen2_5_vl",
}
STOCK = "ids, pixels, positions, logits as the stock library's"
CAPABILITIES: dict[str, Callable[[str, str, dict[str, Any]], bool]] = {
    STOCK: lambda file, name, given: False,  # by file, see `family_of`
    "generation in turns and batches": lambda file, name, given: file == "test_generation",
    "training on trees": lambda file, name, given: name == "test_a_tree_equals_its_rows" and not given["two_phase"],
    "trees in two phases": lambda file, name, given: name == "test_a_tree_equals_its_rows" and given["two_phase"],
    "gradient checkpointing": lambda file, name, given: name == "test_also_with_gradient_checkpointing",
    "SFT": lambda file, name, given: name == "test_a_family_trains" and given["kind"] == "sft",
    "GRPO": lambda file, name, given: name == "test_a_family_trains" and given["kind"] == "grpo",
    "training the vision side": lambda file, name, given: name == "test_a_family_trains" and given["way"] == "vision",
    "LoRA": lambda file, name, given: name == "test_a_family_trains" and "lora" in given["way"],
    "feature cache": lambda file, name, given: name.startswith("test_features_are_kept_on_disk"),
    "`closeup ask` and `eval`": lambda file, name, given: file == "test_families" and name in ("test_ask", "test_eval"),
}
ABSENT = ("vLLM", "audio")
"""What no adapter does yet; a row of its own, so that nobody has to guess."""


class Recorder:
    """A pytest plugin: keeps the tests that prove something, and how each ended."""

    def __init__(self) -> None:
        self.proves: dict[str, list[tuple[str, str]]] = {}
        self.forms: dict[str, tuple[str, str]] = {}
        self.ends: dict[str, str] = {}

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        kept, others = [], []
        for item in items:
            slow = item.get_closest_marker("slow") is not None and item.path.parent.name != "rl"
            proved = [] if slow else list(proofs(item))  # of the slow tests only the ways to train prove something new
            (kept if proved else others).append(item)
            if proved:
                self.proves[item.nodeid] = proved
            form = getattr(item, "callspec", None) and item.callspec.params.get("adapter")
            if proved and isinstance(form, tuple):
                self.forms[item.nodeid] = form
        items[:] = kept
        config.hook.pytest_deselected(items=others)

    def pytest_runtest_logreport(self, report: Any) -> None:
        before = self.ends.get(report.nodeid, "passed")
        self.ends[report.nodeid] = before if report.outcome == "passed" else report.outcome


def proofs(item: Any) -> Iterator[tuple[str, str]]:
    """The (family, capability) pairs that a test proves."""
    file, name = item.path.stem, item.originalname
    given = item.callspec.params if hasattr(item, "callspec") else {}
    own = OWN.get(file) or file.removeprefix("test_")
    if "agent/models" in item.path.as_posix() and own in FAMILIES:
        yield own, STOCK
        if own == "qwen3_vl" and "experts" in name:  # the mixture's own tests, in the file of the dense family
            yield "qwen3_vl_moe", STOCK
        return
    form = given.get("adapter")
    family = form[0] if isinstance(form, tuple) else given.get("family")
    for capability, proves in CAPABILITIES.items():
        if family in FAMILIES and proves(file, name, dict(given)):
            yield family, capability


def verdict(ends: Counter[str]) -> str:
    """ "yes", "no" or "untested", from how the tests of a capability ended."""
    if ends["failed"]:
        return "no"
    return "yes" if ends["passed"] and not ends["skipped"] else "untested"


def facts(family: str) -> dict[str, Any]:
    """What a family's adapter states of itself."""
    cls = family_class(family)
    return {"class": cls.model_class().__name__, "times": {"native": cls.native, "accepted": list(cls.accepted)}}


def result_of(recorder: Recorder) -> dict[str, Any]:
    """The result of a run: per family its facts, its capabilities, and the counts they stand on."""
    counts: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    forms: dict[str, set[str]] = defaultdict(set)
    for node, proved in recorder.proves.items():
        for family, capability in proved:
            counts[family][capability][recorder.ends.get(node, "skipped")] += 1
        if node in recorder.forms and recorder.ends.get(node) == "passed":
            family, form = recorder.forms[node]
            native = family_class(family).native
            forms[family].add(native if form == "native" else form)
    families = {}
    for family in FAMILIES:
        stated = facts(family)
        capabilities = {name: verdict(counts[family][name]) for name in CAPABILITIES} | dict.fromkeys(ABSENT, "no")
        tests = {name: dict(counts[family][name]) for name in CAPABILITIES}
        stated["times"]["tested"] = sorted(forms[family])
        families[family] = {**stated, "capabilities": capabilities, "tests": tests}
    return {"families": families, "table": table(families)}


def table(families: dict[str, Any]) -> dict[str, list[Any]]:
    """Columns and rows of the support table."""
    rows = [["times: its own, others", *(_times(facts["times"]) for facts in families.values())]]
    for capability in (*CAPABILITIES, *ABSENT):
        rows.append([capability, *(facts["capabilities"][capability] for facts in families.values())])
    return {"columns": ["", *(f"`{family}`" for family in families)], "rows": rows}


def _times(times: dict[str, Any]) -> str:
    return ", ".join([times["native"], *(way for way in times["accepted"] if way != times["native"])])


def stale() -> list[str]:
    """What is wrong with the committed table, as sentences; empty when nothing is."""
    path = RESULTS / "families-cpu.json"
    if not path.is_file() or not SUPPORT.is_file():
        return ["there is no support table; run: make support-table"]
    result, shown = json.loads(path.read_text()), json.loads(SUPPORT.read_text())
    found = []
    if list(result["families"]) != list(FAMILIES):
        found.append(f"the table has {', '.join(result['families'])}; there are {', '.join(FAMILIES)}")
        return found
    if shown != support_of(result):
        found.append(f"{SUPPORT.name} is not that of {path.name}")
    if result["table"] != table(result["families"]):
        found.append("the table is not that of its own families")
    for family, known in result["families"].items():
        for capability in CAPABILITIES:
            if known["capabilities"].get(capability) != verdict(Counter(known["tests"].get(capability, {}))):
                found.append(f"{family}: {capability!r} is not what its tests say")
        stated = facts(family)
        if known["class"] != stated["class"] or {**known["times"], "tested": 0} != {**stated["times"], "tested": 0}:
            found.append(f"{family}: its adapter states other facts than the table")
    return found


def support_of(result: dict[str, Any]) -> dict[str, Any]:
    """What `closeup models` reads: the families without their counts."""
    return {
        "families": {
            family: {key: value for key, value in known.items() if key != "tests"}
            for family, known in result["families"].items()
        }
    }


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        for fault in stale():
            sys.stderr.write(f"{fault}; run: make support-table\n")
        return bool(stale())
    import pytest

    recorder = Recorder()
    chosen = "not gpu and not vllm and not browser and not distributed"
    pytest.main(
        [
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            chosen,
            "--timeout",
            "1800",
            *arguments,
            *(str(ROOT / p) for p in PATHS),
        ],
        plugins=[recorder],
    )
    if not recorder.ends:
        sys.stderr.write("no test ran, so nothing is written\n")
        return 1
    result = {
        "environment": environment(("torch", "transformers", "peft", "closeup")),
        "settings": {"command": "make support-table", "marker": chosen, "tests": len(recorder.ends)},
        **result_of(recorder),
    }
    write("families-cpu", result)
    SUPPORT.write_text(json.dumps(support_of(result), indent=1) + "\n", encoding="utf-8")
    missing = [
        f"{family}: {name}"
        for family, known in result["families"].items()
        for name in CAPABILITIES
        if known["capabilities"][name] != "yes"
    ]
    for line in missing:
        sys.stderr.write(f"not proved: {re.sub('`', '', line)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
