"""Small random checkpoints and videos without files: what tests of adapters, policies and trainers stand on.

`write_random_checkpoint` writes an ordinary checkpoint folder of the real classes with random weights (0.2 million
parameters), so that code is tested against the stock library's own model, tokenizer and file layout. It says nothing
sensible; it says it the same way every time.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from closeup.agent.models.chatml import TAGS
from closeup.tools.video.clip import SWSCALE, Clip, Resizer
from closeup.tools.video.frames import Frames
from closeup.tools.video.reader import Video

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_WORDS = "Which digit is in the red box? zoom_clip start end arguments name answer choice evidence 0 1 2 3 4 5 é 你好"
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


WRITERS = {
    "internvl": "closeup.agent.models.testing_internvl:write",
    "llava_onevision": "closeup.agent.models.testing_llava_onevision:write",
    "qwen2_5_vl": "closeup.agent.models.testing:_write_qwen2_5_vl",
    "qwen3_vl": "closeup.agent.models.testing_qwen3_vl:write_qwen3_vl",
    "qwen3_vl_moe": "closeup.agent.models.testing_qwen3_vl:write_qwen3_vl_moe",
}


def write_random_checkpoint(
    folder: Path,
    *,
    family: str = "qwen2_5_vl",
    seed: int = 0,
    vision: Mapping[str, Any] | None = None,
    **text: Any,
) -> Path:
    """Write a random checkpoint and return its folder.

    Args:
        folder: created if needed. family: the configuration's `model_type`. seed: of the weights.
        text, vision: settings of the text model and of the tower that replace the small defaults.

    Raises:
        ValueError: a family that has no writer.
    """
    if family not in WRITERS:
        raise ValueError(f"no random checkpoints of family {family!r}; there are: {', '.join(WRITERS)}")
    module, _, name = WRITERS[family].partition(":")
    getattr(importlib.import_module(module), name)(folder, seed=seed, vision=dict(vision or {}), text=text)
    return folder


def _write_qwen2_5_vl(folder: Path, *, seed: int, vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = random_tokenizer()
    ids = tokenizer.get_vocab()
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": (len(ids) + 63) // 64 * 64,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
            "initializer_range": 0.3,  # sharp enough for a wrong position or a wrong clip to be seen
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        }
        | dict(text),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": text.get("hidden_size", 64),
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            "initializer_range": 0.1,
        }
        | dict(vision),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    save_random(folder, Qwen2_5_VLForConditionalGeneration, config, tokenizer, seed)
    pixels = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 28 * 28, "longest_edge": 112 * 112},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels, indent=2) + "\n", encoding="utf-8")


def save_random(
    folder: Path,
    model_class: Any,
    config: Any,
    tokenizer: Any,
    seed: int,
    *,
    change: Callable[[Any], None] = lambda model: None,
) -> None:
    """Save a model of `config` with random weights, and its tokenizer; the global random state stays as it was.

    `change` may draw some weights anew, where the library's own start with zeros.
    """
    import torch

    ids = tokenizer.get_vocab()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config).eval()
        change(model)
    model.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def random_tokenizer(special: Sequence[str] = SPECIAL, *, words: str = "", **settings: Any) -> Any:
    """A byte-level tokenizer with a family's control tokens and the dialects' tags.

    `words`: more text it learns its merges from. `settings` go to `PreTrainedTokenizerFast`.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        [_WORDS + words] * 4,
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        **settings,
    )


class SyntheticVideo(Video):
    """A video without a file: every frame is noise that depends on `seed` and the frame's number alone.

    Frame k is shown from `k / fps` seconds on, and `frames` obeys the rule of files: the last frame at or before t.
    """

    def __init__(self, seed: int = 0, *, seconds: float = 60.0, fps: float = 10.0, size: tuple[int, int] = (112, 112)):
        self._seed, self._seconds, self._fps, self._size = seed, seconds, fps, size
        self.path, self.backend = Path(f"synthetic-{seed}.mp4"), "synthetic"
        self.decoded = 0  # how often `frames` was called

    @property
    def identity(self) -> str:
        return f"synthetic-{self._seed}-{self._seconds:g}-{self._fps:g}"

    @property
    def duration(self) -> float:
        return self._seconds

    @property
    def width(self) -> int:
        return self._size[1]

    @property
    def height(self) -> int:
        return self._size[0]

    @property
    def fps(self) -> float:
        return self._fps

    def frames(
        self,
        clip_or_times: Clip | Sequence[float],
        size: tuple[int, int] | None = None,
        *,
        mode: Literal["exact", "keyframe"] = "exact",
        resizer: Resizer = SWSCALE,
    ) -> Frames:
        self.decoded += 1
        if isinstance(clip_or_times, Clip):
            mode = clip_or_times.mode
            times = clip_or_times.times()
        else:
            times = tuple(clip_or_times)
        height, width = size or self._size
        last = math.ceil(self._seconds * self._fps) - 1
        numbers = [min(max(math.floor(t * self._fps + 1e-9), 0), last) for t in times]
        pixels = [
            np.random.default_rng([self._seed, k]).integers(0, 256, (height, width, 3), dtype=np.uint8) for k in numbers
        ]
        shown = np.array([k / self._fps for k in numbers])
        return Frames(np.stack(pixels), shown, np.array(times, dtype=np.float64), 0, self.backend, mode)

    def close(self) -> None:
        """Nothing to close."""

    def __repr__(self) -> str:
        return f"SyntheticVideo({self._seed}, seconds={self._seconds:g})"
