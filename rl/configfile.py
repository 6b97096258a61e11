"""From a YAML file and `--key value` pairs to checked settings; what is wrong is said in one sentence.

A key may be dotted (`--evaluation.steps 50`, `--rewards.streams.0.weight 2`); values are read as YAML (`[a, b]`,
`null`).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from closeup.rl.config import TrainConfig

C = TypeVar("C", bound=TrainConfig)

DELIBERATELY_ABSENT = {
    "top_p": "training needs the log-probabilities of the very distribution that is sampled from, so there is no top-p",
    "top_k": "training needs the log-probabilities of the very distribution that is sampled from, so there is no top-k",
    "reward_weights": "each stream under 'rewards' has its own weight",
    "max_prompt_length": "prompts are never cut; max_length bounds a whole path",
    "num_train_epochs": "rollouts have no epochs; give max_steps",
    "generation_batch_size": "give steps_per_generation",
    "warmup_ratio": "give warmup_steps; below 1 it is a share of all steps",
    "lora_r": "give lora: {r: …}",
    "deepspeed": "this trainer runs on one or more processes with whole copies of the weights",
}


class ConfigError(ValueError):
    """Settings that cannot be used; the message names the key, the value and what is accepted."""


def load_config(kind: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """Read a configuration.

    Args:
        kind: `GRPOConfig` or `SFTConfig`. path: YAML. overrides: as typed: "--key", "value", or "--key=value".

    Raises:
        ConfigError: a file that cannot be read, or settings that cannot be used.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror or error}; see configs/") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold settings, one 'key: value' a line; it holds {type(raw).__name__}")
    for key, text in pairs(overrides):
        _put(raw, key, _value(key, text))
    return checked(kind, raw, where=str(path))


def checked(kind: type[C], raw: dict[str, Any], *, where: str = "the configuration") -> C:
    """Settings from plain values. Raises `ConfigError` at the first that cannot be used."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(kind, error)}") from None


def pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """`--key value` and `--key=value` as pairs; dashes within a key's words are underscores. Raises `ConfigError`."""
    found = []
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--") or word == "--":
            raise ConfigError(f"expected --key value, got {word!r}; for example --learning_rate 1e-5")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not waiting:
                raise ConfigError(f"--{key} needs a value: --{key} VALUE")
            value = waiting.pop(0)
        found.append((key.replace("-", "_"), value))
    return found


def _value(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--{key} has a value that is no YAML: {text!r}; put it in quotes") from None


def _put(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key. Raises `ConfigError` when the way to it is no mapping or list."""
    *way, last = key.split(".")
    place: Any = raw
    for index, word in enumerate(way):
        try:
            if isinstance(place, list):
                place = place[int(word)]
            else:
                if place.get(word) is None:
                    place[word] = {}
                place = place[word]
        except (ValueError, IndexError, AttributeError):
            raise ConfigError(f"--{key}: there is no {'.'.join(way[: index + 1])!r} to set anything in") from None
    try:
        place[int(last) if isinstance(place, list) else last] = value
    except (ValueError, IndexError, TypeError):
        raise ConfigError(f"--{key}: {'.'.join(way)!r} has no place {last!r}") from None


def _sentence(kind: type[BaseModel], error: ValidationError) -> str:
    found = error.errors()
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])  # a misspelling explains a lack
    loc = tuple(first["loc"])
    key = ".".join(map(str, loc))
    given, message = first.get("input"), first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        name = str(loc[-1])
        known = sorted(_fields(kind, loc[:-1]))
        close = difflib.get_close_matches(name, known, n=3)
        why = DELIBERATELY_ABSENT.get(name)
        hint = f"; {why}" if why else f"; did you mean {', '.join(close)}?" if close else f"; known: {', '.join(known)}"
        return f"there is no setting {key!r}{hint}"
    if first["type"] == "missing":
        return f"{key} is missing"
    if not key:
        return message
    if first["type"] == "value_error" and isinstance(given, dict):
        return f"{key}: {message}"
    return f"{key} is {given!r}: {message[0].lower() + message[1:]}"


def _fields(kind: type[BaseModel], loc: tuple[int | str, ...]) -> set[str]:
    """Names of the settings at a place of the model, as far as types tell."""
    model: Any = kind
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation if part in getattr(model, "model_fields", {}) else None
        inner = _models(annotation)
        if not inner:
            return set()
        model = inner[0]
    return set(model.model_fields)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models(part)]
