"""How the C library treats the memory of frames that come and go.

ZeroMQ allocates every arriving frame and frees it when its blocks are in place. By default memory
of that size goes back to the system each time, and the next frame pays for a page fault every 4
KiB: a quarter of what receiving costs on a virtual machine.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 64 << 20
_LARGEST_BYTES = 32 << 20
"""glibc takes no more."""


def keep_freed_frames() -> None:
    """Let this process keep up to 64 MiB of freed memory for the next frames. Glibc only."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        set_option(_M_MMAP_THRESHOLD, _LARGEST_BYTES)
