"""`FeatureCache`: vision features on disk, and what requests for clips became, so that a warm cache decodes nothing.

Two kinds of entries in one bounded folder (`diskstore.py`):

- `features/MAKER/PP/PIXELS.safetensors`: the features of a clip, by the digest of its very pixels and by their maker,
  that is, everything that turns pixels into features (`Maker`);
- `records/RR/REQUEST.json`: the `ClipRecord` a request became, by everything that turns a request into pixels: every
  byte of the video file (its digest; the identity samples large files), the clip (window, sampling, overlay), the
  frame size, the decoder with its version and resizer, FFmpeg's libraries, and Pillow where it draws an overlay.

Invariants
1. What comes out is what was put in for this very key, or `CacheError`: entries are checksummed, and say themselves
   whose they are, so that a file that was cut, changed, renamed or left by an older format is never used.
2. An entry that is not there is None, and nothing else is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from closeup.agent.models.diskstore import CacheError, CacheFull, DiskStore, Entry, WhenFull
from closeup.agent.trajectory import ClipRecord
from closeup.tools.video.backends import NAMES, load
from closeup.tools.video.clip import Clip
from closeup.tools.video.reader import Video

if TYPE_CHECKING:
    import torch

__all__ = ["CacheError", "CacheFull", "ClipRecords", "FeatureCache", "Maker", "Summary"]

FEATURES_FORMAT = 2
RECORDS_FORMAT = 2
_HEX = frozenset("0123456789abcdef")


class ClipRecords(Protocol):
    """Remembers what requests for clips became."""

    def find(self, clip: Clip, video: Video, size: tuple[int, int]) -> ClipRecord | None:
        """The record of a clip of `video` at `size` = (height, width) in pixels; None when it is not known."""
        ...

    def remember(self, record: ClipRecord, video: Video) -> None:
        """Keep a record."""
        ...


@dataclass(frozen=True, slots=True)
class Maker:
    """What turns pixels into features; makers that differ in anything but `model` have different keys.

    Attributes:
        family: of the model. weights: fingerprint of tower and merger. processor: digest of normalisation and patches.
        dtype: that of the computation. device: its type ("cpu", "cuda"), since kernels round differently.
        model: what the user called it; for people.
    """

    family: str
    weights: str
    processor: str
    dtype: str
    device: str
    model: str = ""

    @property
    def key(self) -> str:
        """32 hexadecimal digits."""
        named = {key: value for key, value in asdict(self).items() if key != "model"} | {"format": FEATURES_FORMAT}
        return hashlib.blake2b(json.dumps(named, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Summary:
    """Entries of one maker (`maker` None: the records): how many, their bytes, and the last use in epoch seconds."""

    maker: Maker | None
    key: str
    entries: int
    bytes: int
    used: float


class FeatureCache:
    """See the module's docstring. Safe under threads and processes."""

    def __init__(self, folder: Path, *, max_bytes: int | None = None, when_full: WhenFull = "evict") -> None:
        """Open or make a cache; the arguments and errors are those of `DiskStore`."""
        self.store = DiskStore(folder, max_bytes=max_bytes, when_full=when_full)

    # ---- features --------------------------------------------------------------------------------------------------

    def holds(self, maker: Maker, pixels: str) -> bool:
        """Whether there are features of these pixels (their digest) by this maker."""
        return self.store.has(_feature_name(maker, pixels))

    def get(self, maker: Maker, pixels: str, *, tokens: int) -> torch.Tensor | None:
        """Features (tokens, hidden) on the CPU, or None.

        Raises `CacheError` for an entry that is damaged, of other pixels, of another maker, or of another length.
        """
        from closeup.agent.models.featurefile import Damaged, unpack

        name = _feature_name(maker, pixels)
        data = self.store.read(name)
        if data is None:
            return None
        try:
            features = unpack(data, _about(maker, pixels))
            if features.ndim != 2 or len(features) != tokens:
                raise Damaged(f"it holds features of shape {tuple(features.shape)}, and the clip has {tokens} tokens")
        except Damaged as error:
            raise CacheError(self._not_used(name, str(error))) from None
        return features

    def put(self, maker: Maker, pixels: str, features: torch.Tensor) -> bool:
        """Keep features (tokens, hidden); False when they alone are larger than the cache may be.

        Raises `CacheFull` where the cache was told to refuse, `CacheError` when the folder cannot be written.
        """
        from closeup.agent.models.featurefile import pack

        name = _feature_name(maker, pixels)
        if self.store.has(name):
            return True
        about = f"features/{maker.key}/maker.json"
        if not self.store.has(about):
            self.store.write(about, (json.dumps(asdict(maker), sort_keys=True) + "\n").encode())
        return self.store.write(name, pack(features, _about(maker, pixels)))

    # ---- records ---------------------------------------------------------------------------------------------------

    def find(self, clip: Clip, video: Video, size: tuple[int, int]) -> ClipRecord | None:
        """See `ClipRecords`. Raises `CacheError` for an entry that is damaged."""
        request = _request(clip, video, size)
        if request is None:
            return None
        name = _record_name(request)
        data = self.store.read(name)
        if data is None:
            return None
        try:
            entry = json.loads(data)
            if entry.pop("checksum", None) != _digest(entry):
                raise ValueError("its checksum does not fit its content")
            if entry["request"] != request:
                raise ValueError("it answers another request")
            record = ClipRecord.model_validate_json(json.dumps(entry["record"]))
            if record.clip != clip or record.size != size:
                raise ValueError("its record is of another clip")
        except (ValueError, KeyError, AttributeError, TypeError, ValidationError) as error:
            raise CacheError(self._not_used(name, str(error).splitlines()[0])) from None
        return record.model_copy(update={"seconds": 0.0})  # nothing was decoded now

    def remember(self, record: ClipRecord, video: Video) -> None:
        """See `ClipRecords`. Raises `CacheError` when other pixels were remembered for the same request."""
        request = _request(record.clip, video, record.size)
        if request is None:
            return
        known = self.find(record.clip, video, record.size)
        name = _record_name(request)
        if known is None:
            entry: dict[str, Any] = {"request": request, "record": record.model_dump(mode="json")}
            self.store.write(name, json.dumps({**entry, "checksum": _digest(entry)}).encode())
        elif known.digest != record.digest:
            raise CacheError(
                self._not_used(name, f"it says that the clip's pixels are {known.digest}, and they are {record.digest}")
            )

    # ---- for people ------------------------------------------------------------------------------------------------

    def summary(self) -> list[Summary]:
        """What is there, by maker; the records last."""
        groups: dict[str, list[Entry]] = {}
        for entry in self.store.entries():
            root, key, *_ = entry.name.split("/")
            if not entry.name.endswith("/maker.json"):
                groups.setdefault(key if root == "features" else "", []).append(entry)
        found = []
        for key in sorted(groups, reverse=True):  # the records' key is empty
            entries = groups[key]
            size, used = sum(entry.bytes for entry in entries), max(entry.used for entry in entries)
            found.append(Summary(self._maker(key) if key else None, key, len(entries), size, used))
        return found

    def faults(self) -> Iterator[str]:
        """Read every entry; yield a sentence for each that is damaged."""
        from closeup.agent.models.featurefile import Damaged, unpack

        for entry in self.store.entries():
            data = self.store.read(entry.name, touch=False)
            if data is None or entry.name.endswith("/maker.json"):
                continue
            root, key, *_, file = entry.name.split("/")
            try:
                if root == "features":
                    unpack(data, {"maker": key, "pixels": file.split(".")[0]})
                else:
                    record = json.loads(data)
                    if record.pop("checksum", None) != _digest(record):
                        raise Damaged("its checksum does not fit its content")
                    if _record_name(record["request"]) != entry.name:
                        raise Damaged("it answers another request")
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                yield self._not_used(entry.name, str(error))

    def clear(self, *, maker: str | None = None, name: str | None = None) -> tuple[int, int]:
        """Remove entries; returns their number and bytes.

        Args:
            maker: only features whose maker's key begins so. name: only this entry. Neither: everything.

        Raises:
            ValueError: an empty text, which is more likely a name that got lost than a wish to remove everything.
        """
        for option, given in (("maker", maker), ("name", name)):
            if given == "":
                raise ValueError(f"{option} is empty; say what to remove, or leave it out (None) to remove everything")

        def wanted(entry: Entry) -> bool:
            if name is not None:
                return entry.name == name
            return maker is None or entry.name.startswith(f"features/{maker}")

        return self.store.remove(wanted)

    def _maker(self, key: str) -> Maker | None:
        data = self.store.read(f"features/{key}/maker.json", touch=False)
        try:
            return None if data is None else Maker(**json.loads(data))
        except (ValueError, TypeError):
            return None

    def _not_used(self, name: str, fault: str) -> str:
        return (
            f"{self.store.path(name)} cannot be used: {fault}. "
            f"Remove it with: closeup cache clear {self.store.option} --entry {name}"
        )


