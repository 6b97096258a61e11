"""Rewards as configuration: what is accepted, what is refused and how it is said, and where functions come from."""

from __future__ import annotations

import json
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

import closeup
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import get_preset
from closeup.agent.scoring import StepFacts
from closeup.agent.task import Task
from closeup.agent.trajectory import Outcome, StepRecord, Trajectory
from closeup.rl.advantages import estimate
from closeup.rl.credit import GroupRewards
from closeup.rl.judge import JudgeScorer
from closeup.rl.reward_config import REWARD_PRESETS, RewardConfig, Stream, build_rewards, get_reward_config
from closeup.rl.reward_registry import (
    BUILTINS,
    GROUP,
    RewardError,
    is_scorer,
    load_reward,
    loadable_rewards,
    reward_names,
)
from closeup.rl.rewards import DEFAULT_REWARDS, format_reward
from closeup.rl.scorers import GroupScorer, score_group
from closeup.rl.sufficiency import SufficiencyScorer
from closeup.tools.registry import PluginWarning

TASK = Task(id="t", videos=(Path("a.mp4"),), question="Which?", options=("3", "7"), answer="7")
CODE = '''
from closeup.agent.scoring import StepFacts

def short(facts: StepFacts, *, limit: int = 3) -> float:
    """1 for a thought of at most `limit` characters."""
    return float(len(facts.thought) <= limit)

class Last:
    """What the last step is worth."""
    def __init__(self, worth: float, name: str = "last"):
        self.worth, self.name = worth, name

    def score(self, trajectory):
        return [{self.name: None}] * (len(trajectory.steps) - 1) + [{self.name: self.worth}]

class Several(Last):
    def score(self, trajectory):
        return [{"a": 1.0, "b": None} for _ in trajectory.steps]

class Silent(Last):
    def score(self, trajectory):
        return [{} for _ in trajectory.steps]

class NoScore:
    pass

def no_argument():
    return 1.0

NUMBER = 3
'''


def config(*streams: dict[str, Any]) -> RewardConfig:
    return RewardConfig.model_validate({"streams": list(streams)})


def refused(*streams: dict[str, Any], says: str, **given: Any) -> None:
    with pytest.raises(RewardError, match=says):
        build_rewards(config(*streams), **given)


# --- what a configuration may say ------------------------------------------------------------------------------------


def test_the_default_is_the_default_streams() -> None:
    chosen = build_rewards(RewardConfig())
    assert dict(chosen.immediate) == DEFAULT_REWARDS and chosen.scorers == ()
    assert dict(chosen.weights) == {"format": 0.2, "zoom": 1.0, "answer": 1.0}
    assert RewardConfig().build() == chosen == build_rewards("default")


