"""Memory of the host in long runs: settings of the allocator, and how much was in use."""

import ctypes
import resource
import sys


def keep_freed_memory() -> None:
    """Tells glibc to keep what a program frees, up to blocks of 32 MiB, instead of giving it back to the kernel.

    XLA on CPU allocates every temporary anew at each call; given back, its pages are faulted in and cleared again: a
    quarter of a training step of the demo was spent so. Blocks of a large model do go back: kept, they would leave
    holes that the next ones do not fit. Does nothing where the allocator is another.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    trim_threshold, top_pad, mmap_threshold, arena_max = -1, -2, -3, -8
    libc.mallopt(arena_max, 1)  # one heap: what one thread frees, all may use
    libc.mallopt(mmap_threshold, 2**25)  # the largest that glibc takes
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 2**26)


def peak_bytes() -> int:
    """Most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
