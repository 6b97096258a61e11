"""A bounded folder of entries: whole or not there, never too large, never anybody else's files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from closeup.agent.models.diskstore import DEFAULT_MAX_BYTES, MARKER, CacheError, CacheFull, DiskStore


def name(number: int) -> str:
    return f"features/{'a' * 32}/0a/{number:032x}.safetensors"


def size_on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for root in ("features", "records") for file in (folder / root).rglob("*.*"))


STRAY = (
    "features/stray.txt",
    "features/notes/maker.json",
    "records/stray.json",
    f"features/{'a' * 32}/README",
    f"features/{'a' * 32}/notes.txt",
    f"features/{'a' * 32}/0a/mine.safetensors",
    f"features/{'a' * 32}/0a/{0:032x}.txt",
    f"features/{'a' * 32}/0a/deeper/{0:032x}.safetensors",
    f"records/0a/{0:031x}.json",
    f"records/{'a' * 32}/0a/{0:032x}.json",
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "new" / "cache")
    assert store.max_bytes == DEFAULT_MAX_BYTES
    assert store.read(name(0)) is None and not store.has(name(0))
    assert store.write(name(0), b"zero") and store.write(f"records/0a/{0x0A:032x}.json", b"{}")
    assert store.read(name(0)) == b"zero" and store.has(name(0)) and store.size() == 6
    store.write(name(0), b"never changes")
    assert DiskStore(tmp_path / "new" / "cache").read(name(0)) == b"zero"
    assert not list((tmp_path / "new" / "cache" / ".tmp").iterdir())


def test_the_least_used_go_first_and_the_bound_holds(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, max_bytes=1000)
    for i in range(9):
        store.write(name(i), bytes(100))
        os.utime(store.path(name(i)), (1000 + i, 1000 + i))
    store.read(name(0))
    for i in range(9, 40):
        store.write(name(i), bytes(100))
        os.utime(store.path(name(i)), (1000 + i, 1000 + i))
        assert size_on_disk(tmp_path) == store.size() <= 1000
    assert store.has(name(0)) and store.has(name(39)) and not store.has(name(1))
    assert not store.write(name(99), bytes(1001)) and store.refused == 1
    assert store.write(name(98), bytes(1000)) and store.size() == 1000


def test_a_full_store_can_refuse_instead(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, max_bytes=250, when_full="refuse")
    store.write(name(0), bytes(100))
    store.write(name(1), bytes(100))
    with pytest.raises(CacheFull, match="is full: 200 of 250 bytes.*closeup cache clear --dir"):
        store.write(name(2), bytes(100))
    assert store.has(name(0)) and store.has(name(1)) and not store.has(name(2))
    store.write(name(3), bytes(50))


def test_the_folder_remembers_its_bound(tmp_path: Path) -> None:
    DiskStore(tmp_path, max_bytes=500)
    assert DiskStore(tmp_path).max_bytes == 500
    store = DiskStore(tmp_path)
    for i in range(5):
        store.write(name(i), bytes(100))
    smaller = DiskStore(tmp_path, max_bytes=250)
    assert smaller.size() <= 250 and DiskStore(tmp_path).max_bytes == 250
    with pytest.raises(CacheError, match="number of bytes from 0 on"):
        DiskStore(tmp_path, max_bytes=-1)


def test_who_refuses_when_full_removes_nothing_when_opening_either(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, max_bytes=500)
    for i in range(4):
        store.write(name(i), bytes(100))
    with pytest.raises(CacheFull, match="holds 400 bytes, more than the 399.*closeup cache clear --dir"):
        DiskStore(tmp_path, max_bytes=399, when_full="refuse")
    assert store.size() == 400 and DiskStore(tmp_path).max_bytes == 500
    assert DiskStore(tmp_path, max_bytes=400, when_full="refuse").size() == 400
    assert DiskStore(tmp_path).max_bytes == 400


def test_a_bound_of_nothing_is_remembered_as_such(tmp_path: Path) -> None:
    DiskStore(tmp_path, max_bytes=0)
    again = DiskStore(tmp_path)
    assert again.max_bytes == 0 and not again.write(name(0), b"x") and again.size() == 0


@pytest.mark.parametrize("count", ["", "garbage", "-0000000000000000001\n", None])
def test_a_lost_count_is_made_again(tmp_path: Path, count: str | None) -> None:
    store = DiskStore(tmp_path, max_bytes=300)
    store.write(name(0), bytes(100))
    store.write(name(1), bytes(100))
    if count is None:
        (tmp_path / ".bytes").unlink()
    else:
        (tmp_path / ".bytes").write_text(count, encoding="ascii")
    store.write(name(2), bytes(100))
    assert store.size() == 300
    store.write(name(3), bytes(100))
    assert store.size() <= 300


def test_what_a_dead_process_left_is_swept(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, max_bytes=200)
    store.write(name(0), bytes(100))
    old, new = tmp_path / ".tmp" / "1-old", tmp_path / ".tmp" / "2-new"
    old.write_bytes(b"half of an")
    new.write_bytes(b"another process is at it")
    os.utime(old, (time.time() - 7200,) * 2)
    store.write(name(1), bytes(150))  # makes room
    assert not old.exists() and new.exists() and store.read(name(0)) is None
    assert store.remove(lambda entry: True) == (1, 150)
    assert not new.exists() and store.size() == 0


def test_only_a_store_is_ever_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(CacheError, match="is no feature cache: it holds 1 other things, first 'thesis.txt'"):
        DiskStore(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(CacheError, match="cannot be used"):
        DiskStore(tmp_path / "file")


@pytest.mark.parametrize(
    "marker", ["{", "[]", '{"format": 1}', '{"format": 2, "max_bytes": 1}', '{"format": 1, "max_bytes": -1}']
)
def test_another_format_is_refused(tmp_path: Path, marker: str) -> None:
    (tmp_path / MARKER).write_text(marker, encoding="utf-8")
    with pytest.raises(CacheError, match="give another folder"):
        DiskStore(tmp_path)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "features",
        "../x.bin",
        "features/../../x.bin",
        "/etc/passwd",
        "features/a/.b",
        "other/a.bin",
        "features//a.b",
        *STRAY,
    ],
)
def test_names_stay_inside(tmp_path: Path, bad: str) -> None:
    with pytest.raises(ValueError, match="is no name of a cache entry"):
        DiskStore(tmp_path).path(bad)


def test_a_file_that_is_no_entry_is_left_alone(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, max_bytes=100)
    for stray in STRAY:
        (tmp_path / stray).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / stray).write_text("mine", encoding="utf-8")
        os.utime(tmp_path / stray, (1000, 1000))  # the first to go, if it were an entry
    store.write(name(0), b"x")
    assert [entry.name for entry in store.entries()] == [name(0)]
    store.write(name(1), bytes(100))  # makes room
    assert [entry.name for entry in store.entries()] == [name(1)]
    assert store.remove(lambda entry: True) == (1, 100)
    assert all((tmp_path / stray).read_text(encoding="utf-8") == "mine" for stray in STRAY)


WORKER = """
import sys
from pathlib import Path
from closeup.agent.models.diskstore import DiskStore
store = DiskStore(Path(sys.argv[1]))
me = int(sys.argv[2])
for i in range(60):
    for who in (me, 9):  # its own, and one that all of them write
        name = f"features/{'a' * 32}/0a/{who}{i:031x}.safetensors"
        store.write(name, bytes([who]) * 500 + bytes([i]) * 500)
        found = store.read(name)
        assert found is None or (len(found) == 1000 and found[0] == who and found[-1] == i), name
