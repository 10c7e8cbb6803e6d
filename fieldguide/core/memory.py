"""Settings of glibc's malloc; no effect with other C libraries."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # M_... of glibc's malloc.h
ARENAS = 2
KEPT_BYTES, HEAP_BLOCK_BYTES = 2**31 - 1, 2**30


def share() -> None:
    """Makes all threads share a few heaps; call it before they start. One heap per thread would keep its peak memory."""
    if libc := _glibc():
        libc.mallopt(ARENA_MAX, ARENAS)


def keep() -> None:
    """Keeps freed memory for the next tensors, until `give_back`; call that now and then, as fragments add up.

    By default blocks of 32 MiB or more, the size of one layer's activations, are returned to the system when freed, and every
    page of the next one is fetched and zeroed anew: up to a third of the time of a forward pass (benchmarks/kept_memory.py).
    glibc 2.34 and older refuse so large a block, and stay as they are.
    """
    if (libc := _glibc()) and libc.mallopt(MMAP_THRESHOLD, HEAP_BLOCK_BYTES):
        libc.mallopt(TRIM_THRESHOLD, KEPT_BYTES)


def give_back() -> None:
    """Returns free memory to the system; after loading a model it is several times the model's size."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") else None
