"""Which cores a thread may use."""

from __future__ import annotations

import os


def unbind_from_core() -> None:
    """Let the calling thread run on any core that the parent of its process may use.

    On CPU the engine binds its worker, and the threads started by it, to the compute core; a
    thread that moves bytes there would stall the computation it should hide behind.
    """
    os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
