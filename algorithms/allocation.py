"""Keeps freed CPU memory in the process, so that temporaries of an update cost no page faults.

glibc hands blocks of a megabyte back to the kernel when they are freed; touching them anew then costs more than the
arithmetic of an element-wise operation (10 times for a megabyte, measured).
"""

from __future__ import annotations

import ctypes
import functools

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT_BYTES = 1 << 30  # blocks below this come from the heap, and the heap's free end stays up to this size


@functools.cache
def keep_freed_memory() -> bool:
    """Sets glibc's thresholds for the whole process, once; False, and no change, where there is no mallopt."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)) & bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))
