"""Settings of glibc's malloc, which by default keeps free memory in each thread; no effect with other C libraries."""

import ctypes
import sys

ARENA_MAX = -8  # M_ARENA_MAX of glibc's malloc.h
ARENAS = 2


def share() -> None:
    """Makes all threads share a few heaps; call it before they start. One heap per thread would keep its peak memory."""
    if libc := _glibc():
        libc.mallopt(ARENA_MAX, ARENAS)


def give_back() -> None:
    """Returns free memory to the system; after loading a model it is several times the model's size."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") else None
