"""Names for weights: which checkpoint spoke, and what exactly makes vision features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch

from closeup.agent.models.adapter import Adapter

_NOT_SHAPING = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""Settings of a vision configuration that do not change what its weights compute."""


def weights_digest(model: torch.nn.Module, *, per_tensor: int = 256) -> str:
    """16 hexadecimal digits that tell checkpoints apart, from `per_tensor` spread values of each tensor.

    Cheap for any size (a record's note of which weights spoke); caches use `fingerprint`, which reads every byte.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, value in model.state_dict().items():
        flat = value.detach().flatten()
        some = flat[:: max(1, flat.numel() // per_tensor)].float().cpu().contiguous()
        digest.update(f"{name}:{tuple(value.shape)};".encode())
        digest.update(some.numpy().data)
    return digest.hexdigest()


def fingerprint(adapter: Adapter) -> str:
    """32 hexadecimal digits naming what makes features of patches: tower and merger, byte by byte, and their settings.

    Raises `ValueError` when the weights are not all here (ZeRO-3 leaves a part of each on every process).
    """
    digest = hashlib.blake2b(digest_size=16)
    for module in adapter.vision_modules:
        config: Any = getattr(module, "config", None)
        if config is not None:
            shaping = {k: v for k, v in config.to_dict().items() if k not in _NOT_SHAPING and "attn_impl" not in k}
            digest.update(json.dumps(shaping, sort_keys=True, default=str).encode())
        for name, value in module.state_dict().items():
            if value.numel() == 0 and any(side == 0 for side in value.shape):
                raise ValueError(
                    f"the vision tower's {name} is empty on this process (its weights are partitioned), so its "
                    "features cannot be named; gather the tower's weights, or pass trainable=True"
                )
            digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def has_adapters(adapter: Adapter) -> bool:
    """Whether a layer of tower or merger carries an adapter of peft's (LoRA and its kin), active or not."""
    return any(
        hasattr(layer, "adapter_layer_names") or hasattr(layer, "lora_A")
        for module in adapter.vision_modules
        for layer in module.modules()
    )


def is_trained(adapter: Adapter) -> bool:
    """Whether any weight of tower or merger wants a gradient."""
    return any(parameter.requires_grad for parameter in vision_parameters(adapter))


def vision_parameters(adapter: Adapter) -> Iterator[torch.nn.Parameter]:
    """The weights of tower and merger."""
    return (parameter for module in adapter.vision_modules for parameter in module.parameters())


def versions(adapter: Adapter) -> tuple[tuple[int, int], ...]:
    """Where each weight lies, and how often torch has written to it: changes whenever the weights can have."""
    return tuple(
        (tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version)
        for module in adapter.vision_modules
        for tensor in (*module.parameters(), *module.buffers())
    )
