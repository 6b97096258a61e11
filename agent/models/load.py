"""From what a user wrote after `--model` to a checkpoint, and from a checkpoint to an `Adapter`.

Everything that can be wrong with a name or a folder is found here, from small files and without torch, and said in one
sentence before any weight is read.
"""

from __future__ import annotations

import difflib
import importlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from closeup.agent.models.unsupported import why_not
from closeup.agent.preset import PresetError, get_preset

if TYPE_CHECKING:
    from closeup.agent.models.adapter import Adapter

BUNDLED = {"tiny": "closeup-tiny", "tiny-half": "tiny-half"}
FAMILIES = {
    "internvl": "closeup.agent.models.internvl:InternVLAdapter",
    "llava_onevision": "closeup.agent.models.llava_onevision:LlavaOnevisionAdapter",
    "qwen2_5_vl": "closeup.agent.models.qwen2_5_vl:Qwen25VLAdapter",
    "qwen3_vl": "closeup.agent.models.qwen3_vl:Qwen3VLAdapter",
    "qwen3_vl_moe": "closeup.agent.models.qwen3_vl:Qwen3VLMoeAdapter",
}
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = ["*.json", "*.jinja", "*.safetensors", "*.txt", "*.model"]

Timestamps = Literal["native", "text", "position"]


class ModelError(ValueError):
    """A model that cannot be used; the message says what was given, what is accepted and what to do next."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was found and looked at, not yet loaded.

    Attributes:
        model: what the user wrote. path: its local folder.
        family: the configuration's `model_type`. preset: name of its default preset.
        bundled: shipped with this package.
    """

    model: str
    path: Path
    family: str
    preset: str = "default"
    bundled: bool = False


def find_checkpoint(model: str, *, trust_remote_code: bool = False) -> Checkpoint:
    """Resolve "tiny", "tiny-half", a checkpoint folder or a hub id, and check all that small files can tell.

    Raises:
        ModelError: nothing is there, the family is not supported, files are missing, or it needs remote code.
    """
    path, bundled = _folder(model)
    if path is None:
        path = _download(model, ["*.json"])
    config = _read_json(path / "config.json", model)
    if config is None:
        raise ModelError(
            f"{path} holds no config.json, so it is no checkpoint; give a folder that `save_pretrained` wrote"
        )
    family = config.get("model_type")
    if family not in FAMILIES and (reason := why_not(family)):
        raise ModelError(f"{model} is of family {family!r}, which is not supported: {reason}")
    if "auto_map" in config and not trust_remote_code:
        raise ModelError(
            f"{model} wants to run code of its own (auto_map in config.json), which is refused unless asked for: "
            "trust_remote_code=True"
        )
    if not isinstance(family, str) or family not in FAMILIES:
        raise ModelError(f"{model} is of family {family!r}; supported: {', '.join(sorted(FAMILIES))}")
    preset = (_read_json(path / "closeup.json", model) or {}).get("preset", "default")
    if not isinstance(preset, str):
        raise ModelError(f'{path / "closeup.json"} must hold {{"preset": NAME}}, got {preset!r}')
    if _folder(model)[0] is not None:
        _check_files(path)
    return Checkpoint(model=model, path=path, family=family, preset=preset, bundled=bundled)


def default_preset(model: str) -> str:
    """Name of the preset a model was made for; "default" when it names none. Raises as `find_checkpoint` does."""
    return find_checkpoint(model, trust_remote_code=True).preset


def load_adapter(
    model: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    timestamps: Timestamps | None = None,
    trust_remote_code: bool = False,
) -> Adapter:
    """Load a checkpoint behind its family's adapter.

    Args:
        model: "tiny", "tiny-half", a folder or a hub id (downloaded when not cached).
        dtype: "float32", "bfloat16", "float16", or "auto": float32 for models below 2 GiB on a CPU, else as saved.
        device: "auto" (CUDA when there is one), "cpu", "cuda" or "cuda:N".
        timestamps: how a frame's time reaches the model, see `closeup.agent.preset.Preset`; None = as the preset says
            that the checkpoint names.

    Raises:
        ModelError: see `find_checkpoint`; also weights that do not fit the configuration, or a bad dtype or device.
    """
    name = DTYPES.get(dtype, dtype)
    if name not in ("auto", *DTYPES.values()):
        raise ModelError(f"dtype is auto, float32, bfloat16 or float16, got {dtype!r}")
    if timestamps is not None and timestamps not in get_args(Timestamps):
        raise ModelError(f"timestamps is one of {', '.join(get_args(Timestamps))}, got {timestamps!r}")
    checkpoint = find_checkpoint(model, trust_remote_code=trust_remote_code)
    if _folder(model)[0] is None:
        _download(model, _WANTED)
        _check_files(checkpoint.path)
    adapter: Adapter = family_class(checkpoint.family).load(
        checkpoint, dtype=name, device=device, timestamps=_timestamps(checkpoint, timestamps)
    )
    return adapter


