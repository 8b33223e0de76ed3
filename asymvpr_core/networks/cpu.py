"""How torch uses the CPU in the offline stages."""

from __future__ import annotations

import ctypes
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # names and values of glibc's <malloc.h>
_KEEP_BYTES = 2**31 - 1


def prepare_cpu(threads: int) -> None:
    """Limit torch to `threads` threads and let the C library keep freed memory.

    torch's default thread count contends with everything else on a shared machine. glibc gives
    the activations' large blocks back to the kernel after every layer and takes them again,
    which took a large part of the time at batch 16 (docs/results.md).
    """
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none, and no such habit
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
