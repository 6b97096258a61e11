"""One file of the feature cache: a tensor in safetensors form that says what it is, and proves it.

The file's own header (safetensors metadata) holds whose features these are; a checksum covers header, shape, dtype and
every byte of the tensor. `unpack` gives the tensor only when all of that is as it was written and as it is wanted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

FORMAT = "closeup features 1"
TENSOR = "features"


class Damaged(ValueError):
    """The bytes are not the file that was written; the message says in what."""


def pack(features: torch.Tensor, about: Mapping[str, str]) -> bytes:
    """The file's bytes.

    Args:
        features: (tokens, hidden), any floating dtype, any device.
        about: what the features are of; `unpack` wants the same.
    """
    kept = features.detach().to("cpu").contiguous()
    raw = bytes(kept.flatten().view(torch.uint8).numpy().data)
    shape = [int(side) for side in kept.shape]
    metadata = {**about, "format": FORMAT}
    metadata["checksum"] = _checksum(metadata, shape, raw)
    data: bytes = save({TENSOR: kept}, metadata=metadata)
    return data


def unpack(data: bytes, about: Mapping[str, str]) -> torch.Tensor:
    """The features (tokens, hidden) on the CPU.

    Raises:
        Damaged: the bytes are cut, changed, or of other features than `about` says.
    """
    header, raw = _parts(data)
    metadata = header.get("__metadata__")
    tensor = header.get(TENSOR)
    if not isinstance(metadata, dict) or not isinstance(tensor, dict) or metadata.get("format") != FORMAT:
        raise Damaged(f"it is no file of {FORMAT!r}")
    claimed = metadata.pop("checksum", None)
    if claimed != _checksum(metadata, tensor.get("shape"), raw):
        raise Damaged("its checksum does not fit its content")
    for key, wanted in about.items():
        if metadata.get(key) != wanted:
            raise Damaged(f"its {key} is {metadata.get(key)!r}, and {wanted!r} was looked for")
    try:
        features: torch.Tensor = load(data)[TENSOR]
        return features
    except (SafetensorError, KeyError, ValueError) as error:
        raise Damaged(f"it is no safetensors file: {error}") from None


def _parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensor bytes of a safetensors file. Raises `Damaged`."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise Damaged(f"it is cut short at {len(data)} bytes")
    try:
        header = json.loads(data[8 : 8 + length])
        begin, end = header[TENSOR]["data_offsets"]
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"its header cannot be read: {error}") from None
    raw = data[8 + length :]
    if begin != 0 or end != len(raw):
        raise Damaged(f"it should hold {end} bytes of features and holds {len(raw)}")
    return header, raw


def _checksum(metadata: Mapping[str, str], shape: Any, raw: bytes) -> str:
    digest = hashlib.blake2b(json.dumps([sorted(metadata.items()), shape]).encode(), digest_size=16)
    digest.update(raw)
    return digest.hexdigest()
