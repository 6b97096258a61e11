"""What CI checks and no test can know: the environment a fresh install gave, what was skipped, what `make ask` printed.

    python .ci/checks.py installed              the installed distributions: one torch, its CPU build, nothing of CUDA
    python .ci/checks.py skips FILE.xml …       every skip has a reason that is allowed (a skipped test did not run)
    python .ci/checks.py answer FILE            the printed answer is the gold answer of the bundled example

Each prints what it found and exits 1 with the fault in words. Standard library only.
"""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "app" / "examples"

# Packages that would bring a second torch, or CUDA libraries, to a machine that was offered the CPU build.
UNWANTED = re.compile(r"^(torchvision|torchaudio|triton|pytorch-triton|nvidia-.*|cuda-.*)$")

# A skip is allowed only for something a checkout cannot bring along.
ALLOWED_SKIPS = (
    re.compile(r"\.\./shared"),  # real clips beside the checkout of the people who work on it
    re.compile(r"CUDA"),
    re.compile(r"root may read every file"),  # a check of permissions where there are none
)


def installed() -> list[str]:
    """Faults of the installed distributions."""
    names = sorted({re.sub(r"[-_.]+", "-", found.name).lower() for found in distributions() if found.name})
    versions = [found.version for found in distributions() if found.name == "torch"]
    say(f"{len(names)} distributions, torch {', '.join(versions) or 'missing'}")
    faults = [f"{name} is installed: a dependency pulled it" for name in names if UNWANTED.match(name)]
    if len(versions) != 1 or not versions[0].startswith("2.13."):
        faults.append(f"exactly one torch 2.13 is wanted, found {versions}")
    elif not versions[0].endswith("+cpu"):
        faults.append(f"the CPU build was offered, but torch {versions[0]} was taken")
    return faults


def skips(files: list[Path]) -> list[str]:
    """Faults of JUnit reports: tests skipped for a reason that is not allowed, or no test at all."""
    faults = []
    for file in files:
        cases = list(ElementTree.parse(file).iter("testcase"))
        skipped = [(case, found) for case in cases for found in case.iter("skipped")]
        say(f"{file.name}: {len(cases)} tests, {len(skipped)} skipped")
        if not cases:
            faults.append(f"{file.name}: no test ran")
        for case, found in skipped:
            reason = found.get("message") or ""
            if found.get("type") == "pytest.xfail" or any(rule.search(reason) for rule in ALLOWED_SKIPS):
                continue
            faults.append(f"{case.get('classname')}::{case.get('name')} did not run: {reason or 'no reason given'}")
    return faults


def answer(file: Path) -> list[str]:
    """Faults of what `make ask` printed."""
    task = json.loads((EXAMPLES / "tasks.jsonl").read_text(encoding="utf-8").splitlines()[0])
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.read_text(encoding="utf-8"))
    lines = [line for line in plain.splitlines() if re.search(r"\banswer\b", line, re.IGNORECASE)]
    say(f"gold answer {task['answer']!r}; lines that name an answer: {lines}")
    if not any(re.search(rf"(?<!\w){re.escape(str(task['answer']))}(?!\w)", line) for line in lines):
        return [f"`make ask` did not print the right answer, {task['answer']!r}"]
    return []


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def main(arguments: list[str]) -> int:
    match arguments:
        case ["installed"]:
            faults = installed()
        case ["skips", *files] if files:
            faults = skips([Path(file) for file in files])
        case ["answer", file]:
            faults = answer(Path(file))
        case _:
            say(__doc__ or "")
            return 2
    for fault in faults:
        say(f"FAULT: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
