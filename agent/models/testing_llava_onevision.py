"""Small random LLaVA-OneVision checkpoints, with the real configuration classes, processor files and chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from closeup.agent.models.testing import random_tokenizer, save_random

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{{ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Renders what the template of the published checkpoints (llava-hf) renders: videos first, a newline after each."""


def write(folder: Path, *, seed: int, vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """Write a checkpoint with frames of 42 x 42 pixels: 3 x 3 patches, pooled with an odd edge to 4 tokens."""
    import torch
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    tokenizer = random_tokenizer(SPECIAL)
    ids = tokenizer.get_vocab()
    config = LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": (len(ids) + 63) // 64 * 64,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            "initializer_range": 0.3,  # sharp enough for a wrong position or a wrong clip to be seen
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": True,
        }
        | dict(text),
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 42,
            "patch_size": 14,
            "vision_use_head": False,
        }
        | dict(vision),
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )

    def drawn(model: Any) -> None:
        for name, value in model.model.multi_modal_projector.named_parameters():
            torch.nn.init.normal_(value, std=0.3 if "weight" in name else 0.1)

    tokenizer.chat_template = TEMPLATE
    save_random(folder, LlavaOnevisionForConditionalGeneration, config, tokenizer, seed, change=drawn)
    side = config.vision_config.image_size
    pixels = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "rescale_factor": 1 / 255,
        "resample": 3,
        "size": {"height": side, "width": side},
    }
    files = {
        "preprocessor_config.json": {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "image_grid_pinpoints": [[side, side], [side, 2 * side]],
            **pixels,
        },
        "video_preprocessor_config.json": {"video_processor_type": "LlavaOnevisionVideoProcessor", **pixels},
        "processor_config.json": {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": (side // config.vision_config.patch_size) ** 2,
            "vision_feature_select_strategy": "full",
            "image_token": "<image>",
            "video_token": "<video>",
        },
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
