"""Reward functions and scorers by name: the built-in ones, those of installed packages, and `module:function`.

A package offers rewards as entry points of the group `closeup.rewards` (`speed = "my_package:speed_reward"`; the entry
point's name is the reward's). What is offered is either a function of `StepFacts` (an immediate stream) or a class with
a method `score` (a late one), whose keyword parameters are its options.

Invariants (those of the tools' registry)
1. A name means one reward: two sources of one name are an error that names both; nothing is ever shadowed.
2. A plugin that cannot be loaded costs a `PluginWarning` in a listing, not the program; asked for by name it is an
   error.
3. Only what is asked for is imported.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from closeup import __version__
from closeup.tools.registry import PluginWarning

GROUP = "closeup.rewards"
_REWARDS, _SCORERS = "closeup.rl.rewards", "closeup.rl.scorers"
BUILTINS = {
    "format": f"{_REWARDS}:format_reward",
    "format_thought": f"{_REWARDS}:format_thought_reward",
    "zoom": f"{_REWARDS}:zoom_reward",
    "zoom_overlap": f"{_REWARDS}:zoom_overlap_reward",
    "zoom_iou": f"{_REWARDS}:zoom_iou_reward",
    "zoom_recall": f"{_REWARDS}:zoom_recall_reward",
    "zoom_gain": f"{_REWARDS}:zoom_gain_reward",
    "answer": f"{_REWARDS}:answer_reward",
    "answer_score": f"{_REWARDS}:answer_score_reward",
    "cost": f"{_REWARDS}:cost_reward",
    "love_r1_accuracy": f"{_REWARDS}:love_r1_accuracy",
    "love_r1_format_published": f"{_REWARDS}:love_r1_format_published",
    "longvila_r1_accuracy": f"{_REWARDS}:longvila_r1_accuracy",
    "longvila_r1_format": f"{_REWARDS}:longvila_r1_format",
    "zoom_by_answer": f"{_SCORERS}:ZoomByAnswer",
    "gated": f"{_SCORERS}:Gated",
    "sufficiency": "closeup.rl.sufficiency:SufficiencyScorer",
    "judge": "closeup.rl.judge:JudgeScorer",
}


class RewardError(ValueError):
    """A reward that is not there, cannot be loaded, or cannot be used as configured; the message says what to do."""


@dataclass(frozen=True, slots=True)
class RewardEntry:
    """A reward's name, where it comes from (package and version; "" for a path), and its `module:attribute`."""

    name: str
    package: str
    version: str
    target: str


def reward_names() -> dict[str, RewardEntry]:
    """Every reward that the built-ins and the installed packages offer, by name; nothing is imported.

    Raises:
        RewardError: two sources offer one name.
    """
    table = {name: RewardEntry(name, "closeup", __version__, target) for name, target in BUILTINS.items()}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, _origin(point))):
        entry = RewardEntry(point.name, *_origin(point), point.value)
        other = table.get(point.name)
        if entry.package == "closeup" or entry == other:
            continue
        if other is not None:
            who = " and ".join(f"{e.package} {e.version} ({e.target})" for e in (other, entry))
            raise RewardError(f"two rewards are called {point.name!r}: from {who}. Uninstall one of the packages")
        table[point.name] = entry
    return table


def load_reward(name: str) -> Callable[..., Any]:
    """The function or scorer class that `name` means: a registered name, `module:function` or
    `path/to/file.py:function`.

    Raises:
        RewardError: no such name, or what it means cannot be loaded or is no reward.
    """
    if ":" in name:
        return _load(RewardEntry(name, "", "", name))
    table = reward_names()
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RewardError(
            f"no reward {name!r}; {hint}accepted: {', '.join(table)}, or yours as module:function or file.py:function"
        )
    return _load(table[name])


def loadable_rewards() -> Mapping[str, Callable[..., Any]]:
    """Every registered reward that loads, by name; one that does not is left out with a `PluginWarning`."""
    found = {}
    for name, entry in reward_names().items():
        try:
            found[name] = _load(entry)
        except RewardError as error:
            if entry.package == "closeup":
                raise
            warnings.warn(f"skipped the reward {name!r}: {error}", PluginWarning, stacklevel=2)
    return found


def is_scorer(reward: Any) -> bool:
    """Whether a loaded reward is a scorer class (a late stream), and not a function of `StepFacts`."""
    return isinstance(reward, type) and callable(getattr(reward, "score", None))


def _load(entry: RewardEntry) -> Callable[..., Any]:
    module, _, attribute = entry.target.partition(":")
    origin = f"{entry.target}, of {entry.package} {entry.version}" if entry.package else entry.target
    if not module or not attribute:
        raise RewardError(f"a reward is module:function or file.py:function, got {entry.target!r}")
    try:
        found: Any = _module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # whatever a user's module raises while it is imported
        if entry.package == "closeup":
            raise
        raise RewardError(
            f"the reward {entry.name!r} cannot be loaded: {type(error).__name__}: {error} ({origin})"
        ) from error
    if isinstance(found, type) and not is_scorer(found):
        raise RewardError(
            f"the reward {entry.name!r} is a class without a method score(trajectory) ({origin}); give one that has it,"
            " or a function of StepFacts"
        )
    if not callable(found):
        raise RewardError(
            f"the reward {entry.name!r} is a {type(found).__name__}, and not a function of StepFacts or a class with a"
            f" method score ({origin})"
        )
    return found  # type: ignore[no-any-return]


def _module(name: str) -> ModuleType:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name).resolve()
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    known = f"closeup_reward_{path.stem}_{digest}"
    if known in sys.modules:
        return sys.modules[known]
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {name}")
    spec = importlib.util.spec_from_file_location(known, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[known] = module  # dataclasses and pickling look their module up while it runs
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[known]
        raise
    return module


def _origin(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist is not None else ("an unnamed package", "")
