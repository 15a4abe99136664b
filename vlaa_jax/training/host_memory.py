"""Memory of the host: pages that the allocator asks for, and how much was in use."""

import os
import resource
import sys

_TUNABLES = "GLIBC_TUNABLES"
# A variable of the process: glibc (2.35 or later) then asks for pages of 2 MiB; another allocator ignores it.
LARGE_PAGES = {_TUNABLES: "glibc.malloc.hugetlb=1"}


def use_large_pages() -> None:
    """Starts this process once more, with `LARGE_PAGES`. To be called first; it returns where they are set or refused.

    XLA on CPU allocates every temporary anew at each call. To fault in and clear it in pages of 4 KiB takes a quarter
    of an update of 110 M weights; in large ones next to nothing. glibc reads the setting only as a process starts.
    """
    before = os.environ.get(_TUNABLES, "")
    if not sys.platform.startswith("linux") or "malloc.hugetlb" in before:
        return
    os.environ[_TUNABLES] = ":".join(filter(None, (before, LARGE_PAGES[_TUNABLES])))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def peak_bytes() -> int:
    """Most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