def _feature_name(maker: Maker, pixels: str) -> str:
    if len(pixels) != 32 or not _HEX.issuperset(pixels):
        raise CacheError(f"a clip's pixels are named by 32 hexadecimal digits, got {pixels!r}; record the clip again")
    return f"features/{maker.key}/{pixels[:2]}/{pixels}.safetensors"


def _about(maker: Maker, pixels: str) -> dict[str, str]:
    return {"maker": maker.key, "pixels": pixels}


def _request(clip: Clip, video: Video, size: tuple[int, int]) -> dict[str, Any] | None:
    """Everything that turns a request into pixels; None for a video that no known decoder reads (tests have some)."""
    if video.backend not in NAMES:
        return None
    import av

    decoder = load(video.backend)
    libraries: Mapping[str, tuple[int, ...]] = av.library_versions
    request: dict[str, Any] = {
        "format": RECORDS_FORMAT,
        "content": video.content_digest(),
        "clip": clip.model_dump(mode="json"),
        "size": list(size),
        "decoder": [decoder.name, decoder.version, decoder.resizer],
        "libraries": {name: list(version) for name, version in sorted(libraries.items())},
    }
    if clip.overlay is not None or clip.resizer == "bicubic":
        import PIL

        request["pillow"] = PIL.__version__
    return request


def _record_name(request: Mapping[str, Any]) -> str:
    key = _digest(request)
    return f"records/{key[:2]}/{key}.json"


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()
