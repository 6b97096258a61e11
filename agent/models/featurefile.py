"""One file of the feature cache: a tensor in safetensors form that says what it is, and proves it.

The file's own header (safetensors metadata) holds whose features these are, and a checksum of every byte of the file
(its own digits count as zeros): length, header with dtype, shape and white space, and tensor. `unpack` gives the
tensor only when all of that is as it was written and as it is wanted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from closeup.agent.models.featurecache import FEATURES_FORMAT

FORMAT = f"closeup features {FEATURES_FORMAT}"
TENSOR = "features"
_BLANK = "0" * 32  # stands where the checksum will be while it is computed
_KEY = b'"checksum":"'  # in JSON only a key can be written so: quotes within a text are escaped


class Damaged(ValueError):
    """The bytes are not the file that was written; the message says in what."""


def pack(features: torch.Tensor, about: Mapping[str, str]) -> bytes:
    """The file's bytes.

    Args:
        features: (tokens, hidden), any floating dtype, any device.
        about: what the features are of; `unpack` wants the same.

    Raises:
        ValueError: features that are no floating numbers, or an `about` with a name that the file writes itself.
    """
    if not features.is_floating_point():
        raise ValueError(f"features are floating numbers, got {features.dtype}")
    for name in ("checksum", "format"):
        if name in about:
            raise ValueError(f"{name!r} is a word of the file of its own; call what the features are of something else")
    kept = features.detach().to("cpu").contiguous()
    data: bytes = save({TENSOR: kept}, metadata={**about, "format": FORMAT, "checksum": _BLANK})
    place = _place(data)
    assert data[place : place + len(_BLANK)] == _BLANK.encode()
    return data[:place] + _checksum(data, place) + data[place + len(_BLANK) :]


def unpack(data: bytes, about: Mapping[str, str]) -> torch.Tensor:
    """The features (tokens, hidden) on the CPU.

    Raises:
        Damaged: the bytes are cut, changed, or of other features than `about` says.
    """
    metadata = _metadata(data)
    if metadata.get("format") != FORMAT:
        raise Damaged(f"it is no file of {FORMAT!r}")
    place = _place(data)
    if data[place : place + len(_BLANK)] != _checksum(data, place):
        raise Damaged("its checksum does not fit its content")
    for key, wanted in about.items():
        if metadata.get(key) != wanted:
            raise Damaged(f"its {key} is {metadata.get(key)!r}, and {wanted!r} was looked for")
    try:
        features: torch.Tensor = load(data)[TENSOR]
        return features
    except (SafetensorError, KeyError, ValueError) as error:
        raise Damaged(f"it is no safetensors file: {error}") from None


def _metadata(data: bytes) -> dict[str, str]:
    """What a safetensors file of the right length says of itself. Raises `Damaged`."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise Damaged(f"it is cut short at {len(data)} bytes")
    held = len(data) - 8 - length
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = dict(header["__metadata__"])
        end = header[TENSOR]["data_offsets"][1]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Damaged(f"its header cannot be read: {error}") from None
    if end != held:
        raise Damaged(f"it should hold {end} bytes of features and holds {held}")
    return metadata


def _place(data: bytes) -> int:
    """Where the checksum's digits begin. Raises `Damaged`."""
    found = data.find(_KEY, 8, 8 + int.from_bytes(data[:8], "little"))
    if found < 0:
        raise Damaged("it holds no checksum")
    return found + len(_KEY)


def _checksum(data: bytes, place: int) -> bytes:
    """32 hexadecimal digits over every byte but the 32 at `place`, which count as zeros."""
    view = memoryview(data)
    digest = hashlib.blake2b(view[:place], digest_size=16)
    digest.update(_BLANK.encode())
    digest.update(view[place + len(_BLANK) :])
    return digest.hexdigest().encode()
