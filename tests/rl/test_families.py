"""Every family trains: SFT and GRPO on its small random checkpoint, frozen, with its vision side, and with adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from closeup.agent.episode import run_episodes
from closeup.agent.messages import Message
from closeup.agent.models.featurecache import FeatureCache
from closeup.agent.models.load import load_adapter
from closeup.agent.models.media import MediaStore
from closeup.agent.models.testing import SyntheticVideo, write_random_checkpoint
from closeup.agent.policies.scripted import ScriptedPolicy
from closeup.agent.preset import Preset
from closeup.agent.task import Task
from closeup.agent.trajectory import Trajectory
from closeup.rl.config import GRPOConfig, SFTConfig
from closeup.rl.configfile import checked
from closeup.rl.grpo import GRPOTrainer
from closeup.rl.sft import SFTTrainer
from closeup.rl.trainer import TreeTrainer
from closeup.tools.video import Clip

# A family is a line: how many linear layers of its language model and of its vision side adapters reach, by the
# default pattern and by `VISION`.
FAMILIES = {
    "internvl": (14, 10),
    "llava_onevision": (14, 10),
    "qwen2_5_vl": (14, 4),
    "qwen3_vl": (21, 14),
    "qwen3_vl_moe": (12, 14),  # experts are no linear layers: adapters reach attention
}
VISION = r".*(vision_tower|visual)\..*(q_proj|k_proj|v_proj|qkv|fc1|fc2|linear_fc1|linear_fc2|attn\.proj)"
NOISE = "def noise(facts):\n    return sum(map(ord, facts.text)) % 7 / 7\n"
SILENT = {"model.vision_tower.post_layernorm.weight", "model.vision_tower.post_layernorm.bias"}
"""Weights of vision sides that no feature depends on: the layer before is what the projector reads."""
WAYS: dict[str, dict[str, Any]] = {
    "frozen": {},
    "vision": {"train_vision": True},
    "lora": {"lora": {"r": 2}},
    "lora on vision": {"lora": {"r": 2, "target_modules": VISION}},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("families")
    return {family: write_random_checkpoint(place / family, family=family) for family in FAMILIES}


@pytest.fixture
def brief(short_preset: Preset) -> Preset:
    """Two messages at most, few frames, the family's own way to tell times."""
    budget = short_preset.budget.model_copy(update={"max_steps": 2, "max_new_tokens": 12, "max_visual_tokens": 4096})
    overview = short_preset.overview.model_copy(update={"max_frames": 6})
    return short_preset.model_copy(update={"budget": budget, "overview": overview, "timestamps": "native"})


@pytest.fixture
def episodes(needle_tasks: list[Task], brief: Preset) -> list[Trajectory]:
    look = '<think>there</think>\n<tool_call>\n{"name": "zoom_clip", "arguments": {"start": 2, "end": 4}}\n</tool_call>'
    answer = '<think>so</think>\n<tool_call>\n{"name": "answer", "arguments": {"choice": "A"}}\n</tool_call>'
    found = run_episodes(needle_tasks[:1], ScriptedPolicy([look, answer]), preset=brief)
    assert not any(t.outcome.failed for t in found)
    return found


Make = Callable[..., TreeTrainer]


@pytest.fixture
def make(
    tmp_path: Path, folders: dict[str, Path], brief: Preset, needle_tasks: list[Task], episodes: list[Trajectory]
) -> Make:
    def trainer(kind: str, family: str, way: str) -> TreeTrainer:
        raw = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "max_steps": 1,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "save_steps": 0,
            **WAYS[way],
        }
        adapter = load_adapter(str(folders[family]), device="cpu", timestamps="native")
        if kind == "sft":
            return SFTTrainer(adapter, checked(SFTConfig, raw | {"trajectories": ["unused"]}), brief, episodes)
        (tmp_path / "noise.py").write_text(NOISE, encoding="utf-8")  # random rollouts earn nothing that is worth having
        raw |= {
            "num_generations": 2,
            "tasks": {"file": "unused"},
            "temperature": 1.0,
            "rewards": {"streams": [{"name": "noise", "function": f"{tmp_path / 'noise.py'}:noise"}]},
        }
        return GRPOTrainer(adapter, checked(GRPOConfig, raw), brief, needle_tasks[:1])

    return trainer


def is_vision(name: str) -> bool:
    return any(part in name for part in ("visual", "vision_tower", "projector", "image_newline"))


def cases() -> Iterator[Any]:
    """By default one way of each kind of training and every family; the others are slow."""
    for family in FAMILIES:
        for kind in ("sft", "grpo"):
            for way in WAYS:
                quick = (kind, way) in (("sft", "vision"), ("sft", "lora"), ("grpo", "frozen"))
                yield pytest.param(
                    family, kind, way, marks=[] if quick else [pytest.mark.slow], id=f"{family}-{kind}-{way}"
                )


@pytest.mark.parametrize(("family", "kind", "way"), list(cases()))
def test_a_family_trains(make: Make, tmp_path: Path, family: str, kind: str, way: str) -> None:
    if "lora" in way:
        pytest.importorskip("peft", reason="the train extra is not installed")
    trainer = make(kind, family, way)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert [line for line in trainer.state.log_history if "loss" in line]
    if way == "frozen":
        assert changed and not any(map(is_vision, changed))
    elif way == "vision":
        assert {is_vision(name) for name in changed} == {True, False}
        assert {name for name in set(before) - changed if is_vision(name)} <= SILENT
    else:
        text, vision = FAMILIES[family]
        reached = {name.split(".lora_")[0] for name, value in trainer.model.named_parameters() if value.requires_grad}
        assert len(reached) == (text if way == "lora" else vision)
        assert changed and all("lora" in name and is_vision(name) == (way == "lora on vision") for name in changed)
    saved = load_adapter(str(tmp_path / "run" / "final"), device="cpu", timestamps="native")
    if "lora" not in way:  # every weight of what was trained is in the folder that --model takes
        trained = trainer.model.state_dict()
        assert all(torch.equal(value, trained[name]) for name, value in saved.model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_kept_on_disk_until_any_weight_of_the_vision_side_changes(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    adapter = load_adapter(str(folders[family]), device="cpu", timestamps="native")
    video = SyntheticVideo(7)
    looks = [Clip(video=video.identity, start=s, end=s + 2, num_frames=4, pixels=56 * 56) for s in (0, 9)]
    shown = adapter.encode([Message.of("user", *looks)], {video.identity: video})
    disk = FeatureCache(tmp_path / "cache")
    with torch.no_grad():
        expected = adapter.encode_clips([shown.frames[item.key] for item in shown.media])
        MediaStore(adapter, max_bytes=0, disk=disk).features(shown.media, lambda item: shown.frames[item.key])
        later = MediaStore(adapter, max_bytes=1 << 20, disk=disk)
        found = later.features(shown.media, lambda item: pytest.fail("decoded again"))
        assert (later.loaded, later.encoded) == (2, 0)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        for module in adapter.vision_modules:  # the first and the last weight of each
            for weight in (list(module.parameters())[0], list(module.parameters())[-1]):
                weight.view(-1)[0] += 0.5
                assert not later.holds(shown.media[0])
                weight.view(-1)[0] -= 0.5
