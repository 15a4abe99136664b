"""Host allocator settings for long runs on CPU."""

import ctypes
import sys


def keep_freed_memory() -> None:
    """Tells glibc to keep what a program frees instead of giving it back to the kernel.

    XLA on CPU allocates every temporary anew at each call; given back, its pages are faulted in and cleared again: a
    quarter of a training step was spent so. Does nothing where the allocator is another.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
    libc.mallopt(arena_max, 1)  # one heap: what one thread frees, all may use
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 2**26)
