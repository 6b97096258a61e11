"""The model and the group that `grpo_update.py` measures: random weights, in the proportions of Qwen2.5-VL-7B.

What a token of the 7B model costs is counted as the multiply-adds of the matrices it passes (`Cost`): the text layers
per text or visual token, tower and merger per visual token, the head per target. Attention scores are left out: inside
a frame of 60 tokens they are 1 % of the 7B tower. Here a visual token costs the same share of a text token *in measured
CPU seconds* (`seconds_per_token`, kept in the result): a small tower's matrices run less efficiently than a small text
model's, so that equal multiply-adds would make what encoding once gains look twice as large.

The rollouts are random ids: the work of an update depends on lengths and not on words.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from closeup.agent.models.adapter import Adapter, Media
from closeup.agent.models.load import load_adapter
from closeup.agent.models.testing import write_random_checkpoint
from closeup.agent.trajectory import ClipRecord
from closeup.rl.rows import Row, Span
from closeup.tools.video.clip import Clip

FRAME = (168, 280)  # pixels: 6 x 10 = 60 tokens of 28 x 28 pixels
PATCH, MERGE, TEMPORAL, CHANNELS = 14, 2, 2, 3
WORDS = (32, 240)  # ids of ordinary tokens in the test tokenizer

# config.json of Qwen/Qwen2.5-VL-7B-Instruct
QWEN_7B_TEXT = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
QWEN_7B_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}

TEXT = {
    "hidden_size": 512,
    "intermediate_size": 2704,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "vocab_size": 1536,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    "initializer_range": 0.02,
}
VISION = {
    "depth": 1,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_heads": 4,
    "fullatt_block_indexes": [0],
    "initializer_range": 0.02,
}


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiply-adds of matrices per token: `text` layers, `vision` (tower and merger, per visual token), `head`."""

    text: int
    vision: int
    head: int

    @property
    def vision_to_text(self) -> float:
        return self.vision / self.text

    @property
    def head_to_text(self) -> float:
        return self.head / self.text


def cost_of(text: dict[str, Any], vision: dict[str, Any]) -> Cost:
    """Costs of a Qwen2.5-VL of these settings."""
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    keys = hidden // text["num_attention_heads"] * text["num_key_value_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner
    wide, deep = vision["hidden_size"], vision["depth"]
    patch = CHANNELS * TEMPORAL * PATCH**2 * wide + deep * (4 * wide**2 + 3 * wide * vision["intermediate_size"])
    merged = MERGE**2 * wide
    return Cost(
        text=layer * text["num_hidden_layers"],
        vision=MERGE**2 * patch + merged * merged + merged * hidden,
        head=hidden * text["vocab_size"],
    )


@dataclass(frozen=True, slots=True)
class Scale:
    """How large one measurement is: tokens of the prompt, new tokens of each rollout, rollouts of the group."""

    prompt: int
    new: int = 128
    rollouts: int = 8

    @property
    def frames(self) -> int:
        """As many frames as fit beside 24 tokens of text."""
        return (self.prompt - 24) // (self.frame_tokens + 2)

    @property
    def frame_tokens(self) -> int:
        return FRAME[0] * FRAME[1] // (PATCH * MERGE) ** 2


def arithmetic(text: dict[str, Any], cost: Cost, scale: Scale, *, train_vision: bool) -> dict[str, float]:
    """Multiply-adds of one update (old pass, forward, backward), row by row divided by ours, part by part.

    A backward pass is two forward passes of a matrix, and two and a half of attention (flash attention recomputes the
    scores). The head is the same in all arms and left out. What an update could gain if nothing but this took time.
    """
    prompt, new, rollouts = scale.prompt, scale.new, scale.rollouts
    rows, tree = rollouts * (prompt + new), prompt + rollouts * new
    pairs_apart = rollouts * (prompt + new) ** 2 / 2
    pairs_tree = prompt**2 / 2 + rollouts * (prompt * new + new**2 / 2)
    attention = 2 * text["hidden_size"] * text["num_hidden_layers"] * 4.5
    shown = scale.frames * scale.frame_tokens * cost.vision
    vision_apart, vision_tree = shown * rollouts * (4 if train_vision else 2), shown * (3 if train_vision else 1)
    return {
        "matrices of the text layers": rows / tree,
        "attention": pairs_apart / pairs_tree,
        "vision": vision_apart / vision_tree,
        "all": (4 * cost.text * rows + attention * pairs_apart + vision_apart)
        / (4 * cost.text * tree + attention * pairs_tree + vision_tree),
    }


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """What every arm is given: rows of one prompt, its frames (uint8, 1 x H x W x 3 each), an advantage per row."""

    rows: tuple[Row, ...]
    frames: tuple[np.ndarray[Any, Any], ...]
    advantages: torch.Tensor


