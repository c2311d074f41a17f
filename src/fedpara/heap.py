"""How this process gives freed memory back to the system."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them
LARGE = 2**30


def keep_freed_memory() -> None:
    """Let glibc's heap keep freed memory below a gigabyte a piece for the next allocation; elsewhere do nothing.

    By default it returns a step's large activations to the system, which hands them out again page by page, each one
    filled with zeros: up to a fifth of a training step on a processor (docs/results/speed.md). The process stays as
    large as it was at its largest.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, -1)
