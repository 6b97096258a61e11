"""Small random InternVL checkpoints, with the real configuration classes, processor files and chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from closeup.agent.models.testing import random_tokenizer, save_random

NAMED = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *NAMED.values())
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif part['type'] == 'video' %}{{ '<video>\n' }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Renders what the template of the published -hf checkpoints renders: a newline after each image and each video."""


def write(folder: Path, *, seed: int, vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """Write a checkpoint with tiles of 28 x 28 pixels: 4 x 4 patches, shuffled into 2 x 2 tokens.

    `text` may name another `model_type` ("qwen3": InternVL3.5); the default is InternVL3's, qwen2.
    """
    import torch
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    tokenizer = random_tokenizer(SPECIAL, extra_special_tokens=NAMED)
    ids = tokenizer.get_vocab()
    config = InternVLConfig(
        text_config={
            "model_type": "qwen2",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": (len(ids) + 63) // 64 * 64,
            "max_position_embeddings": 4096,
            # as published: dynamic, which changes nothing up to max_position_embeddings
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
            "initializer_range": 0.3,  # sharp enough for a wrong position or a wrong clip to be seen
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": True,
        }
        | dict(text),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "attention_bias": True,
            "image_size": [28, 28],
            "patch_size": [7, 7],
            "initializer_range": 0.1,
            "layer_scale_init_value": 1.0,
        }
        | dict(vision),
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=4,
        tie_word_embeddings=True,
    )

    def drawn(model: Any) -> None:
        embeddings = model.model.vision_tower.embeddings
        for value in (embeddings.position_embeddings, embeddings.cls_token):  # zeros would tell no patch's place
            torch.nn.init.normal_(value, std=0.3)

    tokenizer.chat_template = TEMPLATE
    save_random(folder, InternVLForConditionalGeneration, config, tokenizer, seed, change=drawn)
    side = config.vision_config.image_size[0]
    pixels: dict[str, Any] = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": side, "width": side},
    }
    tiling = {"crop_to_patches": False, "min_patches": 1, "max_patches": 12}
    files = {
        "preprocessor_config.json": {"image_processor_type": "GotOcr2ImageProcessor", **pixels, **tiling},
        "video_preprocessor_config.json": {"video_processor_type": "InternVLVideoProcessor", **pixels},
        "processor_config.json": {"processor_class": "InternVLProcessor", "image_seq_length": 4},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
