"""Features on disk: what comes out is what went in for this very key, or an error that names the file."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from closeup.agent.models.featurecache import CacheError, FeatureCache, Maker
from closeup.agent.models.featurefile import Damaged, pack, unpack
from closeup.agent.models.testing import SyntheticVideo
from closeup.agent.trajectory import ClipRecord
from closeup.tools.video import Video
from closeup.tools.video.clip import Clip

MAKER = Maker(family="qwen2_5_vl", weights="w" * 32, processor="p" * 16, dtype="float32", device="cpu", model="tiny")
PIXELS, OTHER = "0a" * 16, "0b" * 16


def features(seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache")


def file_of(cache: FeatureCache, maker: Maker, pixels: str) -> Path:
    return cache.store.folder / "features" / maker.key / pixels[:2] / f"{pixels}.safetensors"


# ---- one file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_file_gives_back_the_very_bits(dtype: torch.dtype) -> None:
    rows = features(dtype=dtype)
    rows[0, 0], rows[0, 1] = float("inf"), -0.0
    found = unpack(pack(rows, {"maker": "m"}), {"maker": "m"})
    assert found.dtype == dtype and torch.equal(found.view(torch.uint8), rows.view(torch.uint8))
    assert torch.equal(unpack(pack(rows.T.contiguous().T, {}), {}), rows)  # in another memory order


WHOLE = pack(features(), {"maker": "m", "pixels": "p"})


HEADER = 8 + int.from_bytes(WHOLE[:8], "little")


def test_any_changed_byte_of_the_header_is_found() -> None:
    """Every byte of it with every other value: among them other dtypes of the same width, and other white space."""
    missed = []
    for place in range(HEADER):
        broken = bytearray(WHOLE)
        for change in range(1, 256):
            broken[place] = WHOLE[place] ^ change
            with contextlib.suppress(Damaged):
                unpack(bytes(broken), {"maker": "m", "pixels": "p"})
                missed.append(bytes(broken[max(0, place - 12) : place + 12]))
    assert missed == []


@pytest.mark.parametrize("other", [b"I32", b"U32"])
def test_features_of_another_dtype_are_found(other: bytes) -> None:
    assert WHOLE[:HEADER].count(b'"F32"') == 1
    with pytest.raises(Damaged, match="checksum"):
        unpack(WHOLE.replace(b'"F32"', b'"' + other + b'"', 1), {"maker": "m", "pixels": "p"})


@pytest.mark.parametrize("name", ["checksum", "format"])
def test_what_the_file_says_itself_cannot_be_said_for_it(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name!r}.*of its own"):
        pack(features(), {name: "x"})


@pytest.mark.parametrize("rows", [features().to(torch.int32), features() > 0], ids=["int", "bool"])
def test_features_are_floating(rows: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="floating"):
        pack(rows, {"maker": "m"})


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_any_changed_byte_is_found(place: int, change: int) -> None:
    broken = bytearray(WHOLE)
    broken[place] ^= change
    with pytest.raises(Damaged):
        unpack(bytes(broken), {"maker": "m", "pixels": "p"})


@given(st.integers(0, len(WHOLE) - 1))
def test_any_cut_is_found(length: int) -> None:
    with pytest.raises(Damaged):
        unpack(WHOLE[:length], {"maker": "m", "pixels": "p"})


def test_more_bytes_than_there_should_be_are_found() -> None:
    with pytest.raises(Damaged, match="holds"):
        unpack(WHOLE + b"\0", {"maker": "m", "pixels": "p"})


# ---- the cache -----------------------------------------------------------------------------------------------------


def test_what_is_kept_comes_back(cache: FeatureCache) -> None:
    assert cache.get(MAKER, PIXELS, tokens=6) is None and not cache.holds(MAKER, PIXELS)
    assert cache.put(MAKER, PIXELS, features())
    again = FeatureCache(cache.store.folder)
    found = again.get(MAKER, PIXELS, tokens=6)
    assert found is not None and torch.equal(found, features()) and again.holds(MAKER, PIXELS)


@pytest.mark.parametrize(
    "change",
    [{"weights": "v" * 32}, {"processor": "q" * 16}, {"dtype": "bfloat16"}, {"device": "cuda"}, {"family": "other"}],
    ids=str,
)
def test_another_maker_finds_nothing(cache: FeatureCache, change: dict[str, str]) -> None:
    cache.put(MAKER, PIXELS, features())
    assert cache.get(replace(MAKER, **change), PIXELS, tokens=6) is None
    assert cache.get(MAKER, OTHER, tokens=6) is None
    assert cache.get(replace(MAKER, model="the same weights under another name"), PIXELS, tokens=6) is not None


def test_features_of_another_format_are_not_found(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older closeup's entries are nobody's: they are encoded anew, and make room when room is needed."""
    cache.put(MAKER, PIXELS, features())
    assert cache.get(MAKER, PIXELS, tokens=6) is not None
    monkeypatch.setattr("closeup.agent.models.featurecache.FEATURES_FORMAT", 1)
    assert cache.get(MAKER, PIXELS, tokens=6) is None


