"""The C heap of a process that serves for days: fewer arenas, and what is free goes back to the system.

Every question has threads of its own, and glibc gives threads heaps of their own, up to eight for every core, each of
which keeps what its threads once needed. Measured on the demo with the bundled model, 100 questions of four clients on
two cores: 120 MiB more than at the start with arenas as they come, 53 MiB with two (`benchmarks/demo.py`).

Both functions do nothing where the C library is another one: memory is then as it would be without them.
"""

from __future__ import annotations

import ctypes
import functools

_ARENA_MAX = -8  # M_ARENA_MAX of glibc's malloc.h


def few_arenas(count: int = 2) -> bool:
    """Let threads share `count` heaps from now on; tells whether the C library could be told so.

    Heaps that exist already stay, so a process says this before it starts threads. Raises `ValueError` for none.
    """
    if count < 1:
        raise ValueError(f"at least one arena is needed, got {count}")
    libc = _glibc()
    return libc is not None and libc.mallopt(_ARENA_MAX, count) == 1


def give_back() -> bool:
    """Give the free pages of every heap back to the system; tells whether there were any. Takes milliseconds."""
    libc = _glibc()
    return libc is not None and libc.malloc_trim(0) == 1


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  # there in glibc alone
    except (OSError, AttributeError, TypeError):
        return None
    libc.malloc_trim.argtypes = [ctypes.c_size_t]
    libc.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    return libc
