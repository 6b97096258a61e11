"""A tree forward equals separate forwards of its rows by the stock model: loss and every gradient, vision included."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from closeup.agent.messages import Message
from closeup.agent.models import attention
from closeup.agent.models.load import load_adapter
from closeup.agent.models.oracles import FORMS, stock_logits
from closeup.agent.models.testing import SyntheticVideo, write_random_checkpoint
from closeup.rl import tree as tree_module
from closeup.rl.config import Lora
from closeup.rl.forward import TreeForward
from closeup.rl.rows import Row, Span
from closeup.rl.trainable import trainable_model
from closeup.rl.tree import build_tree
from closeup.tools.video.clip import Clip

VIDEO = SyntheticVideo(3, seconds=60)
OTHER = SyntheticVideo(4, seconds=60)
VIDEOS = {VIDEO.identity: VIDEO, OTHER.identity: OTHER}
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "random"))


@pytest.fixture(scope="module", params=FORMS, ids="-".join)
def adapter(request, tmp_path_factory):
    family, timestamps = request.param
    folder = write_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / family, family=family)
    adapter = load_adapter(str(folder), device="cpu", timestamps=timestamps)
    adapter.model.double()
    return adapter


def skim(end=24.0):
    return Clip(video=VIDEO.identity, start=0, end=end, fps=1, pixels=28 * 28)


def close(start, frames=6):
    # six frames 3 s apart: the clip reaches further in time than in space, where stock positions differ (decision 9)
    return Clip(video=VIDEO.identity, start=start, end=start + 18, num_frames=frames, pixels=28 * 56)


def row_of(adapter, rollout, turns, *, first_step=0, learn=None):
    """A row from `(messages, what the agent says)` turns; `learn`: which turns are learnt (default: all)."""
    ids, media, spans, step = [], [], [], first_step
    for turn, (messages, said) in enumerate(turns):
        encoded = adapter.encode(messages, VIDEOS, first=turn == 0)
        ids += encoded.ids
        media += encoded.media
        wrote = adapter.message_ids(said)
        if learn is None or turn in learn:
            spans.append(Span(step, len(ids), len(ids) + len(wrote)))
            step += 1
        ids += wrote
    return Row(rollout, np.array(ids), tuple(media), adapter.positions(ids, media), tuple(spans))


def question(text="Which digit is in the red box?"):
    return (Message.of("user", skim(), f"\n{text}"),)


def shown(*parts):
    return (Message.of("tool", "<tool_response>\n", *parts, "\n</tool_response>"),)


def growing(adapter):
    """Six rollouts: shared first calls, frames in the middle of branches, one row that is a prefix of others."""
    zoom = "<think>red</think> zoom_clip 3"
    return [
        row_of(adapter, 0, [(question(), zoom), (shown(close(3)), "answer 1"), (shown("no"), "answer 2")]),
        row_of(adapter, 1, [(question(), zoom), (shown(close(3)), "answer 4"), (shown(close(20)), "answer 5")]),
        row_of(adapter, 2, [(question(), zoom)]),
        row_of(adapter, 3, [(question(), "zoom_clip 30 é"), (shown(close(30), close(3)), "answer 1")]),
        row_of(adapter, 4, [(question(), zoom), (shown(close(3)), "answer 1"), (shown("no"), "answer 3")]),
        row_of(adapter, 5, [(question(), zoom), (shown(close(3)), "answer 1"), (shown("no"), "answer 3")]),
    ]


def rebuilt(adapter):
    """Two rollouts whose contexts are built anew at every step, clips sorted by time: three rows each."""

    def context(*clips, words):
        parts = [part for clip in clips for part in (clip, "\n")]
        return (Message.of("user", skim(), "\n", *parts, words),)

    rows = []
    for rollout, (one, two) in enumerate([(close(20), close(5)), (close(20), close(30))]):
        rows.append(row_of(adapter, rollout, [(context(words="look"), f"zoom_clip {rollout}")], first_step=0))
        rows.append(row_of(adapter, rollout, [(context(one, words="look"), "zoom_clip start")], first_step=1))
        both = sorted([one, two], key=lambda clip: clip.start)
        rows.append(row_of(adapter, rollout, [(context(*both, words="answer"), "answer 3")], first_step=2))
    return rows


def forest(adapter):
    """Two groups with nothing in common but the model: several roots."""
    return [
        row_of(adapter, 0, [(question(), "zoom_clip 1"), (shown(close(2)), "answer 1")]),
        row_of(adapter, 1, [((Message.of("system", "box"), *question()), "answer 2")]),
        row_of(adapter, 2, [(question(), "zoom_clip 1"), (shown(close(9)), "answer 2")]),
    ]


def lone(adapter):
    """One episode: a tree of one path."""
    return growing(adapter)[1:2]


SHAPES = {"growing": growing, "rebuilt": rebuilt, "forest": forest, "lone": lone}


def pixels_of(adapter, item):
    return adapter.frames(item, VIDEOS)


def weights_for(tree):
    return torch.from_numpy(np.random.default_rng(0).normal(size=len(tree.targets))).to(torch.float64)


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def by_rows(adapter, rows, weights):
    """The oracle: the stock model, row by row, from pixels; loss and gradients."""
    model, loss, place = adapter.model, 0.0, 0
    implementation = adapter.text_config._attn_implementation
    assert implementation == "sdpa"
    for row in rows:
        pixels = [pixels_of(adapter, item) for item in row.media]
        logits = stock_logits(adapter, row.ids, row.media, pixels, row.positions)
        mask = torch.zeros(logits.shape[-1], dtype=logits.dtype)
        mask[list(adapter.suppressed_ids)] = -torch.inf
        logprobs = ((logits + mask) / TEMPERATURE).log_softmax(-1)
        for span in row.spans:
            chosen = logprobs[
                torch.arange(span.begin - 1, span.end - 1), torch.from_numpy(row.ids[span.begin : span.end])
            ]
            part = (chosen * weights[place : place + len(chosen)].to(chosen)).sum()
            place += len(chosen)
            loss = loss + part
    loss.backward()
    return loss.detach(), gradients(model)


def by_tree(adapter, tree, weights, *, core="segment", two_phase=False, chunk=7):
    """Ours: clips encoded once, one tree; loss and gradients."""
    clips = adapter.encode_clips([pixels_of(adapter, item) for item in tree.media])
    leaves = [features.detach().requires_grad_() for features in clips]
    forward = TreeForward(adapter, core=core, temperature=TEMPERATURE, head_chunk=chunk)
    loss = forward.backward(
        tree, leaves, lambda logprobs, index: (logprobs * weights[index].to(logprobs)).sum(), two_phase=two_phase
    )
    torch.autograd.backward(clips, [leaf.grad for leaf in leaves])
    return loss, gradients(adapter.model)


def worst(found, expected):
    """Largest difference, relative to each tensor's largest value."""
    assert set(found) == set(expected)
    return max(
        float((found[name] - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-30))
        for name in expected
        if float(expected[name].abs().max()) > 1e-9
    )


