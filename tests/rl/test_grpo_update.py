"""The update benchmark in miniature: its arms do the same work, its model has the proportions it claims."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = {"prompt": 160, "new": 5, "rollouts": 3}


@pytest.fixture(scope="module", autouse=True)
def path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def model(path):
    return importlib.import_module("_update_model")


@pytest.fixture(scope="module")
def arms(path):
    return importlib.import_module("_update_arms")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return model.write_model(tmp_path_factory.mktemp("update") / "model")


def run(model, arms, folder, arm, *, train_vision=False, change=None):
    """Loss, gradients and frames encoded of one update of one arm."""
    adapter = model.load(folder, train_vision=train_vision)
    group = model.make_group(adapter, model.Scale(**SMALL))
    if change is not None:
        group = change(group)
    update = arms.ARMS[arm](adapter, group)
    encoded = []
    adapter.vision_modules[0].register_forward_pre_hook(
        lambda _, given, named: encoded.append(len(named.get("grid_thw", given[-1]))), with_kwargs=True
    )
    loss = update()
    return loss, {n: p.grad for n, p in adapter.model.named_parameters() if p.grad is not None}, sum(encoded)


@pytest.fixture(scope="module")
def oracle(model, arms, folder):
    return {vision: run(model, arms, folder, "rows_1", train_vision=vision) for vision in (False, True)}


def worst(found, expected):
    assert set(found) == set(expected)
    return max(float((found[name] - expected[name]).abs().max() / expected[name].abs().max()) for name in expected)


@pytest.mark.parametrize("train_vision", [False, True], ids=["frozen tower", "trained tower"])
@pytest.mark.parametrize("arm", ["packed", "two_phase", "rows_1_shared_features", "rows_8", "trl_1", "trl_8"])
def test_every_arm_makes_the_same_update(model, arms, folder, oracle, arm, train_vision, monkeypatch):
    if arm.startswith("trl"):
        inside = pytest.importorskip("trl.trainer.utils", reason="the train extra is not installed")
        monkeypatch.setattr(inside, "_use_triton", inside._use_triton)  # the arm replaces it; put back afterwards
    loss, found, encoded = run(model, arms, folder, arm, train_vision=train_vision)
    assert loss == pytest.approx(oracle[train_vision][0], abs=1e-5)
    assert worst(found, oracle[train_vision][1]) < 1e-4
    assert any("visual" in name for name in found) == train_vision
    frames = model.Scale(**SMALL).frames
    once = arm in ("packed", "two_phase", "rows_1_shared_features")
    assert encoded == (frames if once else 2 * SMALL["rollouts"] * frames)


def test_control_another_advantage_is_another_update(model, arms, folder, oracle):
    def change(group):
        return model.Group(group.rows, group.frames, group.advantages.flip(0))

    assert worst(run(model, arms, folder, "packed", change=change)[1], oracle[False][1]) > 1e-2


def test_rollouts_share_the_prompt_and_nothing_else(model, folder):
    adapter = model.load(folder, train_vision=False)
    scale = model.Scale(**SMALL)
    group = model.make_group(adapter, scale)
    from closeup.rl.tree import build_tree

    tree = build_tree(group.rows, adapter)
    assert [len(row.ids) for row in group.rows] == [165] * 3
    assert len(tree) == 160 + 3 * 5
    assert scale.frames == 2 and len(tree.media) == 2
    assert len(tree.pads) == 2 * 60


def test_the_model_has_the_proportions_of_the_7b_one(model):
    large = model.cost_of(model.QWEN_7B_TEXT, model.QWEN_7B_VISION)
    small = model.cost_of(model.TEXT, model.VISION)
    assert large.text == 28 * (2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    assert large.vision_to_text == pytest.approx(0.394, abs=1e-3)
    assert small.vision_to_text < large.vision_to_text  # in measured seconds they are alike; its matrices are slow ones
    assert small.head_to_text == pytest.approx(large.head_to_text, rel=0.02)


def test_costs_are_those_of_the_real_modules(model, folder):
    """Every weight matrix is used once per token (tower: per patch), so its size is what it costs."""
    adapter = model.load(folder, train_vision=False)
    text = sum(p.numel() for n, p in adapter.model.model.language_model.layers.named_parameters() if p.dim() == 2)
    per_patch = per_token = 0
    for name, p in adapter.model.model.visual.named_parameters():
        if p.dim() >= 2:
            per_token += p.numel() if "merger" in name else 0
            per_patch += p.numel() if "merger" not in name else 0
    cost = model.cost_of(model.TEXT, model.VISION)
    assert cost.text == text
    assert cost.vision == 4 * per_patch + per_token
    assert cost.head == adapter.model.lm_head.weight.numel()


def test_seconds_per_token_are_the_least_of_a_few(model, folder, monkeypatch):
    adapter = model.load(folder, train_vision=False)
    group = model.make_group(adapter, model.Scale(**SMALL))
    clock = iter([0.0, 120.0, 200.0, 365.0, 400.0, 880.0, 900.0, 1395.0])  # 120 visual tokens, 165 of text
    monkeypatch.setattr(model.time, "process_time", lambda: next(clock))
    assert model.seconds_per_token(adapter, group, repeat=2) == (1.0, 1.0)


def test_arithmetic_by_hand(model):
    cost = model.Cost(text=10, vision=4, head=1)
    text = {"hidden_size": 1, "num_hidden_layers": 1}
    found = model.arithmetic(text, cost, model.Scale(prompt=86, new=10, rollouts=2), train_vision=False)
    assert found["matrices of the text layers"] == pytest.approx(2 * 96 / 106)
    assert found["attention"] == pytest.approx((2 * 96**2 / 2) / (86**2 / 2 + 2 * (860 + 50)))
    assert found["vision"] == 4  # 2 rollouts, 2 passes
    trained = model.arithmetic(text, cost, model.Scale(prompt=86, new=10, rollouts=2), train_vision=True)
    assert trained["vision"] == pytest.approx(8 / 3)  # old pass, forward and backward, against one forward and backward


@pytest.mark.slow
def test_the_whole_command(tmp_path):
    """Two arms as a user runs them: result, plot and table."""
    arguments = [
        "--tokens",
        "220",
        "--new",
        "4",
        "--rollouts",
        "2",
        "--repeat",
        "1",
        "--arms",
        "rows_1",
        "packed",
    ]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "grpo_update.py", *arguments, "--out", tmp_path, "--name", "mini"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "mini.json").read_text())
    assert [(row["tokens"], row["arm"]) for row in result["rows"]] == [
        (220, "rows_1"),
        (220, "packed"),
    ]
    for row in result["rows"]:
        assert row["cpu_seconds"] > 0 and row["peak_mib"] > 0
        assert row["gradient_difference"] <= 1e-4
        assert len(row["runs"]) == 1
    assert result["ratios"]["220"]["packed faster than rows_1"] > 0
    assert result["targets"] == {}  # TRL and two_phase were not measured
    svg = ElementTree.fromstring((tmp_path / "mini.svg").read_text())
    assert len(svg.findall("{http://www.w3.org/2000/svg}rect")) == 1 + 4


def test_targets_say_what_was_missed(path):
    main = importlib.import_module("grpo_update")
    ratios = {
        "packed faster than trl_8": 7.0,
        "packed faster than trl_1": 4.5,
        "packed memory of trl_8": 0.2,
        "two_phase memory of rows_1": 1.2,
    }
    assert list(main.targets(ratios).values()) == [[False, 4.5], [True, 0.2], [False, 1.2]]


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--arms", "packed"], "must contain rows_1"), (["--tokens", "40"], "room for one frame")]
)
def test_wrong_settings_are_refused(path, monkeypatch, capsys, arguments, said):
    main = importlib.import_module("grpo_update")
    monkeypatch.setattr(sys, "argv", ["grpo_update.py", *arguments])
    with pytest.raises(SystemExit):
        main.main()
    assert said in capsys.readouterr().err


def test_labels_of_the_chart_are_escaped(path):
    chart = importlib.import_module("_chart")
    svg = ElementTree.fromstring(
        chart.bars("a < b", [("p & q", [("<arm>", 2.0, "2", True), ("none", 0.0, "0", False)])])
    )
    texts = [node.text for node in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["a < b", "p & q", "<arm>", "2", "none", "0"]


def test_gradients_are_finite(oracle):
    assert all(torch.isfinite(grad).all() for _, found, _ in oracle.values() for grad in found.values())
