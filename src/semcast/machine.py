"""What this machine can do, and what long runs ask of its C library's allocator; where that is not glibc, nothing happens.

Frames and activations come and go by the hundred megabytes. Left alone, glibc sits between two wishes: training wants to keep
what it frees, since the next step needs as much; a transmission of any length wants to hand it back, so that its peak does
not creep up with what fragments.
"""

from __future__ import annotations

import ctypes
import platform
from functools import lru_cache

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of mallopt(3)."""
PAD_BYTES = 10**9


def has_bf16() -> bool:
    """Whether the processor computes in bfloat16; one that has to imitate it is slower than in fp32, several times."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


@lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def keep_freed_memory() -> bool:
    """From now on this process keeps what it frees, instead of fetching it again page by page; returns whether it could."""
    library = _glibc()
    if library is None:
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: PAD_BYTES}
    return [library.mallopt(parameter, value) for parameter, value in settings.items()] == [1, 1, 1]


def return_freed_memory() -> bool:
    """Hand back to the system, once, what is free now; returns whether it could."""
    library = _glibc()
    if library is None:
        return False
    library.malloc_trim(0)
    return True