def empty_adapter(model: str, *, timestamps: Timestamps | None = None, trust_remote_code: bool = False) -> Adapter:
    """A checkpoint's adapter around a model without weights: what it writes and counts, in seconds for any size.

    Of a hub id only the small files are downloaded. Raises `ModelError` for all that `load_adapter` refuses, except
    what only the weights can tell.
    """
    checkpoint = find_checkpoint(model, trust_remote_code=trust_remote_code)
    if _folder(model)[0] is None:
        _download(model, [pattern for pattern in _WANTED if pattern != "*.safetensors"])
    adapter: Adapter = family_class(checkpoint.family).empty(checkpoint, timestamps=_timestamps(checkpoint, timestamps))
    return adapter


def family_class(family: str) -> Any:
    """The adapter class of a supported family; what it states of itself needs no checkpoint."""
    module, _, name = FAMILIES[family].partition(":")
    return getattr(importlib.import_module(module), name)


def _timestamps(checkpoint: Checkpoint, wanted: Timestamps | None) -> Timestamps:
    if wanted is not None:
        return wanted
    try:
        return get_preset(checkpoint.preset).timestamps
    except PresetError as error:
        raise ModelError(f"{checkpoint.model} names a preset of its own (closeup.json): {error}") from None


def _folder(model: str) -> tuple[Path | None, bool]:
    """The local folder a model name means (None: a hub id), and whether it is bundled."""
    if model in BUNDLED:
        path = Path(__file__).parent / BUNDLED[model]
        if not (path / "config.json").is_file():
            raise ModelError(f"the bundled model {model!r} is missing from this installation; make it with: make tiny")
        return path, True
    path = Path(model).expanduser()
    if path.is_dir():
        return path, False
    if path.exists():
        raise ModelError(f"{model} is a file; give the checkpoint's folder")
    if _HUB_ID.fullmatch(model):
        return None, False
    if "/" in model or "\\" in model or model.startswith("."):
        raise ModelError(f"there is no folder {model}; give a checkpoint folder, or one of: {', '.join(BUNDLED)}")
    close = difflib.get_close_matches(model, BUNDLED, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ModelError(
        f"no model {model!r}; {hint}accepted: {', '.join(BUNDLED)}, a checkpoint folder, or a hub id like ORG/NAME"
    )


def _download(model: str, patterns: list[str]) -> Path:
    """Folder of a hub checkpoint's files in the local cache, downloaded as needed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except GatedRepoError:
        raise ModelError(f"{model} is gated: accept its terms on the hub and log in with: hf auth login") from None
    except RepositoryNotFoundError:
        raise ModelError(f"there is no folder {model} and no checkpoint of that name on the hub") from None
    except LocalEntryNotFoundError:
        raise ModelError(
            f"there is no folder {model}, and as a hub id it is neither in the local cache nor is the hub reachable; "
            "download it on a machine with a connection and give its folder"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"{model} cannot be downloaded: {str(error).splitlines()[0]}") from None


def _check_files(path: Path) -> None:
    """Weights (every shard), tokenizer and pixel settings are there. Raises `ModelError`."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = set((_read_json(index, str(path)) or {}).get("weight_map", {}).values())
        missing = sorted(shard for shard in shards if not (path / shard).is_file())
        if missing or not shards:
            raise ModelError(f"{path} lacks {len(missing)} of {len(shards)} weight files, first {missing[:1]}")
    elif not (path / "model.safetensors").is_file():
        raise ModelError(f"{path} has no weights: model.safetensors (or its index and shards) is missing")
    if not (path / "tokenizer.json").is_file() and not (path / "vocab.json").is_file():
        raise ModelError(f"{path} has no tokenizer: tokenizer.json is missing")
    read_pixel_settings(path)


def read_pixel_settings(path: Path) -> dict[str, Any]:
    """Settings of a checkpoint's image processor: mean, std, patch sizes. Raises `ModelError` when there are none."""
    for name in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"):
        settings = _read_json(path / name, str(path))
        if settings is not None:
            settings = settings.get("image_processor", settings)
            if isinstance(settings, dict) and "image_mean" in settings:
                return settings
    raise ModelError(f"{path} has no pixel settings: preprocessor_config.json is missing or names no image_mean")


def read_video_settings(path: Path) -> dict[str, Any]:
    """Settings of a checkpoint's video processor; empty when it has none of its own. Raises `ModelError`."""
    settings = _read_json(path / "video_preprocessor_config.json", str(path))
    if settings is None:
        settings = (_read_json(path / "processor_config.json", str(path)) or {}).get("video_processor", {})
    if not isinstance(settings, dict):
        raise ModelError(f"{path}: video_processor in processor_config.json must be an object, got {settings!r}")
    return settings


def _read_json(path: Path, model: str) -> dict[str, Any] | None:
    """A JSON object, or None when the file is not there. Raises `ModelError` when it is something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{model}: {path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{model}: {path} must hold a JSON object, got {type(value).__name__}")
    return value