def damage_cut(file: Path, other: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def damage_changed(file: Path, other: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def damage_empty(file: Path, other: Path) -> None:
    file.write_bytes(b"")


def damage_other_clip(file: Path, other: Path) -> None:
    shutil.copy(other, file)


def damage_old_format(file: Path, other: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data.replace(b"closeup features 2", b"closeup features 1"))


@pytest.mark.parametrize(
    "damage", [damage_cut, damage_changed, damage_empty, damage_other_clip, damage_old_format], ids=lambda d: d.__name__
)
def test_a_wrong_entry_is_an_error_that_names_file_and_command(cache: FeatureCache, damage: Any) -> None:
    cache.put(MAKER, PIXELS, features(0))
    cache.put(MAKER, OTHER, features(1))
    file = file_of(cache, MAKER, PIXELS)
    damage(file, file_of(cache, MAKER, OTHER))
    name = file.relative_to(cache.store.folder)
    with pytest.raises(CacheError) as caught:
        cache.get(MAKER, PIXELS, tokens=6)
    assert str(file) in str(caught.value)
    assert str(caught.value).endswith(f"Remove it with: closeup cache clear --dir {cache.store.folder} --entry {name}")
    (fault,) = cache.faults()
    assert str(file) in fault
    assert cache.clear(name=name.as_posix())[0] == 1
    assert cache.get(MAKER, PIXELS, tokens=6) is None
    assert cache.get(MAKER, OTHER, tokens=6) is not None and list(cache.faults()) == []


def test_an_entry_of_another_maker_in_its_place_is_an_error(cache: FeatureCache) -> None:
    newer = replace(MAKER, weights="v" * 32)
    cache.put(MAKER, PIXELS, features())
    cache.put(newer, OTHER, features())
    shutil.copy(file_of(cache, MAKER, PIXELS), cache.store.folder / "features" / newer.key / "0a.safetensors")
    file_of(cache, newer, PIXELS).parent.mkdir(exist_ok=True)
    shutil.copy(file_of(cache, MAKER, PIXELS), file_of(cache, newer, PIXELS))
    with pytest.raises(CacheError, match="its maker is"):
        cache.get(newer, PIXELS, tokens=6)


def test_features_of_another_length_are_an_error(cache: FeatureCache) -> None:
    cache.put(MAKER, PIXELS, features())
    with pytest.raises(CacheError, match=r"shape \(6, 8\), and the clip has 7 tokens"):
        cache.get(MAKER, PIXELS, tokens=7)


@pytest.mark.parametrize("pixels", ["", "../../../etc/passwd", "0A" * 16, "0a" * 15])
def test_a_digest_is_never_a_path(cache: FeatureCache, pixels: str) -> None:
    with pytest.raises(CacheError, match="32 hexadecimal digits"):
        cache.get(MAKER, pixels, tokens=6)


def test_a_summary_tells_makers_apart(cache: FeatureCache, make_video: Any) -> None:
    other = replace(MAKER, dtype="bfloat16")
    cache.put(MAKER, PIXELS, features())
    cache.put(MAKER, OTHER, features())
    cache.put(other, PIXELS, features(dtype=torch.bfloat16))
    with Video(make_video()) as video:
        cache.remember(record_of(video), video)
    found = {group.maker.dtype if group.maker else "records": group for group in cache.summary()}
    assert {kind: group.entries for kind, group in found.items()} == {"float32": 2, "bfloat16": 1, "records": 1}
    assert cache.summary()[-1].maker is None
    assert cache.clear(maker=other.key)[0] == 2  # its features, and the file that describes it
    assert [group.entries for group in cache.summary()] == [2, 1]
    cache.clear()
    assert cache.summary() == []
    cache.put(MAKER, PIXELS, features())  # and it goes on
    assert cache.summary()[0].maker == MAKER


# ---- records -------------------------------------------------------------------------------------------------------


def clip_of(video: Video, **changes: Any) -> Clip:
    return Clip(**({"video": video.identity, "start": 0, "end": 2, "num_frames": 4, "pixels": 56 * 56} | changes))


def record_of(video: Video, *, digest: str = PIXELS, size: tuple[int, int] = (56, 56), **changes: Any) -> ClipRecord:
    return ClipRecord(
        clip=clip_of(video, **changes), times=(0.0, 0.1, 1.3, 2.0), size=size, tokens=8, seconds=1.5, digest=digest
    )


def test_a_request_is_remembered_by_all_that_makes_its_pixels(
    cache: FeatureCache, make_video: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Video(make_video()) as video, Video(make_video(shade=40)) as other:
        record = record_of(video)
        assert cache.find(record.clip, video, (56, 56)) is None
        cache.remember(record, video)
        assert cache.find(record.clip, video, (56, 56)) == record.model_copy(update={"seconds": 0.0})
        cache.remember(record, video)  # once more is fine
        assert cache.find(record.clip, video, (28, 28)) is None
        assert cache.find(clip_of(video, end=2.5), video, (56, 56)) is None
        assert cache.find(clip_of(video, overlay="seconds"), video, (56, 56)) is None
        assert cache.find(clip_of(other), other, (56, 56)) is None
        import av

        monkeypatch.setattr(av, "library_versions", av.library_versions | {"libavcodec": (1, 2, 3)})
        assert cache.find(record.clip, video, (56, 56)) is None


def test_videos_that_share_an_identity_have_records_of_their_own(
    cache: FeatureCache, twins: tuple[Path, Path], tmp_path: Path
) -> None:
    with Video(twins[0]) as red, Video(twins[1]) as blue:
        assert clip_of(red) == clip_of(blue)
        cache.remember(record_of(red), red)
        assert cache.find(clip_of(blue), blue, (56, 56)) is None
        cache.remember(record_of(blue, digest=OTHER), blue)
        found = [cache.find(clip_of(video), video, (56, 56)) for video in (red, blue)]
        assert [record.digest for record in found if record is not None] == [PIXELS, OTHER]
    copy = tmp_path / "elsewhere.avi"
    shutil.copy(twins[1], copy)
    with Video(copy) as same:
        known = cache.find(clip_of(same), same, (56, 56))
        assert known is not None and known.digest == OTHER


def test_an_overlay_depends_on_pillow(cache: FeatureCache, make_video: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Video(make_video()) as video:
        record = record_of(video, overlay="seconds")
        cache.remember(record, video)
        assert cache.find(record.clip, video, (56, 56)) is not None
        monkeypatch.setattr("PIL.__version__", "0.1")
        assert cache.find(record.clip, video, (56, 56)) is None


def test_other_pixels_for_the_same_request_are_an_error(cache: FeatureCache, make_video: Any) -> None:
    with Video(make_video()) as video:
        cache.remember(record_of(video), video)
        with pytest.raises(CacheError, match=f"pixels are {PIXELS}, and they are {OTHER}.*closeup cache clear"):
            cache.remember(record_of(video, digest=OTHER), video)


def test_a_damaged_record_is_an_error(cache: FeatureCache, make_video: Any) -> None:
    with Video(make_video()) as video:
        record = record_of(video)
        cache.remember(record, video)
        cache.remember(record_of(video, end=3), video)
        first, second = sorted((cache.store.folder / "records").rglob("*.json"))
        whole = first.read_text(encoding="utf-8")
        clip = Clip.model_validate(json.loads(whole)["record"]["clip"])
        for broken in (whole[:-5], whole.replace(PIXELS, OTHER), "[]", "{}", second.read_text(encoding="utf-8")):
            first.write_text(broken, encoding="utf-8")
            with pytest.raises(CacheError, match=f"{first}.*closeup cache clear"):
                cache.find(clip, video, (56, 56))
            assert len(list(cache.faults())) == 1


def test_videos_without_a_known_decoder_are_not_remembered(cache: FeatureCache) -> None:
    video = SyntheticVideo(7)
    cache.remember(record_of(video), video)
    assert cache.find(clip_of(video), video, (56, 56)) is None and cache.summary() == []


def test_the_folder_can_be_looked_at_without_torch() -> None:
    code = "import sys, closeup.agent.models.featurecache; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
