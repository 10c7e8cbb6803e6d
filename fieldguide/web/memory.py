"""How the C library keeps memory that is free: for glibc, whose defaults hold on to it in each thread; elsewhere nothing."""

import ctypes
import sys

ARENA_MAX = -8  # M_ARENA_MAX of glibc's malloc.h
ARENAS = 2


def share() -> None:
    """Lets all threads take from a few heaps, before they start: one for each would keep what that thread once needed."""
    if libc := _glibc():
        libc.mallopt(ARENA_MAX, ARENAS)


def give_back() -> None:
    """Returns what is free to the system; after the loading of a model that is several times its size."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") else None
