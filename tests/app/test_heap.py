"""The heap really shrinks: seen from a process of its own, since this one's heap has a history."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from closeup.app import heap

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library: nothing is promised there")


def run(code: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return [float(word) for word in done.stdout.split()]


MEASURE = """
import ctypes, threading
from pathlib import Path
from closeup.app import heap
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def mib():
    rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("Anonymous")) / 1024
"""


@glibc
def test_what_is_free_goes_back() -> None:
    code = """
blocks = [libc.malloc(1000) for _ in range(100_000)]
for block in blocks: ctypes.memset(block, 1, 1000)
for block in blocks[:-1]: libc.free(block)  # the last one keeps the heap's end where it is
before = mib()
print(int(heap.give_back()), before - mib())
"""
    told, freed = run(MEASURE + code)
    assert told == 1
    assert freed > 70  # of 95 MiB


@glibc
def test_threads_share_their_heaps() -> None:
    code = """
if {few}: assert heap.few_arenas(2)
start = threading.Barrier(12)
def work():
    start.wait()
    libc.free(libc.malloc(1000))
    start.wait()
threads = [threading.Thread(target=work) for _ in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
import os, tempfile
libc.fopen.restype, libc.fopen.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p]
libc.malloc_info.argtypes, libc.fclose.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
name = tempfile.mktemp()
file = libc.fopen(name.encode(), b"w")
libc.malloc_info(0, file)
libc.fclose(file)
print(Path(name).read_text().count("<heap nr"))
os.unlink(name)
"""
    assert run(MEASURE + code.replace("{few}", "True"))[0] <= 2
    assert run(MEASURE + code.replace("{few}", "False"))[0] > 2  # without it there are more


def test_no_arena_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one arena is needed, got 0"):
        heap.few_arenas(0)


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    assert not heap.few_arenas() and not heap.give_back()
