"""`MediaStore`: vision features, encoded once and kept by what makes them.

The key of a feature is the digest of the clip's very pixels and a fingerprint of the weights that turn them into
features, so an entry can never belong to another clip or to older weights: after an update the fingerprint is another
one.

Invariants
1. The bytes held never exceed `max_bytes`; the least recently used entries go first.
2. Features of equal pixels under equal weights are computed once, however many episodes show them.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from closeup.agent.models.adapter import Adapter, Media

FrameSource = Callable[[Media], NDArray[np.uint8]]


class MediaStore:
    """A byte-bounded cache of vision features for one adapter. Not thread-safe: its owner holds a lock."""

    def __init__(self, adapter: Adapter, *, max_bytes: int) -> None:
        self._adapter, self._max_bytes = adapter, max_bytes
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._weights: str | None = None
        self.bytes = 0
        self.encoded = 0  # clips that went through the tower
        self.reused = 0  # clips that did not have to

    @property
    def weights(self) -> str:
        """Fingerprint of the tower's and merger's weights as they were when last looked at."""
        if self._weights is None:
            self._weights = fingerprint(self._adapter)
        return self._weights

    def weights_changed(self) -> None:
        """Look at the weights again before the next feature; entries of other weights will not be found any more."""
        self._weights = None

    def features(self, media: Sequence[Media], frames: FrameSource) -> list[torch.Tensor]:
        """Features (tokens, hidden) of each clip, in order.

        Args:
            media: clips, repetitions allowed.
            frames: gives the pixels of a clip whose features are not kept.
        """
        keys = [f"{self.weights}:{item.key}" for item in media]
        missing = {key: item for key, item in zip(keys, media, strict=True) if key not in self._kept}
        made = dict(zip(missing, self._adapter.encode_clips([frames(m) for m in missing.values()]), strict=True))
        self.encoded += len(missing)
        self.reused += len(media) - len(missing)
        found = [made[key] if key in made else self._kept[key] for key in keys]
        for key in keys:
            if key in self._kept:
                self._kept.move_to_end(key)
        for key, value in made.items():
            self._kept[key] = value
            self.bytes += value.numel() * value.element_size()
        while self.bytes > self._max_bytes:
            _, value = self._kept.popitem(last=False)
            self.bytes -= value.numel() * value.element_size()
        return found


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
    """32 hexadecimal digits naming the weights that make features: all of tower and merger, byte by byte."""
    digest = hashlib.blake2b(digest_size=16)
    for module in adapter.vision_modules:
        for name, value in module.state_dict().items():
            digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