def test_forms_that_mean_the_same() -> None:
    long = config({"name": "zoom"}, {"name": "answer", "weight": 2.0})
    assert RewardConfig.model_validate({"streams": {"zoom": 1, "answer": 2}}) == long
    assert RewardConfig.model_validate(long.model_dump()) == long
    assert RewardConfig.model_validate_json(json.dumps(long.model_dump(mode="json"))) == long
    assert RewardConfig.model_validate("longvila_r1") == REWARD_PRESETS["longvila_r1"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"streams": []}, "at least 1"),
        ({"streams": {"zoom": 0, "answer": 0}}, "weight 0"),
        ({"streams": [{"name": "zoom"}, {"name": "zoom"}]}, "two streams are called zoom"),
        ({"streams": [{"name": "zoom", "wait": 1}]}, "wait"),
        ({"streams": [{"name": "zoom", "weight": float("nan")}]}, "finite"),
        ({"streams": [{"name": "Zoom in"}]}, "pattern"),
        ({"stream": []}, "stream"),
        ("love_r2", "no reward preset 'love_r2'; accepted: default, love_r1"),
    ],
)
def test_configurations_that_are_refused(given: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        RewardConfig.model_validate(given)


def test_a_stream_of_weight_0_is_recorded_and_trains_nothing() -> None:
    chosen = build_rewards(config({"name": "zoom", "weight": 0}, {"name": "answer"}))
    assert chosen.streams == ("zoom", "answer") and dict(chosen.weights) == {"answer": 1.0}
    assert set(chosen.immediate) == {"zoom", "answer"}


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(RewardError, match="'nowhere'; accepted: default, love_r1"):
        get_reward_config("nowhere")


@pytest.mark.parametrize("name", REWARD_PRESETS)
def test_every_preset_can_be_built(name: str) -> None:
    chosen = build_rewards(name)
    assert set(chosen.weights) <= set(chosen.streams) == {s.name for s in REWARD_PRESETS[name].streams}


# --- functions and options -------------------------------------------------------------------------------------------


def test_options_reach_the_function() -> None:
    chosen = build_rewards(config({"name": "price", "function": "cost", "options": {"per_step": 0, "per_frame": 0.5}}))
    facts = StepFacts(task=TASK, outcome="ok", frames=4)
    assert chosen.immediate["price"](facts) == -2.0
    text = build_rewards(config({"name": "cost", "options": {"per_step": "2.5"}}))  # as a command line has it
    assert text.immediate["cost"](facts) == -2.5


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        ({"name": "zom"}, "no reward 'zom'; did you mean 'zoom'"),
        ({"name": "x", "function": "nothing_like_it"}, "accepted: format, .*judge, or yours as module:function"),
        ({"name": "zoom", "options": {"limit": 1}}, "no option limit; accepted: none"),
        ({"name": "cost", "options": {"per_token": 1}}, "no option per_token; accepted: per_step, per_frame"),
        ({"name": "zoom_gain", "options": {"measure": "dice"}}, "measure .* cannot be 'dice'.*'iou' or 'recall'"),
        ({"name": "cost", "options": {"per_step": "much"}}, "per_step .* cannot be 'much'"),
        ({"name": "gated"}, "needs the option of"),
        ({"name": "gated", "options": {"of": "zoom", "by": "luck"}}, "by .* cannot be 'luck'"),
        ({"name": "sufficiency"}, "needs a policy"),
        ({"name": "judge"}, "the model and base_url"),
        ({"name": "judge", "options": {"model": "m", "base_url": "nowhere"}}, "base_url is like http"),
        ({"name": "x", "function": "no_such_module_at_all:f"}, "cannot be loaded: ModuleNotFoundError"),
        ({"name": "x", "function": "closeup.rl.rewards:no_such"}, "cannot be loaded: AttributeError"),
        ({"name": "x", "function": "closeup.rl.rewards:"}, "module:function or file.py:function"),
        ({"name": "x", "function": "nowhere.py:f"}, "there is no file nowhere.py"),
    ],
)
def test_what_cannot_be_used_says_why(stream: dict[str, Any], says: str) -> None:
    refused(stream, says=says)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "my_rewards.py"
    path.write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return path


@pytest.mark.parametrize("how", ["my_rewards.py", "{path}", "my_rewards"])
def test_functions_of_ones_own(how: str, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "my_rewards":
        monkeypatch.syspath_prepend(mine.parent)
    target = how.format(path=mine)
    stream = {"name": "brief", "function": f"{target}:short", "options": {"limit": 2}}
    chosen = build_rewards(config(stream, {"name": "end", "function": f"{target}:Last", "options": {"worth": 0.5}}))
    assert chosen.immediate["brief"](StepFacts(task=TASK, outcome="ok", thought="abc")) == 0.0
    trajectory = Trajectory(id="t/0", task=TASK, steps=(StepRecord(), StepRecord()), outcome=Outcome(terminated=True))
    (scored,) = score_group([trajectory], chosen.scorers)
    assert [step.rewards for step in scored.steps] == [{"end": None}, {"end": 0.5}], "called as the stream is"
    sys.modules.pop("my_rewards", None)


def test_a_file_is_loaded_once(mine: Path) -> None:
    assert load_reward("my_rewards.py:short") is load_reward(f"{mine}:short")


@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        ("NoScore", {}, "class without a method score"),
        ("NUMBER", {}, "is a int, and not a function"),
        ("no_argument", {}, "takes no argument"),
        ("Last", {}, "needs the option worth"),
        ("Last", {"worth": "a lot"}, "worth .* cannot be 'a lot'"),
        ("short", {"limit": "x"}, "limit .* cannot be 'x'"),
    ],
)
def test_what_is_no_reward_says_why(mine: Path, target: str, options: dict[str, Any], says: str) -> None:
    refused({"name": "x", "function": f"my_rewards.py:{target}", "options": options}, says=says)


