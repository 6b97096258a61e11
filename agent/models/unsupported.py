"""What to say of a checkpoint whose family has no adapter: which checkpoint of the same work runs here instead.

Only families that people bring along are named; the sentences are facts about published checkpoints, not guesses about
the folder at hand. No code of a checkpoint's own can help where there is no adapter, and the sentences say so.
"""

from __future__ import annotations

_CODE = (
    "loading its own code (trust_remote_code) does not help, as no adapter of closeup's knows how to write its prompts"
)
_ONEVISION = "a LLaVA-OneVision checkpoint in the Hugging Face format (llava-hf/llava-onevision-qwen2-7b-ov-hf)"
_VILA = (
    f"VILA, NVILA and LongVILA checkpoints are three models in folders of their own, run by the VILA project's code; "
    f"{_CODE}. What works: their protocol (--preset longvila_r1) with a supported checkpoint, e.g. "
    "Qwen/Qwen2.5-VL-7B-Instruct"
)
_VICUNA = (
    f"it writes prompts by Vicuna's template, and its 4,096-token context holds few frames. What works: {_ONEVISION}"
)

_INTERNVL = (
    f"this is the InternVL project's own format (InternVLChatModel); {_CODE}. What works: the checkpoint of the same "
    "name in the Hugging Face format, with -hf at its end (OpenGVLab/InternVL3-8B-hf, OpenGVLab/InternVL3_5-8B-HF)"
)

_WHY: dict[str, str] = {
    "internvl_chat": _INTERNVL,
    "llava_llama": _VILA,
    "vila": _VILA,
    "nvila": _VILA,
    "nvila_lite": _VILA,
    "nvila_hd_video": _VILA,
    "llava_qwen": f"this is the LLaVA project's own format; {_CODE}. What works: {_ONEVISION}",
    "llava_onevision1_5": f"LLaVA-OneVision 1.5 is another architecture; {_CODE}. What works: {_ONEVISION}",
    "llava_next_video": _VICUNA,
    "video_llava": _VICUNA,
    "llava": f"it takes images alone, not videos. What works: {_ONEVISION}",
    "llava_next": f"it takes images alone, not videos. What works: {_ONEVISION}",
}


def why_not(family: object) -> str | None:
    """What is known of a `model_type` without an adapter, and what works instead; None when nothing is known of it."""
    return _WHY.get(family) if isinstance(family, str) else None
