"""Small random Qwen3-VL checkpoints, dense and mixture of experts: see `testing.write_random_checkpoint`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from closeup.agent.models.testing import random_tokenizer, save_random

HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
PATCHES = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,  # one more than there are deepstack levels
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    },
    "initializer_range": 0.3,  # sharp enough for a wrong position or a wrong clip to be seen
    "bos_token_id": None,
}
VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
    "initializer_range": 0.1,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}


def write_qwen3_vl(folder: Path, *, seed: int, vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """A writer of `testing.WRITERS`."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    _write(folder, Qwen3VLConfig, Qwen3VLForConditionalGeneration, seed=seed, vision=vision, text=text)


def write_qwen3_vl_moe(folder: Path, *, seed: int, vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """A writer of `testing.WRITERS`."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    text = {**EXPERTS, **text}
    _write(folder, Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration, seed=seed, vision=vision, text=text)


def _write(
    folder: Path, config_class: Any, model_class: Any, *, seed: int, vision: Mapping[str, Any], text: Mapping[str, Any]
) -> None:
    tokenizer = random_tokenizer(words=" seconds" * 4)  # a time is six tokens
    ids = tokenizer.get_vocab()
    named = {
        "vocab_size": (len(ids) + 63) // 64 * 64,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    config = config_class(
        text_config=TEXT | named | dict(text),
        vision_config=VISION | {"out_hidden_size": text.get("hidden_size", TEXT["hidden_size"])} | dict(vision),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    save_random(folder, model_class, config, tokenizer, seed)
    image = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        **HALVES,
        **PATCHES,
        "size": {"shortest_edge": 32 * 32, "longest_edge": 128 * 128},
    }
    video = {
        "video_processor_type": "Qwen3VLVideoProcessor",
        "processor_class": "Qwen3VLProcessor",
        **HALVES,
        **PATCHES,
        "size": {"shortest_edge": 2 * 32 * 32, "longest_edge": 64 * 128 * 128},
    }
    for name, settings in (("preprocessor_config", image), ("video_preprocessor_config", video)):
        (folder / f"{name}.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