"""


def test_processes_share_a_folder(tmp_path: Path) -> None:
    bound = 40_000
    store = DiskStore(tmp_path, max_bytes=bound)
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(i)], stderr=subprocess.PIPE)
        for i in range(3)
    ]
    largest = 0
    while any(worker.poll() is None for worker in workers):
        with store._locked():  # files come and go: without the lock no one moment is seen
            largest = max(largest, size_on_disk(tmp_path))
        time.sleep(0.005)
    for worker in workers:
        assert worker.wait() == 0, worker.communicate()[1].decode()
    assert 0 < largest <= bound
    assert bound * 0.8 < store.size() <= bound
    assert int((tmp_path / ".bytes").read_text()) == store.size()
    assert not list((tmp_path / ".tmp").iterdir())


KILLED = """
import sys
from pathlib import Path
from closeup.agent.models.diskstore import DiskStore
store = DiskStore(Path(sys.argv[1]))
print("ready", flush=True)
i = 0
while True:
    i = (i + 7) % 1000
    store.write(f"features/{'a' * 32}/0a/{i:032x}.safetensors", bytes([i % 256]) * 4000)
"""


def test_a_process_killed_at_any_moment_leaves_whole_entries(tmp_path: Path) -> None:
    bound = 20_000  # five entries: most writes make room first
    seen = 0
    DiskStore(tmp_path, max_bytes=bound)
    for pause in (0.0, 0.003, 0.03, 0.1, 0.11, 0.13):
        worker = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
        assert worker.stdout is not None and worker.stdout.readline() == b"ready\n"
        time.sleep(pause)
        worker.kill()
        worker.wait()
        worker.stdout.close()
        store = DiskStore(tmp_path)
        for entry in store.entries("features/aa"):
            data = store.read(entry.name)
            seen += 1
            assert data is not None and data == bytes([int(Path(entry.name).stem, 16) % 256]) * 4000
        assert store.size() <= bound
        following = f"features/{'b' * 32}/0a/{0:032x}.safetensors"
        store.write(following, bytes(4000))  # neither locked nor miscounted: the bound still holds
        assert store.has(following) and store.size() <= bound
    assert seen >= 5


def test_the_marker_says_what_the_folder_is(tmp_path: Path) -> None:
    DiskStore(tmp_path, max_bytes=5)
    assert json.loads((tmp_path / MARKER).read_text(encoding="utf-8"))["what"] == "vision features of closeup"
