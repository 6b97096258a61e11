"""`closeup doctor`: what a checkpoint and a preset will do together, found in seconds without reading a weight.

The checkpoint's small files are read and its adapter is put around an empty model (`load.empty_adapter`), so all that a
run would refuse is refused here by the same code and in the same words; what prompts hold is counted token for token.

Exit codes: 0 = it will run (warnings or not); 2 = it will not, and why.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from closeup.app.errors import USAGE, complain
from closeup.app.setup import Overrides, choose_preset, quiet_libraries

if TYPE_CHECKING:
    from closeup.agent.models.chatml_adapter import ChatMLAdapter
    from closeup.agent.preset import Preset

DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I8": 1,
    "U8": 1,
}
TIMES = {
    "text": "written before each pair of frames (12s)",
    "seconds": "written before each pair of frames (<12.0 seconds>)",
    "numbers": "not told; frames are numbered (Frame1: )",
    "position": "in the positions of visual tokens",
    "none": "not told",
}


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """The command's arguments, as typed."""

    model: str = "tiny"
    preset: str | None = None
    trust_remote_code: bool = False
    as_json: bool = False


def run(options: DoctorOptions) -> int:
    """Examine and print; returns the exit code. Raises what becomes a sentence (exit code 2)."""
    preset = choose_preset(options.model, options.preset, Overrides())
    quiet_libraries()
    report = examine(options.model, preset, trust_remote_code=options.trust_remote_code)
    if options.as_json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in _lines(report)))
    sys.stdout.flush()
    for problem in report["problems"]:
        complain(problem)
    return USAGE if report["problems"] else 0


