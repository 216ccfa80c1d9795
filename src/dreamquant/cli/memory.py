"""How the process holds its memory: a setting of the command line's own process, never of a program that imports us."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # parameters of glibc's mallopt


def keep_memory() -> bool:
    """Have the C library keep the memory that tensors leave, for the tensors to come; whether it can (glibc only).

    It would give every large one back to the system, and fresh pages cost more than the arithmetic on them: on images of
    224 a dreaming update takes about twice as long, on images of 32 a tenth longer (benchmarks/memory.py).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(MMAP_MAX, 0)) and bool(mallopt(TRIM_THRESHOLD, -1))
