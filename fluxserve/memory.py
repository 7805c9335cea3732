"""What the C library does with memory that is free again."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 256 * 1024


def give_memory_back() -> None:
    """Large buffers are given back to the system as soon as they are free.

    glibc (mallopt(3)) keeps what is smaller than the largest that was ever freed; others do as they do.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
