"""`MediaStore`: vision features, encoded once and kept by what makes them, in memory and, where asked, on disk.

The key of a feature is the digest of the clip's very pixels and a fingerprint of all that turns them into features
(weights and settings of tower and merger, normalisation, the computation's dtype), so an entry belongs to no other
pixels and to no older weights: after an update the fingerprint is another one. Where a clip's pixels were not decoded
but remembered (`featurecache.py`), their digest is that of the same request of a file with the very same bytes.
Weights that change in place (an optimizer's step) are noticed by themselves; weights that change behind torch's back
(`.data`, a raw copy) are not, and need `weights_changed()`.

Weights that are being trained live for one update, so only those that were found at first are written to the disk;
what later ones make is kept in memory, within its bound. With an adapter (LoRA) on the vision side nothing is kept:
whether it is switched on does not show in any weight.

Invariants
1. The bytes that kept features hold in memory never exceed `max_bytes`: none is a view of a larger tensor. The least
   recently used go first. The disk has a bound of its own (`featurecache.py`).
2. Features of equal pixels under equal weights are computed once, however many episodes or threads show them.
3. A clip's features have as many rows as its record has tokens, wherever they come from.
4. Kept features carry no gradient and are ordinary tensors: they may enter a graph, also when they were first asked for
   in inference mode.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from closeup.agent.models.adapter import Adapter, Media
from closeup.agent.models.featurecache import FeatureCache, Maker
from closeup.agent.models.fingerprint import (
    fingerprint,
    has_adapters,
    is_trained,
    versions,
    vision_parameters,
    weights_digest,
)

__all__ = ["FrameSource", "MediaStore", "fingerprint", "weights_digest"]

FrameSource = Callable[[Media], NDArray[np.uint8]]


class MediaStore:
    """A byte-bounded cache of vision features for one adapter.

    Safe under threads, as long as nobody changes the weights while features are being made.

    Attributes:
        bytes: held in memory. encoded: clips that went through the tower. reused: clips that did not have to.
        loaded: clips among those reused that came from the disk.
    """

    def __init__(self, adapter: Adapter, *, max_bytes: int, disk: FeatureCache | None = None) -> None:
        """Begin with nothing in memory.

        Args:
            max_bytes: most bytes of features in memory.
            disk: a second tier, shared with other processes; while tower or merger are trained it takes in only
                features of the weights that were found at first.
        """
        self._adapter, self._max_bytes, self.disk = adapter, max_bytes, disk
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._weights: str | None = None
        self._first_weights: str | None = None
        self._seen_weights: tuple[tuple[int, int], ...] = ()
        self._lock = threading.RLock()  # what is kept, counted and being made
        self._encoding = threading.Lock()  # the tower runs once at a time
        self._making: dict[str, threading.Event] = {}
        self.bytes = self.encoded = self.reused = self.loaded = 0

    @property
    def weights(self) -> str:
        """Fingerprint of what makes features, as it is now (see the module about changes that cannot be noticed)."""
        with self._lock:
            seen = versions(self._adapter)
            if self._weights is None or seen != self._seen_weights:
                self._weights, self._seen_weights = fingerprint(self._adapter), seen
                self._first_weights = self._first_weights or self._weights
            return self._weights

    def weights_changed(self) -> None:
        """Look at the weights again before the next feature; entries of other weights will not be found any more."""
        with self._lock:
            self._weights = None

    @property
    def frozen(self) -> bool:
        """Whether the features of a clip stay what they are while training: nothing in tower and merger is trained."""
        return not has_adapters(self._adapter) and not is_trained(self._adapter)

    def features(self, media: Sequence[Media], frames: FrameSource, *, trainable: bool = False) -> list[torch.Tensor]:
        """Features (tokens, hidden) of each clip, in order.

        Args:
            media: clips, repetitions allowed; a repeated clip's features are one tensor.
            frames: gives the pixels of a clip whose features are not kept.
            trainable: run the tower with the caller's gradient mode, once per distinct clip, and keep nothing.

        Raises:
            ValueError: gradients are wanted of a tower that is trained, but `trainable` is not set; or features and
                record disagree in length.
            CacheError: an entry on the disk is damaged or of something else.
        """
        if trainable:
            return self._anew(media, frames)
        if torch.is_grad_enabled() and is_trained(self._adapter):
            raise ValueError(
                "features without gradient were asked for where gradients are on, of a vision tower that is trained; "
                "pass trainable=True, freeze the tower (requires_grad_(False)), or ask inside torch.no_grad()"
            )
        if has_adapters(self._adapter):
            with torch.inference_mode(False), torch.no_grad():
                return self._anew(media, frames)
        weights, dtype = self.weights, self._dtype()
        wanted = {f"{weights}:{dtype}:{item.key}": item for item in media}
        found: dict[str, torch.Tensor] = {}
        encoded = 0
        while len(found) < len(wanted):
            mine, others = self._claim(wanted, found)
            try:
                if mine:
                    made, new = self._make(mine, frames, weights, dtype)
                    found |= made
                    encoded += new
                    self._keep(made)
            finally:
                self._give_up(mine)
            for (
                event
            ) in others:  # another thread makes these; where it fails, the next turn of the loop makes them here
                event.wait()
        with self._lock:
            self.encoded += encoded
            self.reused += len(media) - encoded
        return [found[f"{weights}:{dtype}:{item.key}"] for item in media]

    def holds(self, item: Media) -> bool:
        """Whether a clip's features are kept, in memory or on the disk, so that no tower has to run for them."""
        if has_adapters(self._adapter):
            return False
        weights, dtype = self.weights, self._dtype()
        with self._lock:
            if f"{weights}:{dtype}:{item.key}" in self._kept:
                return True
        return self.disk is not None and self.disk.holds(self._maker(weights, dtype), item.key)

    def maker(self) -> Maker:
        """What makes features here and now, as the disk names it."""
        return self._maker(self.weights, self._dtype())

    # ---- one call --------------------------------------------------------------------------------------------------

    def _claim(
        self, wanted: Mapping[str, Media], found: dict[str, torch.Tensor]
    ) -> tuple[dict[str, Media], list[threading.Event]]:
        """Put what is kept into `found`; returns what this call makes, and the events of what other threads make."""
        mine: dict[str, Media] = {}
        others = []
        with self._lock:
            for key, item in wanted.items():
                if key in found:
                    continue
                if key in self._kept:
                    self._kept.move_to_end(key)
                    found[key] = self._kept[key]
                elif key in self._making:
                    others.append(self._making[key])
                else:
                    self._making[key] = threading.Event()
                    mine[key] = item
        return mine, others

    def _give_up(self, mine: Mapping[str, Media]) -> None:
        with self._lock:
            for key in mine:
                self._making.pop(key).set()

    def _make(
        self, mine: Mapping[str, Media], frames: FrameSource, weights: str, dtype: str
    ) -> tuple[dict[str, torch.Tensor], int]:
        """Features from the disk, or else from the tower; and how many of them went through the tower."""
        made: dict[str, torch.Tensor] = {}
        maker = self._maker(weights, dtype) if self.disk is not None else None
        with torch.inference_mode(False), torch.no_grad():
            for key, item in mine.items():
                if self.disk is None or maker is None:
                    break
                kept = self.disk.get(maker, item.key, tokens=item.record.tokens)
                if kept is not None:
                    made[key] = kept.to(self._vision_device())
            with self._lock:
                self.loaded += len(made)
            missing = {key: item for key, item in mine.items() if key not in made}
            pixels = [frames(item) for item in missing.values()]
            with self._encoding:
                features = self._adapter.encode_clips(pixels)
            if missing and self.weights != weights:
                raise RuntimeError("the vision tower's weights changed while features were made; make them again")
            lasting = not is_trained(self._adapter) or weights == self._first_weights
            for (key, item), rows in zip(missing.items(), features, strict=True):
                _check(item, rows)
                # The tower gives views of a whole batch's output; a kept view would hold all of it.
                rows = rows if rows.untyped_storage().nbytes() == rows.nbytes else rows.clone()
                made[key] = rows
                if self.disk is not None and maker is not None and lasting:
                    self.disk.put(maker, item.key, rows)
        return made, len(missing)

    def _keep(self, made: Mapping[str, torch.Tensor]) -> None:
        with self._lock:
            for key, value in made.items():
                if key not in self._kept:
                    self._kept[key] = value
                    self.bytes += value.untyped_storage().nbytes()
            while self.bytes > self._max_bytes:
                _, value = self._kept.popitem(last=False)
                self.bytes -= value.untyped_storage().nbytes()

    def _anew(self, media: Sequence[Media], frames: FrameSource) -> list[torch.Tensor]:
        """Every distinct clip through the tower, in the gradient mode that is on; nothing is kept."""
        distinct = {item.key: item for item in media}
        pixels = [frames(item) for item in distinct.values()]
        with self._encoding:
            made = dict(zip(distinct, self._adapter.encode_clips(pixels), strict=True))
        for key, item in distinct.items():
            _check(item, made[key])
        with self._lock:
            self.encoded += len(distinct)
            self.reused += len(media) - len(distinct)
        return [made[item.key] for item in media]

    # ---- what makes features ---------------------------------------------------------------------------------------

    def _dtype(self) -> str:
        """The dtype of the tower's computation: autocast's where it is on, else that of the weights."""
        device = self._vision_device().type
        if torch.is_autocast_enabled(device):
            return str(torch.get_autocast_dtype(device)).removeprefix("torch.")
        return str(next(vision_parameters(self._adapter)).dtype).removeprefix("torch.")

    def _vision_device(self) -> torch.device:
        return next(vision_parameters(self._adapter)).device

    def _maker(self, weights: str, dtype: str) -> Maker:
        return Maker(
            family=self._adapter.family,
            weights=weights,
            processor=self._adapter.processor_digest,
            dtype=dtype,
            device=self._vision_device().type,
            model=self._adapter.checkpoint.model,
        )


def _check(item: Media, rows: torch.Tensor) -> None:
    if len(rows) != item.record.tokens:
        raise ValueError(
            f"the clip from {item.record.clip.start:g} s to {item.record.clip.end:g} s has {item.record.tokens} tokens "
            f"but {len(rows)} features: its frames are not those of its record"
        )
