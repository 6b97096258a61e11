"""The shape of closeup-tiny and its checkpoint folder: an ordinary Qwen2.5-VL folder that stock loaders accept.

Besides weights, configuration and tokenizer the folder holds the processor files that `AutoProcessor` and vLLM read,
and `closeup.json`, which names the preset that the model was trained for.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from closeup.rl.tiny import vocabulary as v
from closeup.rl.tiny.forward import MEAN, STD, Shape

WIDTH = 192
_TEMPLATE = """\
{%- if tools or (messages and messages[0].role == 'system') -%}
<|im_start|>system
{% if messages and messages[0].role == 'system' -%}
{%- if messages[0].content is string -%}
{{ messages[0].content }}
{%- else -%}
{%- for part in messages[0].content -%}
{%- if part.text is defined -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endif -%}
{%- if tools %}
# Tools
{% for tool in tools %}
{{ tool | tojson }}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endif -%}
{%- for message in messages -%}
{%- if not (loop.first and message.role == 'system') -%}
<|im_start|>{{ 'user' if message.role == 'tool' else message.role }}
{% if message.role == 'tool' -%}
<tool_response>
{% endif -%}
{%- if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content or [] -%}
{%- if part.type == 'image' or part.image is defined or part.image_url is defined -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' or part.video is defined -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.text is defined -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message.tool_calls -%}
{%- for call in message.tool_calls -%}
{%- set function = call.function if call.function is defined else call -%}
<tool_call>
{"name": "{{ function.name }}", "arguments": {{ function.arguments | tojson }}}
</tool_call>
{%- endfor -%}
{%- endif -%}
{%- if message.role == 'tool' %}
</tool_response>
{%- endif -%}
<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def build_config() -> Qwen2_5_VLConfig:
    """The architecture: 2.7 million parameters, text width 192 in 4 layers, vision width 128 in 3 layers."""
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": v.ROWS,
            "hidden_size": WIDTH,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "use_sliding_window": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "initializer_range": 0.05,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": v.END,
            "pad_token_id": v.PAD,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [0, 1, 2],
            "out_hidden_size": WIDTH,
            "tokens_per_second": 2,
            "initializer_range": 0.05,
        },
        image_token_id=v.IMAGE_PAD,
        video_token_id=v.VIDEO_PAD,
        vision_start_token_id=v.VISION_START,
        vision_end_token_id=v.VISION_END,
        tie_word_embeddings=True,
    )
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    return config


def shape_of(config: Qwen2_5_VLConfig) -> Shape:
    """What `forward` needs to know of a configuration."""
    text, vision = config.text_config, config.vision_config
    return Shape(
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        vision_layers=vision.depth,
        vision_heads=vision.num_heads,
        sections=tuple(text.rope_parameters["mrope_section"]),
        theta=text.rope_parameters["rope_theta"],
        eps=text.rms_norm_eps,
    )


def new_model(seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """A freshly initialised model, the same for the same seed."""
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(build_config())
    model.requires_grad_(True)
    return model


def save_checkpoint(
    model: Qwen2_5_VLForConditionalGeneration, folder: Path, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write the whole checkpoint folder, weights in `dtype` (float32 while training goes on, bfloat16 to publish)."""
    folder.mkdir(parents=True, exist_ok=True)
    for config in (model.config, model.config.text_config, model.config.vision_config):
        config.dtype = dtype
    model.config.save_pretrained(folder)
    state = {
        name: value.detach().to(dtype).contiguous()
        for name, value in model.named_parameters()
        if name != "lm_head.weight"
    }
    state = {_published_name(name): value for name, value in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    v.save_tokenizer(folder)
    for name, content in _processor_files().items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")


def _published_name(name: str) -> str:
    # Names as in the published Qwen2.5-VL checkpoints, which every loader maps.
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name.removeprefix("model.")


def _processor_files() -> dict[str, dict[str, object]]:
    pixels = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "rescale_factor": 1 / 255,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "min_pixels": 28 * 28,
        "max_pixels": 112 * 112,
        "size": {"shortest_edge": 28 * 28, "longest_edge": 112 * 112},
        "processor_class": "Qwen2_5_VLProcessor",
    }
    return {
        "preprocessor_config.json": {**pixels, "image_processor_type": "Qwen2VLImageProcessor"},
        "video_preprocessor_config.json": {
            **pixels,
            "video_processor_type": "Qwen2VLVideoProcessor",
            "min_frames": 2,
            "max_frames": 64,
            "fps": 2.0,
            "max_pixels": 64 * 112 * 112,
            "size": {"shortest_edge": 28 * 28, "longest_edge": 64 * 112 * 112},
        },
        "generation_config.json": {
            "do_sample": False,
            "eos_token_id": [v.END],
            "pad_token_id": v.PAD,
            "transformers_version": "5.23.0",
        },
        "closeup.json": {"preset": "tiny"},
    }