def test_a_file_that_breaks_is_not_kept(mine: Path) -> None:
    mine.write_text("raise RuntimeError('not yet')")
    refused({"name": "x", "function": "my_rewards.py:short"}, says="RuntimeError: not yet")
    mine.write_text(CODE)
    assert build_rewards(config({"name": "x", "function": "my_rewards.py:short"})).immediate


def test_a_configured_scorer_gives_one_stream(mine: Path) -> None:
    trajectory = Trajectory(id="t/0", task=TASK, steps=(StepRecord(),), outcome=Outcome(terminated=True))
    several = build_rewards(config({"name": "x", "function": "my_rewards.py:Several", "options": {"worth": 1}}))
    with pytest.raises(ValueError, match="stream 'x' gives the streams a, b"):
        several.scorers[0].score(trajectory)
    silent = build_rewards(config({"name": "x", "function": "my_rewards.py:Silent", "options": {"worth": 1}}))
    assert silent.scorers[0].score(trajectory) == [{"x": None}]


def test_scorers_get_policy_and_preset_and_keep_their_batches() -> None:
    stream = {"name": "enough", "function": "sufficiency", "options": {"credit": "each"}}
    policy, preset = ScriptedPolicy([]), get_preset("tiny")
    refused(stream, says="needs a preset", policy=policy)
    (scorer,) = build_rewards(config(stream), policy=policy, preset=preset).scorers
    assert isinstance(scorer, GroupScorer) and isinstance(scorer.scorer, SufficiencyScorer)  # type: ignore[attr-defined]
    trajectory = Trajectory(id="t/0", task=TASK, steps=(StepRecord(),), outcome=Outcome(terminated=True))
    assert scorer.score_many([trajectory]) == [[{"enough": None}]]
    options = {"model": "m", "base_url": "http://localhost/v1", "workers": 2}
    (judge,) = build_rewards(config({"name": "style", "function": "judge", "options": options})).scorers
    assert isinstance(judge.scorer, JudgeScorer) and judge.scorer.client.model == "m"  # type: ignore[attr-defined]


# --- the presets and their estimators --------------------------------------------------------------------------------


def test_the_love_r1_preset_fits_its_estimator() -> None:
    """Four rollouts of an answer task: zoom and right, zoom and wrong, right at once, unreadable."""
    chosen = build_rewards("love_r1")
    assert chosen.streams == ("format", "answer", "zoom_by_answer")
    nan = np.nan
    form = [[1, 1], [1, 1], [1, nan], [0, nan]]
    answer = [[nan, 1], [nan, 0], [1, nan], [0, nan]]
    by_answer = [[1, nan], [0, nan], [nan, nan], [nan, nan]]
    reached = ~np.isnan(np.array(form))
    group = GroupRewards(chosen.streams, np.array([form, answer, by_answer]), reached)
    (advantages,) = estimate("love_r1", [group], chosen.weights, zoom=None)
    totals = np.array([2.0, 1.0, 2.0, 0.0])
    expected = (totals - totals.mean()) / (totals.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(advantages[:, 0], expected)
    last = np.array([2.0, 1.0])
    np.testing.assert_allclose(advantages[:2, 1], (last - 1.5) / (last.std(ddof=1) + 1e-4))


def test_the_longvila_r1_preset_fits_its_estimator() -> None:
    chosen = build_rewards("longvila_r1")
    values = np.array([[[1.0], [1.0], [0.0], [0.0]], [[1.0], [0.0], [1.0], [0.0]]])
    group = GroupRewards(chosen.streams, values, np.ones((4, 1), np.bool_))
    (advantages,) = estimate("longvila_r1", [group], chosen.weights)
    totals = np.array([1.0, 0.9, 0.1, 0.0])
    np.testing.assert_allclose(advantages[:, 0], (totals - totals.mean()) / (totals.std(ddof=1) + 1e-6))


# --- the registry ----------------------------------------------------------------------------------------------------

Install = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a package with one entry point on the path, as pip would; returns the module's name."""
    made: list[str] = []

    def make(package: str, name: str, code: str = CODE, *, attribute: str = "short") -> str:
        site, module = tmp_path / package, f"mod_{package}"
        info = site / f"{package}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module}:{attribute}\n")
        (site / f"{module}.py").write_text(code)
        monkeypatch.syspath_prepend(site)
        made.append(module)
        return module

    yield make
    for module in made:
        sys.modules.pop(module, None)


