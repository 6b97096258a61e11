"""Broken files: the good frames come out right, bad packets are counted, nothing hangs and nothing is made up."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from closeup.tools.video import NoFrames, NotAVideo, Video, VideoError, probe

Reader = Callable[[Any], int]
GOP = 24  # of the plain file


def remux(source: Path, target: Path, **options: str) -> Path:
    """Copy the packets into another container."""
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as write:
        stream = read.streams.video[0]
        copy = write.add_stream_from_template(stream)
        for packet in read.demux(stream):
            if packet.size:
                packet.stream = copy
                write.mux(packet)
    return target


def overwrite(path: Path, start: float, end: float) -> Path:
    """Replace a part of the file, given as fractions of its size, by a pattern that is no video."""
    data = bytearray(path.read_bytes())
    first, last = int(len(data) * start), int(len(data) * end)
    data[first:last] = bytes((i * 37) % 251 for i in range(last - first))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_truncated_file_ends_with_its_last_good_frame(
    suffix: str, barcode_mp4: Path, tmp_path: Path, read_barcode: Reader
) -> None:
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    path = remux(barcode_mp4, tmp_path / f"cut{suffix}", **options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    with Video(path) as video:
        assert 2.0 < video.duration < 5.0, "the header promises 6 s"
        got = video.frames([0.0, 1.0, 2.0, video.duration - 1e-3, video.duration, 5.9, 1e6])
        codes = [read_barcode(picture) for picture in got.pixels]
        assert codes[:3] == [0, 30, 60]
        assert codes[3] == codes[4] == codes[5] == codes[6] == round(got.times[-1] * 30)
        assert got.times[-1] < video.duration <= got.times[-1] + 0.05
        if suffix == ".mp4":  # the other two drop the piece of a packet at their end without a word
            assert got.bad_packets >= 1
        skim = video.frames([0.0, 3.0, 5.9], mode="keyframe")
        assert [read_barcode(picture) for picture in skim.pixels] == [round(t * 30) for t in skim.times]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_overwritten_middle_spoils_only_its_own_groups(
    suffix: str, barcode_mp4: Path, tmp_path: Path, read_barcode: Reader
) -> None:
    path = overwrite(remux(barcode_mp4, tmp_path / f"hole{suffix}"), 0.45, 0.55)
    with Video(path) as video:
        times = [(n + 0.5) / 30 for n in range(180)]
        got = video.frames(times)
        codes = [read_barcode(picture) for picture in got.pixels]
        right = [code == n and abs(got.times[n] - n / 30) < 1e-3 for n, code in enumerate(codes)]
        hurt = {n // GOP for n in range(180) if not right[n]}
        assert 1 <= len(hurt) <= 3 and max(hurt) - min(hurt) == len(hurt) - 1, "only the groups around the hole suffer"
        assert got.bad_packets >= 1 or suffix == ".mkv", "Matroska's reader skips what is unreadable without a word"
        assert (got.times <= np.array(times)).all()
        assert codes == [round(time * 30) for time in got.times], "what is returned is whole and carries its own time"
        alone = [video.frames([times[n]]).times[0] for n in (5, 170, 60, 100)]
        assert alone == [got.times[n] for n in (5, 170, 60, 100)], "the same frame whether asked alone or in a row"


def test_flipped_bytes_neither_raise_nor_hang(barcode_mp4: Path, tmp_path: Path, read_barcode: Reader) -> None:
    path = remux(barcode_mp4, tmp_path / "noise.mkv")
    data = bytearray(path.read_bytes())
    for place in range(3000, len(data) - 3000, 1500):
        data[place] ^= 0xFF
    path.write_bytes(data)
    with Video(path) as video:
        got = video.frames([(n + 0.5) / 30 for n in range(180)])
        labels = [read_barcode(picture) == round(t * 30) for picture, t in zip(got.pixels, got.times, strict=True)]
        assert sum(labels) > 90, "most pictures survive and keep their times"


def test_header_without_any_picture(barcode_mp4: Path, tmp_path: Path) -> None:
    path = overwrite(remux(barcode_mp4, tmp_path / "hollow.mp4", movflags="faststart"), 0.0, 0.0)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 4] + bytes(len(data) - data.index(b"mdat") - 4))
    with pytest.raises(NoFrames, match="not one frame"):
        probe(path)


def test_missing_index_is_named(barcode_mp4: Path, tmp_path: Path) -> None:
    path = tmp_path / "unfinished.mp4"
    path.write_bytes(barcode_mp4.read_bytes()[:9000])
    with pytest.raises(NotAVideo, match="cut off"):
        Video(path)


def test_the_count_of_bad_packets_stays_with_the_file(barcode_mp4: Path, tmp_path: Path) -> None:
    path = overwrite(remux(barcode_mp4, tmp_path / "hole.mp4"), 0.45, 0.55)
    with Video(path) as video:
        first = video.frames([n / 30 for n in range(180)]).bad_packets
        assert first > 0
        assert video.frames([3.0]).bad_packets == first, "a frame from the cache does not hide the damage"
    with Video(path) as again:
        assert again.frames([3.0]).bad_packets == first


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_random_damage_gives_frames_or_a_typed_error(suffix: str, barcode_mp4: Path, tmp_path: Path) -> None:
    whole = remux(barcode_mp4, tmp_path / f"whole{suffix}").read_bytes()
    order = random.Random(suffix)
    outcomes = set()
    for case in range(25):
        data = bytearray(whole)
        first = order.randrange(len(data))
        last = min(len(data), first + order.randrange(1, 5000))
        kind = order.choice(["flip", "cut", "hole", "head", "insert"])
        if kind == "flip":
            for _ in range(20):
                data[order.randrange(len(data))] ^= 1 << order.randrange(8)
        elif kind == "cut":
            data = data[:first]
        elif kind == "hole":
            data[first:last] = order.randbytes(last - first)
        elif kind == "head":
            for _ in range(4):
                data[order.randrange(1500)] = order.randrange(256)
        else:
            data[first:first] = order.randbytes(300)
        path = tmp_path / f"case{case}{suffix}"
        path.write_bytes(data or b"\0")
        try:
            with Video(path) as video:
                times = [order.uniform(-1, video.duration + 1) for _ in range(6)]
                for mode in ("exact", "keyframe"):
                    got = video.frames(times, (24, 48), mode=mode)  # type: ignore[arg-type]
                    first_shown = probe(path).seconds(probe(path).first)
                    assert (got.times <= np.maximum(times, first_shown) + 1e-6).all(), f"{kind}, case {case}"
            outcomes.add("frames")
        except VideoError:
            outcomes.add("error")
    assert "frames" in outcomes