def examine(model: str, preset: Preset, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Everything `closeup doctor` says, JSON-serialisable; `problems` keep it from running, `warnings` do not.

    Raises:
        ModelError: no checkpoint that this version can load.
    """
    from closeup.agent.models.load import empty_adapter

    adapter: Any = empty_adapter(model, timestamps=preset.timestamps, trust_remote_code=trust_remote_code)
    found = adapter.checkpoint
    template = stock_template(found.path)
    weights, problems = _weights(found.path, adapter)
    shapes, unfit = _shapes(adapter, preset)
    report: dict[str, Any] = {
        "model": model,
        "path": str(found.path),
        "family": adapter.family,
        "class": type(adapter.model).__name__,
        "preset": preset.name,
        "dialect": preset.dialect,
        "prompts": preset.prompts,
        "template": {
            "used": "closeup's own ChatML; tools are listed in the system message",
            "stock": "none" if template is None else "with tools" if has_tools(template) else "without tools",
        },
        "timestamps": {
            "asked": preset.timestamps,
            "used": adapter.timestamps,
            "accepted": list(adapter.accepted),
            "meaning": TIMES.get(adapter.timestamps, adapter.timestamps),
        },
        "context": {"model": adapter.max_context, "preset": preset.budget.max_context_tokens},
        "shapes": shapes,
        "weights": weights,
        "memory": _memory(adapter, weights, shapes),
        "warnings": _warnings(adapter, preset, found.path, template, shapes, bundled=found.bundled),
        "problems": problems + unfit,
    }
    return report


# ---- what is looked at ---------------------------------------------------------------------------------------------


def stock_template(folder: Path) -> str | None:
    """The chat template that a checkpoint brings, which the stock library would use; None when it has none."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        try:
            value = json.loads((folder / name).read_text(encoding="utf-8")).get("chat_template")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(value, list):  # named templates
            named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
            value = named.get("tool_use") or named.get("default")
        if isinstance(value, str):
            return value
    return None


def has_tools(template: str) -> bool:
    """Whether a chat template writes the tools it is given."""
    return re.search(r"\{[%{][^}]*\btools\b", template) is not None


def _shapes(adapter: ChatMLAdapter, preset: Preset) -> tuple[dict[str, Any], list[str]]:
    """Per shape of film what an episode about one of an hour opens with; and sentences for what does not fit."""
    from closeup.agent.models import fit
    from closeup.agent.task import Task

    task = Task(id="an hour's film", videos=(Path("film.mp4"),), question="When does she open the letter?")
    found, problems = dict[str, Any](), list[str]()
    for name, (width, height) in fit.SHAPES.items():
        film = fit.Film(fit.HOUR, width, height)
        prompt = fit.first_prompt(adapter, preset, task, [film])
        look = preset.rules.close_look(film.identity, fit.HOUR, (0.0, 10.0), None)
        wrong = fit.what_breaks(adapter, preset, prompt)
        if wrong and not problems:
            problems.append(fit.refusal(adapter, preset, task, film, wrong))
        found[name] = {
            "overview": _view(adapter, prompt.frames, prompt.sizes[0]),
            "close_look": _view(adapter, len(look.times()), adapter.geometry.size(width, height, look.pixels)),
            "first_prompt_tokens": prompt.tokens,
            "fits": not wrong,
            "largest_overview_frames": fit.largest_overview(adapter, preset, task, film),
            "close_looks_beside_overview": 0 if wrong else fit.close_looks(adapter, preset, prompt, film),
        }
    return found, problems


def _view(adapter: ChatMLAdapter, frames: int, size: tuple[int, int]) -> dict[str, Any]:
    geometry = adapter.geometry
    tokens = geometry.tokens(frames, size)
    each = (geometry.tokens(geometry.temporal, size) - geometry.clip_tokens) / geometry.temporal
    return {"frames": frames, "height": size[0], "width": size[1], "tokens_per_frame": each, "visual_tokens": tokens}


def _weights(folder: Path, adapter: ChatMLAdapter) -> tuple[dict[str, Any], list[str]]:
    """Size and dtype of the weight files by their headers; and what is missing in them."""
    wanted = sum(p.numel() for p in adapter.model.parameters())
    count, size, kinds, problems = 0, 0, dict[str, int](), list[str]()
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        try:
            for dtype, numbers in _tensors(file):
                count += numbers
                size += numbers * DTYPE_BYTES.get(dtype, 1)
                kinds[dtype] = kinds.get(dtype, 0) + numbers
        except (OSError, ValueError) as error:
            problems.append(f"{file} is no readable weight file ({error}); download it again")
    if files and not problems and count < wanted:
        problems.append(
            f"{folder} holds weights of {count:,} numbers, and its config.json describes a model of {wanted:,}: some "
            "are missing, or the configuration is another model's; download the checkpoint again"
        )
    most = max(kinds, key=lambda kind: kinds[kind]) if kinds else None
    return {"here": bool(files), "parameters": wanted, "bytes": size, "dtype": most}, problems


def _tensors(file: Path) -> Iterator[tuple[str, int]]:
    """Dtype and count of numbers of each tensor in a safetensors file, from its header alone."""
    with file.open("rb") as stream:
        head = stream.read(8)
        if len(head) < 8:
            raise ValueError("it is cut off")
        (length,) = struct.unpack("<Q", head)
        if length > min(file.stat().st_size, 100 << 20):
            raise ValueError("its header is cut off")
        header = json.loads(stream.read(length))
    end = 0
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        numbers = 1
        for side in tensor["shape"]:
            numbers *= side
        end = max(end, tensor["data_offsets"][1])
        yield tensor["dtype"], numbers
    if file.stat().st_size < 8 + length + end:
        raise ValueError(f"it has {file.stat().st_size:,} bytes of {8 + length + end:,}")


def _memory(adapter: ChatMLAdapter, weights: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes that weights, keys and values, and vision features take in bfloat16 (half of what float32 takes)."""
    text: Any = adapter.text_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * 2
    largest = max(shapes.values(), key=lambda shape: shape["first_prompt_tokens"])
    return {
        "weights_bytes": 2 * weights["parameters"],
        "keys_values_bytes_per_token": per_token,
        "keys_values_bytes_of_first_prompt": per_token * largest["first_prompt_tokens"],
        "feature_bytes_of_overview": 2 * text.hidden_size * largest["overview"]["visual_tokens"],
    }


def _warnings(
    adapter: ChatMLAdapter,
    preset: Preset,
    folder: Path,
    template: str | None,
    shapes: Mapping[str, Any],
    *,
    bundled: bool,
) -> list[str]:
    from closeup.tools.registry import registered_tools

    found = []
    looks = len(registered_tools(preset.tools)) > 1
    if template is not None and not has_tools(template):
        found.append(
            "the checkpoint's own chat template has no tools. closeup does not use it; but a server that does would "
            "drop the tools, so there is no point in native tool calls with this model"
        )
    if preset.budget.max_context_tokens > adapter.max_context:
        found.append(
            f"the preset allows {preset.budget.max_context_tokens} tokens and the model takes {adapter.max_context}: "
            "an answer is asked for when the model's context is nearly full"
        )
    if looks and adapter.timestamps == "none":
        found.append(
            "the model is not told when a frame is shown, and the preset has tools that take times: set timestamps to "
            f"{' or '.join(repr(way) for way in adapter.accepted if way not in ('none', adapter.native))} in a .json "
            "preset"
        )
    beside = min(shape["close_looks_beside_overview"] for shape in shapes.values())
    if looks and preset.budget.max_steps > 1 and not beside and all(shape["fits"] for shape in shapes.values()):
        found.append(
            "beside the overview of an hour's film no close look fits, so the agent answers from the overview: lower "
            "overview.max_frames or overview.pixels, or raise the budget, in a .json preset"
        )
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if (quantised := settings.get("quantization_config")) is not None:
        method = quantised.get("quant_method", "?") if isinstance(quantised, dict) else "?"
        found.append(
            f"the weights are quantised ({method}): loading needs that method's library, and training is not tested"
        )
    if "auto_map" in settings:
        found.append("its own code (auto_map) is never run: the family's class in transformers is used")
    if bundled:
        found.append("the bundled model knows only the videos of: closeup data needles")
    return found


# ---- how it is printed ---------------------------------------------------------------------------------------------


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    def row(name: str, text: str) -> str:
        return f"{name:<14}{text}"

    weights, memory, context = report["weights"], report["memory"], report["context"]
    size = f"{weights['bytes'] / 2**30:.2f} GiB of {weights['dtype']}" if weights["here"] else "not downloaded yet"
    yield row(
        "model", f"{report['model']} ({report['class']}, {weights['parameters'] / 1e6:,.1f} million weights, {size})"
    )
    yield row("family", report["family"])
    yield row("preset", f"{report['preset']}: dialect {report['dialect']}, prompts {report['prompts']}")
    stock = report["template"]["stock"]
    yield row("template", f"{report['template']['used']} (the checkpoint's: {stock})")
    yield row("times", f"{report['timestamps']['used']}: {report['timestamps']['meaning']}")
    yield row("context", f"{context['model']:,} tokens of the model, {context['preset']:,} of the preset")
    for name, shape in report["shapes"].items():
        yield row(f"film {name}", _viewed("overview", shape["overview"]))
        yield row("", _viewed("close look", shape["close_look"]))
        room = (
            f"{shape['largest_overview_frames']:,} frames, {shape['close_looks_beside_overview']} close looks beside it"
        )
        yield row("", f"first prompt {shape['first_prompt_tokens']:,} tokens; largest overview that fits {room}")
    kept = memory["keys_values_bytes_of_first_prompt"] / 2**30
    each = 1000 * memory["keys_values_bytes_per_token"] / 2**20
    yield row(
        "memory", f"{memory['weights_bytes'] / 2**30:.2f} GiB of weights in bfloat16; float32 takes twice that, here"
    )
    yield row("", f"and below: keys and values {each:.1f} MiB per 1,000 tokens, {kept:.2f} GiB for the first prompt;")
    yield row("", f"features of the overview {memory['feature_bytes_of_overview'] / 2**20:.1f} MiB")
    for warning in report["warnings"]:
        yield row("note", warning)
    yield row("verdict", "will not run as asked" if report["problems"] else "will run")


def _viewed(what: str, view: Mapping[str, Any]) -> str:
    shape = f"{view['frames']} frames of {view['width']}x{view['height']}"
    return f"{what}: {shape}, {view['tokens_per_frame']:g} tokens each, {view['visual_tokens']:,} visual tokens"