@pytest.fixture(scope="module")
def oracle(adapter):
    """Rows, tree, weights, and the stock model's loss and gradients, by shape."""
    made = {}
    for shape, make in SHAPES.items():
        rows = make(adapter)
        tree = build_tree(rows, adapter)
        weights = weights_for(tree)
        made[shape] = (rows, tree, weights, *by_rows(adapter, rows, weights))
    return made


@pytest.fixture
def checkpointing(adapter):
    switch = "activation" if hasattr(adapter.model, "activation_checkpointing_enable") else "gradient"
    getattr(adapter.model, f"{switch}_checkpointing_enable")()
    adapter.model.train()
    yield
    getattr(adapter.model, f"{switch}_checkpointing_disable")()
    adapter.model.eval()


@pytest.mark.parametrize("two_phase", [False, True], ids=["packed", "two-phase"])
@pytest.mark.parametrize("core", ["dense", "split", "segment"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_tree_equals_its_rows(adapter, oracle, shape, core, two_phase):
    rows, tree, weights, loss, expected = oracle[shape]
    assert len(tree) < tree.row_tokens or shape == "lone"
    assert any("visual" in name or "vision" in name for name in expected)
    ours, found = by_tree(adapter, tree, weights, core=core, two_phase=two_phase)
    assert abs(float(ours - loss)) <= 1e-9 * abs(float(loss))
    assert worst(found, expected) <= 1e-6


@pytest.mark.parametrize("two_phase", [False, True], ids=["packed", "two-phase"])
@pytest.mark.parametrize("core", ["dense", "split", "segment"])
@pytest.mark.parametrize("shape", ["growing", "rebuilt"])
def test_also_with_gradient_checkpointing(adapter, oracle, checkpointing, shape, core, two_phase):
    _, tree, weights, loss, expected = oracle[shape]
    ours, found = by_tree(adapter, tree, weights, core=core, two_phase=two_phase)
    assert abs(float(ours - loss)) <= 1e-9 * abs(float(loss))
    assert worst(found, expected) <= 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_flex_scores_like_the_others(adapter, oracle, shape):
    """FlexAttention has no backward on a CPU; its gradients are tested where there is a GPU (tests/gpu)."""
    _, tree, _, _, _ = oracle[shape]
    with torch.no_grad():
        features = adapter.encode_clips([pixels_of(adapter, item) for item in tree.media])
        scores = {
            core: TreeForward(adapter, core=core, temperature=TEMPERATURE).scores(tree, features)
            for core in ("dense", "segment", "flex")
        }
    for core in ("segment", "flex"):
        assert (scores[core].logprobs - scores["dense"].logprobs).abs().max() <= 1e-9
        assert (scores[core].entropy - scores["dense"].entropy).abs().max() <= 1e-9


@pytest.mark.parametrize("shape", ["growing", "rebuilt"])
def test_in_single_precision(folder, shape):
    adapter = load_adapter(folder, device="cpu", dtype="float32")
    rows = SHAPES[shape](adapter)
    tree = build_tree(rows, adapter)
    weights = weights_for(tree)
    loss, expected = by_rows(adapter, rows, weights)
    for two_phase in (False, True):
        ours, found = by_tree(adapter, tree, weights, two_phase=two_phase)
        assert abs(float(ours - loss)) <= 1e-5 * abs(float(loss))
        assert worst(found, expected) <= 1e-5


# ---- adapters ------------------------------------------------------------------------------------------------------


def adapters_gradients(adapter, tree, features, weights, *, two_phase):
    loss = TreeForward(adapter, temperature=TEMPERATURE).backward(
        tree, features, lambda logprobs, index: (logprobs * weights[index]).sum(), two_phase=two_phase
    )
    return loss, gradients(adapter.model)


@pytest.mark.parametrize(
    "layers",
    ["q|k|v|o|gate|up|down", "q|v", "k", "gate|up|down"],
    ids=["all", "layer 0 trains no key", "layer 0 trains no value", "layer 0 trains neither"],
)
def test_two_phase_with_adapters(folder, layers):
    """What of the first layer's keys and values no adapter makes hangs on nothing, and needs no gradient."""
    pytest.importorskip("peft", reason="the train extra is not installed")
    adapter = load_adapter(folder, device="cpu")
    adapter.model.double()
    rows = growing(adapter)
    tree = build_tree(rows, adapter)
    weights = weights_for(tree)
    with torch.no_grad():
        features = adapter.encode_clips([pixels_of(adapter, item) for item in tree.media])
    lora = Lora(r=4, target_modules=rf".*language_model\..*({layers})_proj")
    model = trainable_model(adapter, SimpleNamespace(train_vision=False, lora=lora, feature_cache_dir=None))
    for name, value in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide what flows into the A's
            torch.nn.init.normal_(value, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    loss, expected = adapters_gradients(adapter, tree, features, weights, two_phase=False)
    ours, found = adapters_gradients(adapter, tree, features, weights, two_phase=True)
    assert expected and all("lora" in name for name in expected)
    assert min(float(value.abs().max()) for value in expected.values()) > 1e-9
    assert abs(float(ours - loss)) <= 1e-9 * abs(float(loss))
    assert worst(found, expected) <= 1e-6


# ---- half precision ------------------------------------------------------------------------------------------------


def apart(found, expected):
    """Largest distance of a tensor from its counterpart, relative to that one's length: rounding averages out in it."""
    assert set(found) == set(expected)
    return max(
        float((found[name].double() - expected[name].double()).norm() / expected[name].double().norm())
        for name in expected
        if float(expected[name].abs().max()) > 1e-9
    )


@pytest.mark.parametrize(
    ("shape", "core"),
    [
        ("growing", "segment"),
        pytest.param("growing", "dense", marks=pytest.mark.slow),
        pytest.param("growing", "split", marks=pytest.mark.slow),
        pytest.param("rebuilt", "segment", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", ["weights", "autocast"])
def test_in_bfloat16(folder, monkeypatch, shape, core, kind):
    """As near to the rows as bfloat16 allows, and no further from the exact gradients than those are."""
    adapter = load_adapter(folder, device="cpu", dtype="float32")
    rows = SHAPES[shape](adapter)
    tree = build_tree(rows, adapter)
    weights = weights_for(tree)
    _, exact = by_rows(adapter, rows, weights)
    if kind == "weights":
        adapter.model.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast"):
        loss, expected = by_rows(adapter, rows, weights)
        for two_phase in (False, True):
            ours, found = by_tree(adapter, tree, weights, core=core, two_phase=two_phase)
            assert abs(float(ours - loss)) <= 0.02 * abs(float(loss))
            assert apart(found, expected) <= 0.06
            assert apart(found, exact) <= 1.25 * apart(expected, exact)
        monkeypatch.setitem(attention._CORES, core, causal)
        assert apart(by_tree(adapter, tree, weights, core=core)[1], expected) > 0.5  # the bounds above can fail


# ---- controls: each of these must break the equality ---------------------------------------------------------------


def causal(plan, query, key, value, scaling):
    return attention._sdpa(query, key, value, scaling, causal=True)


def broken(adapter, oracle, shape, tree=None):
    _, whole, weights, _, expected = oracle[shape]
    ours, found = by_tree(adapter, tree or whole, weights)
    return worst(found, expected)


def test_control_a_plain_causal_mask(adapter, oracle, monkeypatch):
    monkeypatch.setitem(attention._CORES, "segment", causal)
    assert broken(adapter, oracle, "growing") > 1e-3


@pytest.mark.parametrize("two_phase", [False, True], ids=["packed", "two-phase"])
@pytest.mark.parametrize("order", [(0, 1, 3, 2), (2, 3, 0, 1)], ids=["within a group", "across groups"])
def test_control_permuted_heads(adapter, oracle, monkeypatch, order, two_phase):
    """Query heads in another order; within a group they share keys and values, and it shows all the same."""
    original = attention._CORES["segment"]

    def permuted(plan, query, key, value, scaling):
        return original(plan, query[:, list(order)], key, value, scaling)

    _, tree, weights, _, expected = oracle["growing"]
    assert adapter.text_config.num_attention_heads == len(order)
    monkeypatch.setitem(attention._CORES, "segment", permuted)
    assert worst(by_tree(adapter, tree, weights, two_phase=two_phase)[1], expected) > 1e-3


@pytest.mark.parametrize("shape", ["growing", "rebuilt"])
def test_control_positions_of_the_packed_row(adapter, oracle, shape):
    tree = oracle[shape][1]
    counted = np.broadcast_to(np.arange(len(tree)), tree.positions.shape)
    assert broken(adapter, oracle, shape, dataclasses.replace(tree, positions=counted)) > 1e-3


def test_control_positions_shifted_in_one_branch(adapter, oracle):
    tree = oracle["growing"][1]
    shifted = tree.positions.copy()
    branch = tree.segments[-1]
    shifted[0, branch.start : branch.end] += 1
    assert broken(adapter, oracle, "growing", dataclasses.replace(tree, positions=shifted)) > 1e-4


def test_control_a_tree_over_ids_alone(adapter, monkeypatch):
    """Two clips are the same pads: without media in the key they would be one."""
    other = close(3).model_copy(update={"video": OTHER.identity})
    rows = [
        row_of(adapter, i, [(question(), "zoom_clip"), (shown(clip), "answer 1")])
        for i, clip in enumerate([close(3), other])
    ]
    assert (rows[0].ids == rows[1].ids).all() and (rows[0].positions == rows[1].positions).all()
    whole = build_tree(rows, adapter)
    weights = weights_for(whole)
    _, expected = by_rows(adapter, rows, weights)
    assert worst(by_tree(adapter, whole, weights)[1], expected) <= 1e-6
    original = tree_module._keys

    def only_ids(rows, adapter):
        media, keys = original(rows, adapter)
        for key in keys:
            key[:, 1] = keys[0][:, 1]
        return media, keys

    monkeypatch.setattr(tree_module, "_keys", only_ids)
    merged = build_tree(rows, adapter)
    assert len(merged) < len(whole)
    assert worst(by_tree(adapter, merged, weights)[1], expected) > 1e-3


def test_control_features_of_another_clip(adapter, oracle):
    tree = oracle["growing"][1]
    swapped = tree.feature.copy()
    swapped[-12:] = swapped[:12]
    assert broken(adapter, oracle, "growing", dataclasses.replace(tree, feature=swapped)) > 1e-3


def test_control_the_targets_of_a_fork_are_dropped(adapter, oracle):
    """The last shared token predicts several targets; leaving out all but one is not exact (NeMo Automodel #2564)."""
    _, tree, weights, _, expected = oracle["growing"]
    sources, counts = np.unique(tree.targets.source, return_counts=True)
    assert (counts > 1).any()
    first = np.array([np.flatnonzero(tree.targets.source == source)[0] for source in sources])
    thinned = weights.clone().fill_(0)
    thinned[first] = weights[first]
    _, found = by_tree(adapter, tree, thinned)
    assert worst(found, expected) > 1e-3
