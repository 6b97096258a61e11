"""One process, many callers: threads, caches and forks never change an answer."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from closeup.tools.video import Clip, FileChanged, Video, cache_stats, clear_caches, localfile, reader, set_cache_limits
from closeup.tools.video.backends._pyav import PyAV
from closeup.tools.video.cache import Store

MIB = 1 << 20


@pytest.fixture
def limits() -> Any:
    """Put the default limits back after a test that changes them."""
    yield set_cache_limits
    set_cache_limits(frames_bytes=512 * MIB, knowledge_bytes=64 * MIB, readers_bytes=256 * MIB)


def check(video: Video, seed: int, read_barcode: Callable[[Any], int], rounds: int = 12) -> None:
    """Ask for random times at random sizes in both modes and read every barcode."""
    order = random.Random(seed)
    for _ in range(rounds):
        times = [order.uniform(0, 6.2) for _ in range(order.randint(1, 5))]
        size = order.choice([(96, 192), (48, 96), (96, 240)])
        got = video.frames(times, size)
        assert [read_barcode(p) for p in got.pixels] == [min(179, int(t * 30 + 1e-6)) for t in times]
        skim = video.frames(times, size, mode="keyframe")
        assert [read_barcode(p) for p in skim.pixels] == [min(179, int(t * 30 + 1e-6)) // 24 * 24 for t in times]


@pytest.mark.parametrize("frames_bytes", [512 * MIB, 200_000, 0])
def test_isolation_of_many_threads_on_one_video_and_on_one_file(
    frames_bytes: int, barcode_mp4: Path, read_barcode: Callable[[Any], int], limits: Any
) -> None:
    limits(frames_bytes=frames_bytes)
    with Video(barcode_mp4) as shared, ThreadPoolExecutor(8) as pool:
        own = [Video(barcode_mp4, threads=1) for _ in range(3)]
        list(pool.map(lambda seed: check([shared, *own][seed % 4], seed, read_barcode), range(8)))


def test_results_belong_to_the_caller(barcode_mp4: Path) -> None:
    with Video(barcode_mp4) as video:
        first = video.frames([1.0])
        kept = first.pixels.copy()
        assert first.pixels.flags.c_contiguous and first.pixels.dtype == np.uint8
        first.pixels[:] = 0
        assert (video.frames([1.0]).pixels == kept).all()


def test_a_second_look_decodes_nothing(barcode_mp4: Path) -> None:
    with Video(barcode_mp4) as video:
        for mode in ("exact", "keyframe"):
            first = video.frames([0.5, 1.5, 9.0], (48, 96), mode=mode)  # type: ignore[arg-type]
            before = cache_stats()
            again = video.frames([0.51, 1.51, 7.0], (48, 96), mode=mode)  # type: ignore[arg-type]
            after = cache_stats()
            assert (again.pixels == first.pixels).all() and (again.times == first.times).all()
            assert after["frames"].hits == before["frames"].hits + 3
            assert after["readers"].hits + after["readers"].misses == before["readers"].hits + before["readers"].misses


def test_a_cached_answer_equals_a_decoded_one(barcode_mp4: Path) -> None:
    with Video(barcode_mp4) as video:
        for options in ({}, {"overlay": "seconds"}, {"mode": "keyframe"}, {"mode": "keyframe", "overlay": "seconds"}):
            clip = Clip(video=video.identity, start=0, end=5, num_frames=9, pixels=9000, **options)
            fresh = video.frames(clip)
            cached = video.frames(clip)
            clear_caches()
            again = video.frames(clip)
            for other in (cached, again):
                assert (other.pixels == fresh.pixels).all() and (other.times == fresh.times).all()


def test_callers_with_one_request_decode_it_once(barcode_mp4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = PyAV.shots

    def counted(self: PyAV, *arguments: Any) -> Any:
        calls.append(arguments)
        return original(self, *arguments)

    monkeypatch.setattr(PyAV, "shots", counted)
    together = threading.Barrier(6)

    def ask(_: int) -> Any:
        together.wait()
        return video.frames([n / 7 for n in range(40)]).pixels

    with Video(barcode_mp4) as video, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6)))
    assert len(calls) == 1
    assert all((answer == answers[0]).all() for answer in answers)


def test_a_caller_who_comes_in_the_middle_waits_for_the_rest(
    barcode_mp4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    answers: list[Any] = []
    original = PyAV.shots
    latecomer = threading.Thread(target=lambda: answers.append(ask()))

    def halting(self: PyAV, *arguments: Any) -> Any:
        calls.append(arguments)
        for number, shot in enumerate(original(self, *arguments)):
            yield shot
            if number == 5:  # five frames are kept by now
                latecomer.start()
                latecomer.join(timeout=0.5)

    def ask() -> Any:
        return video.frames([n / 7 for n in range(40)]).pixels

    monkeypatch.setattr(PyAV, "shots", halting)
    with Video(barcode_mp4) as video:
        answers.append(ask())
        latecomer.join(timeout=60)
    assert len(answers) == 2 and (answers[0] == answers[1]).all()
    assert len(calls) == 1


def test_callers_at_one_time_get_the_same_thing_from_a_store() -> None:
    store: Store[str, object] = Store(1000)
    together = threading.Barrier(4)

    def make() -> object:
        together.wait(timeout=60)
        return object()

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda _: store.setdefault("key", make, lambda _: 1), range(4)))
    assert all(thing is got[0] for thing in got) and store.get("key") is got[0]


def test_different_sizes_overlays_and_contents_do_not_mix(barcode_mp4: Path, tmp_path: Path) -> None:
    with Video(barcode_mp4) as video:
        plain = Clip(video=video.identity, start=3, end=4, num_frames=2, pixels=20_000)
        drawn = plain.model_copy(update={"overlay": "seconds"})
        without, with_count = video.frames(plain), video.frames(drawn)
        assert (without.pixels != with_count.pixels).any()
        assert (video.frames(plain).pixels == without.pixels).all()
    path = tmp_path / "moving.mp4"
    path.write_bytes(barcode_mp4.read_bytes())
    with Video(path) as video:
        identity = video.identity
    path.write_bytes(barcode_mp4.read_bytes()[:-1] + b"\0")
    with Video(path) as video:
        assert video.identity != identity


def test_files_that_share_an_identity_share_nothing_else(twins: tuple[Path, Path]) -> None:
    def mean_colour(path: Path) -> Any:
        with Video(path) as video:
            return video.frames([8.0, 9.0], (16, 16)).pixels.reshape(-1, 3).mean(0)

    red, blue = map(mean_colour, twins)
    assert red[0] > 200 > 50 > red[2] and blue[2] > 200 > 50 > blue[0]


def test_a_copy_of_a_small_file_shares_its_frames(barcode_mp4: Path, tmp_path: Path) -> None:
    """Its identity covers every byte, so equal ones mean equal pixels."""
    copy = tmp_path / "renamed.mp4"
    copy.write_bytes(barcode_mp4.read_bytes())
    with Video(barcode_mp4) as one, Video(copy) as other:
        assert (one.frames([1.0]).pixels == other.frames([1.0]).pixels).all()
    assert cache_stats()["frames"].hits == 1


def test_the_content_digest_covers_every_byte_and_reads_a_file_once(
    twins: tuple[Path, Path], barcode_mp4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    digest = localfile.content_digest
    monkeypatch.setattr(reader, "content_digest", lambda stamp: read.append(stamp.path) or digest(stamp))
    with Video(twins[0]) as red, Video(twins[1]) as blue:
        with ThreadPoolExecutor(4) as pool:
            found = set(pool.map(lambda _: red.content_digest(), range(4)))
        assert found == {hashlib.sha256(twins[0].read_bytes()).hexdigest()} and blue.content_digest() not in found
    with Video(twins[0]) as again:
        assert {again.content_digest()} == found
    assert read == list(map(str, twins))
    path = tmp_path / "film.mp4"
    path.write_bytes(barcode_mp4.read_bytes())
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    with Video(path) as video:
        before = video.content_digest()
        path.write_bytes(barcode_mp4.read_bytes()[:-1] + b"\0")
        os.utime(path, ns=times)  # whoever rewrites a file and puts its date back cannot put back when that happened
        assert video.content_digest() != before
        path.write_bytes(b"other")
        with pytest.raises(FileChanged):
            video.content_digest()


def test_limits_hold_and_zero_keeps_nothing(barcode_mp4: Path, limits: Any) -> None:
    one = 48 * 96 * 3
    limits(frames_bytes=10 * one, readers_bytes=0)
    with Video(barcode_mp4) as video:
        video.frames([n / 10 for n in range(50)], (48, 96))
        stats = cache_stats()
        assert stats["frames"].entries == 10 and stats["frames"].bytes == 10 * one == stats["frames"].limit
        assert stats["readers"].entries == 0
        limits(frames_bytes=0, knowledge_bytes=0)
        assert cache_stats()["frames"].entries == cache_stats()["knowledge"].entries == 0
        assert video.frames([1.0]).times[0] == pytest.approx(1.0)
        assert cache_stats()["frames"].entries == 0
    with pytest.raises(ValueError, match="at least 0"):
        limits(frames_bytes=-1)


def test_readers_are_reused_and_bounded(barcode_mp4: Path, limits: Any) -> None:
    limits(frames_bytes=0)
    before = cache_stats()["readers"]
    with Video(barcode_mp4) as video:
        for n in range(5):
            video.frames([n / 2])
        after = cache_stats()["readers"]
        assert after.entries == 1
        assert (after.hits - before.hits, after.misses - before.misses) == (4, 1)
    limits(readers_bytes=1 * MIB)
    assert cache_stats()["readers"].entries == 0


def _ask(path: str, seed: int) -> list[int]:
    with Video(path) as video:
        return [round(float(t) * 30) for t in video.frames([seed / 3, 1.0]).times]


def test_forked_workers_read_while_the_parent_reads(barcode_mp4: Path) -> None:
    stop = threading.Event()

    def busy() -> None:
        with Video(barcode_mp4) as video:
            while not stop.is_set():
                video.frames([random.uniform(0, 6)], (24, 48))

    with Video(barcode_mp4) as video:
        video.frames([1.0, 3.0])
        threads = [threading.Thread(target=busy) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            with multiprocessing.get_context("fork").Pool(2) as pool:
                answers = pool.starmap(_ask, [(str(barcode_mp4), n) for n in range(6)], chunksize=1)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert answers == [[n * 10, 30] for n in range(6)]
        assert video.frames([2.0]).times[0] == pytest.approx(2.0)


def test_a_forked_child_that_ends_like_a_program_does_not_hang(barcode_mp4: Path) -> None:
    code = """
import os, sys
from closeup.tools.video import Video, cache_stats
video = Video(sys.argv[1], threads=4)
video.frames([1.0, 4.0])
child = os.fork()
if child == 0:
    assert cache_stats()["readers"].entries == 0, "the child starts with empty stores"
    assert abs(video.frames([2.0]).times[0] - 2.0) < 1e-6
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, str(barcode_mp4)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=dict(os.environ))
    assert done.stdout.strip() == "7", done.stderr