def write_model(folder: Path, *, seed: int = 0) -> Path:
    """Write the random checkpoint and return its folder."""
    return write_random_checkpoint(folder, seed=seed, vision=VISION, **TEXT)


def load(folder: Path, *, train_vision: bool) -> Adapter:
    """The checkpoint as every arm uses it: float32, training mode, nothing suppressed (TRL suppresses nothing)."""
    adapter = load_adapter(str(folder), dtype="float32", device="cpu")
    adapter.suppressed_ids = ()
    adapter.model.train()
    for module in adapter.vision_modules:
        module.requires_grad_(train_vision)
    return adapter


def make_group(adapter: Adapter, scale: Scale, *, seed: int = 0) -> Group:
    """One prompt with as many frames as fit, as images (TRL takes no video), and its rollouts."""
    draw = np.random.default_rng([seed, scale.prompt])
    known = adapter.model.config
    words = draw.integers(*WORDS, size=scale.prompt)
    opened, closed, image = known.vision_start_token_id, known.vision_end_token_id, known.image_token_id
    block = [opened, *[image] * scale.frame_tokens, closed]
    text = words[: scale.prompt - len(block) * scale.frames]
    prompt = np.concatenate([text[:8], np.tile(block, scale.frames), text[8:]]).astype(np.int64)
    frames = tuple(draw.integers(0, 256, (1, *FRAME, 3), dtype=np.uint8) for _ in range(scale.frames))
    media = tuple(_media(adapter, number, scale.frame_tokens) for number in range(scale.frames))
    rows = []
    for rollout in range(scale.rollouts):
        ids = np.concatenate([prompt, draw.integers(*WORDS, size=scale.new)])
        ids[scale.prompt] = (
            WORDS[0] + rollout
        )  # rollouts part at their first token: nothing beyond the prompt is shared
        span = Span(0, scale.prompt, len(ids))
        rows.append(Row(rollout, ids, media, adapter.positions(ids, media), (span,)))
    reward = draw.normal(size=scale.rollouts)
    return Group(tuple(rows), frames, torch.from_numpy(reward - reward.mean()).float())


def seconds_per_token(adapter: Adapter, group: Group, *, repeat: int = 7) -> tuple[float, float]:
    """CPU seconds of a visual token in patches, tower and merger, and of a token in the text layers: least of a few."""
    vision, text = [], []
    ids = torch.from_numpy(group.rows[0].ids)[None]
    language = adapter.model.model.language_model
    with torch.no_grad():
        for _ in range(repeat):
            began = time.process_time()
            tokens = sum(map(len, adapter.encode_clips(list(group.frames))))
            vision.append((time.process_time() - began) / tokens)
            began = time.process_time()
            language(inputs_embeds=language.embed_tokens(ids))
            text.append((time.process_time() - began) / ids.shape[1])
    return min(vision), min(text)


def _media(adapter: Adapter, number: int, tokens: int) -> Media:
    clip = Clip(video="synthetic", start=float(number), end=number + 0.5, num_frames=1, pixels=FRAME[0] * FRAME[1])
    return adapter.media(
        ClipRecord(clip=clip, times=(float(number),), size=FRAME, tokens=tokens, digest=f"{number:032d}")
    )
