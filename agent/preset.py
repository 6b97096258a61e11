"""The presets by name: published protocols with their numbers, each with the source it was read from.

What a preset can say is `closeup.agent.preset_model`; docs/presets.md is the same table for people. Where two sources
of a number differ the published code counts: it made the published results. What could not be verified says so.

Sources: LOVE-R1's code (HumanMLLM/LOVE-R1 @ 07564aa: `model_sample_frame.py`, `sft_video.py`, `grpo_trainer.py`,
`get_hard_example_cgbench.py`); Long-RL's code; Video-R1's README and `eval_bench.py` (copies in public forks: the
project's own later versions could not be read); LongVT's `single_inference.py`, `run_eval.sh` and `mcp_server.py`
(EvolvingLMMs-Lab/LongVT @ 56ee7aa); InternVL3's model card (its `load_video`, in many public copies).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from closeup.agent.budget import Budget
from closeup.agent.preset_model import PATCH, OverviewRule, Preset
from closeup.tools.rules import ANY_LENGTH, ToolRules

__all__ = ["PRESETS", "OverviewRule", "Preset", "PresetError", "get_preset"]


class PresetError(ValueError):
    """A preset that does not exist or cannot be read."""


def _but(preset: Preset, name: str, **changes: Any) -> Preset:
    """`preset` under another name with changed fields; a dictionary changes fields of the field."""
    fields: dict[str, Any] = {"name": name}
    for field, value in changes.items():
        old = getattr(preset, field)
        fields[field] = value
        if isinstance(value, dict) and isinstance(old, BaseModel):
            fields[field] = type(old).model_validate({**dict(old), **value})
    return preset.model_copy(update=fields)


_TINY = Preset(
    name="tiny",
    prompts="tiny",
    timestamps="text",
    overview=OverviewRule(max_frames=64, whole_seconds=True, pixels=28 * 28),
    budget=Budget(max_steps=8, max_frames=256, max_visual_tokens=640, max_context_tokens=2048, max_new_tokens=96),
    rules=ToolRules(
        min_seconds=0.2,
        max_overlap=0.9,
        zoom_frames=4,
        zoom_pixels=112 * 112,
        resample_max_frames=64,
        skim_pixels=28 * 28,
    ),
    tools=("zoom_clip", "resample_frames", "answer"),
)

# LOVE-R1 (arXiv 2509.24786): "fast" is the overview, "slow" a close look, N patches of 28 x 28 pixels per frame, both
# `linspace(first, last, min(int(2 T), most))`, resized by bicubic after the seconds were drawn. Greedy in effect there
# (top-k 1). Its context of 16,384 is 768 / 2 * 32 + 32 / 2 * 256: the overview and one look. Its code shows a second
# one beside them when the model asks for it, and so does `love_r1` (20,480); `love_r1-16k` refuses what would not fit.
_LOVE_R1 = Preset(
    name="love_r1",
    dialect="love_r1",
    prompts="love_r1",
    overview=OverviewRule(
        fps=2.0,
        max_frames=768,
        placement="ends",
        pixels=32 * PATCH,
        short_seconds=60,
        overlay="seconds",
        resizer="bicubic",
    ),
    budget=Budget(max_steps=3, max_frames=768 + 2 * 32, max_visual_tokens=20_480, max_new_tokens=2048),
    rules=ToolRules.love_r1_evaluation(),
    tools=("zoom_clip", "answer"),
    after_fault="look_and_answer",
)
_LOVE_R1_GRPO = _but(
    _LOVE_R1,
    "love_r1-grpo",
    budget=Budget(max_steps=2, max_frames=768 + 4 * 16, max_visual_tokens=20_480, max_new_tokens=512),
    rules=ToolRules.love_r1(),
    temperature=0.9,
    after_fault="end",
    last_message="free",
)
# Fine-tuning shows what a row says was watched: one window in 32 frames, two in 24 each, more in 16 (stage 2). Stage 1
# draws its windows (`closeup.rl.data.template`): one in 32 frames, more in 16. Only the overview's area is doubled,
# below 120 s. An episode is one message.
_LOVE_R1_SFT = _but(
    _LOVE_R1,
    "love_r1-sft",
    overview={"short_seconds": 120.0},
    rules=ToolRules.love_r1().model_copy(update={"zoom_frames": 32, "seen_frames": (32, 24, 16)}),
    budget={"max_steps": 1, "max_frames": 1024, "max_visual_tokens": 32_768, "max_context_tokens": 49_152},
    after_fault="end",
    last_message="free",
)
# Mining of hard examples asks once, at temperature 1, over frames without seconds drawn on them. Its close looks of 8
# (16 beside others) frames are planned in its code and never shown: the one message is the zoom that is judged.
_LOVE_R1_MINING = _but(
    _LOVE_R1,
    "love_r1-mining",
    overview={"max_frames": 620, "overlay": None},
    rules={"zoom_frames": 8, "seen_frames": (8, 16)},
    budget={"max_steps": 1, "max_new_tokens": 1536},
    temperature=1.0,
    after_fault="end",
    last_message="free",
)

# LongVILA-R1 (arXiv 2507.07966): one turn over 512 evenly spread frames; 257 tokens a frame in its own tower. Its
# command line takes frames per second, or 0 and a number of frames, up to 8,192; 64 tokens a frame of 128 patches here.
_LONGVILA_R1 = Preset(
    name="longvila_r1",
    dialect="think_answer",
    prompts="longvila_r1",
    overview=OverviewRule(num_frames=512, max_frames=8192, pixels=128 * PATCH),
    budget=Budget(
        max_steps=1,
        max_frames=8192,
        max_visual_tokens=512 * 257,
        max_context_tokens=512 * 257 + 2 * 2048,
        max_new_tokens=2048,
    ),
    tools=("answer",),
)
_LONGVILA_R1_FPS = _but(
    _LONGVILA_R1,
    "longvila_r1-fps",
    overview=OverviewRule(fps=2.0, max_frames=8192, pixels=128 * PATCH),  # 2: its script that caches embeddings
    budget={"max_visual_tokens": 8192 * 64, "max_context_tokens": 8192 * 68 + 2 * 2048},
)

# Video-R1 (arXiv 2503.21776): trained on at most 16 frames of at most 128 patches, evaluated on at most 16, 32 or 64 of
# 256 (README), sampled by qwen-vl-utils: 2 a second, spread from the first to the last. Temperature 0.01 and top-p
# 0.001 there are greedy here. 1,024 new tokens: `eval_bench.py`. What its training samples with is TRL's default,
# unverified.
_VIDEO_R1 = Preset(
    name="video_r1",
    dialect="think_answer",
    prompts="video_r1",
    overview=OverviewRule(fps=2.0, max_frames=64, placement="ends", pixels=256 * PATCH, resizer="bicubic"),
    budget=Budget(
        max_steps=1, max_frames=64, max_visual_tokens=64 // 2 * 256, max_context_tokens=16_384, max_new_tokens=1024
    ),
    tools=("answer",),
)

# LongVT (arXiv 2511.20785): an overview of 1 frame a second, 768 at most (`run_eval.sh`; 512 in `single_inference.py`),
# each of at most 224 x 224 pixels; `crop_video` shows a window at 1 frame a second, 128 at most, as large; five rounds
# of calls and one message more; greedy, 4,096 tokens a message. It gives every frame as an image of its own, 64 tokens
# each; here frames are pairs of a video.
_LONGVT = Preset(
    name="longvt",
    dialect="crop_video",
    prompts="longvt",
    overview=OverviewRule(fps=1.0, max_frames=768, placement="ends", pixels=224 * 224, resizer="bicubic"),
    budget=Budget(
        max_steps=6,
        max_frames=768 + 5 * 128,
        max_visual_tokens=(768 + 5 * 128) // 2 * 64,
        max_context_tokens=98_304,
        max_new_tokens=4096,
    ),
    rules=ToolRules(
        min_seconds=0,
        max_seconds=ANY_LENGTH,
        max_fraction=1,
        max_overlap=1,
        past_end_seconds=ANY_LENGTH,  # its script cuts such a window at the video's end (its server refuses it)
        zoom_frames=128,
        zoom_fps=1.0,
        zoom_placement="ends",
        zoom_pixels=224 * 224,
    ),
    tools=("zoom_clip", "answer"),
    last_message="free",
)

# InternVL3 (model card; LongVPO's is the same): the centres of 8 equal segments of the video, or of a `bound` in it,
# one 448 x 448 tile each (`max_num=1`), named Frame1, Frame2, … by the family's adapter; the whole message is the
# answer, and a second question keeps the first round. It samples (`do_sample=True`). LongVPO's number of frames is not
# published: 128 is this project's.
_INTERNVL3 = Preset(
    name="internvl3",
    dialect="plain_answer",
    prompts="internvl3",
    overview=OverviewRule(num_frames=8, max_frames=8192, placement="centre", pixels=448 * 448, resizer="bicubic"),
    budget=Budget(
        max_steps=1, max_frames=8192, max_visual_tokens=32_768, max_context_tokens=40_960, max_new_tokens=1024
    ),
    tools=("answer",),
    temperature=1.0,
)

_ALL = (
    Preset(name="default"),
    Preset(name="openai", dialect="openai", prompts="openai", last_message="asked"),
    _TINY,
    _but(_TINY, "tiny-direct", tools=("answer",)),
    _LOVE_R1,
    _but(_LOVE_R1, "love_r1-16k", budget={"max_visual_tokens": 16_384}),
    _but(_LOVE_R1, "love_r1-mlvu", overview={"max_frames": 384, "pixels": 64 * PATCH}),
    _but(
        _LOVE_R1,
        "love_r1-longvideobench",
        rules=ToolRules.love_r1_evaluation(zoom_frames=16, widen_to_seconds=0),
    ),
    _but(_LOVE_R1_SFT, "love_r1-template", rules={"seen_frames": (32, 16)}),
    _LOVE_R1_SFT,
    _LOVE_R1_GRPO,
    # one zoom, begun for the model with `love_r1.ZOOM_PREFIX`
    _but(_LOVE_R1_GRPO, "love_r1-grpo-grounding", budget={"max_steps": 1}),
    _LOVE_R1_MINING,
    _LONGVILA_R1,
    _but(_LONGVILA_R1, "longvila_r1-direct", prompts="longvila_r1_direct"),
    _LONGVILA_R1_FPS,
    _VIDEO_R1,
    _but(_VIDEO_R1, "video_r1-32", overview={"max_frames": 32}),
    _but(_VIDEO_R1, "video_r1-16", overview={"max_frames": 16}),
    _but(_VIDEO_R1, "video_r1-train", overview={"max_frames": 16, "pixels": 128 * PATCH}, temperature=1.0),
    _LONGVT,
    _INTERNVL3,
    _but(_INTERNVL3, "longvpo", overview={"num_frames": 128}),
)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}


def get_preset(name: str) -> Preset:
    """A preset by name, or from a JSON file by path. Raises `PresetError` naming what is accepted."""
    if name in PRESETS:
        return PRESETS[name]
    if name.endswith(".json"):
        try:
            return Preset.model_validate_json(Path(name).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise PresetError(f"cannot read the preset file {name}: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(p) for p in first["loc"])
            raise PresetError(f"{name} is not a preset: {where}: {first['msg']}") from None
    raise PresetError(f"no preset {name!r}; accepted: {', '.join(sorted(PRESETS))}, or the path of a .json preset")