def test_the_built_ins_are_there() -> None:
    table = reward_names()
    assert list(table)[: len(BUILTINS)] == list(BUILTINS)
    for name, target in BUILTINS.items():
        assert (table[name].package, table[name].version, table[name].target) == (
            "closeup",
            closeup.__version__,
            target,
        )
        assert callable(load_reward(name))
    assert {name for name in BUILTINS if is_scorer(load_reward(name))} == {
        "zoom_by_answer",
        "gated",
        "sufficiency",
        "judge",
    }
    assert load_reward("format") is format_reward


def test_entry_points_that_closeup_declares_are_its_built_ins() -> None:
    pyproject = Path(__file__).resolve().parents[2] / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    assert project["entry-points"].get(GROUP, BUILTINS) == BUILTINS


def test_a_plugin_is_used_by_its_name(install: Install) -> None:
    install("plug_one", "brief")
    assert reward_names()["brief"].package == "plug_one"
    chosen = build_rewards(config({"name": "brief", "options": {"limit": 9}}))
    assert chosen.immediate["brief"](StepFacts(task=TASK, outcome="ok", thought="abcd")) == 1.0


def test_choosing_built_ins_imports_no_plugin(install: Install) -> None:
    module = install("plug_two", "brief")
    build_rewards("love_r1")
    assert module not in sys.modules


@pytest.mark.parametrize(
    ("code", "attribute", "says"),
    [("import no_such_module_at_all", "short", "ModuleNotFoundError"), ("raise SystemExit(3)", "short", "SystemExit"),
     (CODE, "missing", "AttributeError"), (CODE, "NoScore", "without a method score")],
)  # fmt: skip
def test_a_broken_plugin_is_skipped_with_a_warning_and_an_error_by_name(
    install: Install, code: str, attribute: str, says: str
) -> None:
    install("plug_bad", "broken", code, attribute=attribute)
    with pytest.warns(PluginWarning, match=rf"skipped the reward 'broken': .*{says}.*plug_bad 1.2"):
        found = loadable_rewards()
    assert "broken" not in found and set(BUILTINS) <= set(found)
    refused({"name": "broken"}, says=says)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_rewards("default")


def test_two_sources_of_one_name_are_an_error_that_names_both(install: Install) -> None:
    install("plug_a", "brief")
    install("plug_b", "brief")
    with pytest.raises(RewardError, match=r"two rewards are called 'brief': from plug_a 1.2 .* and plug_b 1.2"):
        reward_names()


def test_a_plugin_cannot_take_the_name_of_a_built_in(install: Install) -> None:
    install("plug_c", "zoom")
    refused({"name": "zoom"}, says="two rewards are called 'zoom': from closeup .* and plug_c")


def test_streams_are_plain_data() -> None:
    stream = Stream(name="zoom", function="zoom_gain", options={"measure": "recall"})
    assert stream.target == "zoom_gain" and Stream(name="zoom").target == "zoom"
    assert Stream.model_validate_json(stream.model_dump_json()) == stream
