"""How the processes of one engine wait for each other.

vLLM's engine core and its worker exchange messages through shared memory. For a second after each
message the reader looks again and again, yielding its turn in between but never sleeping
(``vllm.distributed.device_communicators.shm_broadcast``). While an engine generates, or waits for
KV, that keeps a core busy for nothing. Where the engine computes on a GPU the core was free anyway;
where it computes on CPU, the core is another engine's. vLLM has no switch for it.
"""

from __future__ import annotations

import logging
import time
from types import ModuleType

NAP_SECONDS = 0.0005
"""How much later a message may be seen; a CPU engine's step takes tens of milliseconds."""

_BETWEEN_LOOKS = "sched_yield"
"""What the module calls, by this name, between two looks."""

log = logging.getLogger("kvferry.engine")


def nap_between_looks(queues: ModuleType) -> None:
    """Makes the readers and writers of ``queues`` (vLLM's module) sleep between two looks.

    Only the wait is changed, not what is waited for. A vLLM whose module no longer waits like this
    is left alone, and a log line says so.
    """
    if not callable(getattr(queues, _BETWEEN_LOOKS, None)):
        log.warning("this vLLM waits otherwise than expected: its processes may keep cores busy")
        return
    setattr(queues, _BETWEEN_LOOKS, nap)


def nap() -> None:
    """Leave the core to others for ``NAP_SECONDS``."""
    time.sleep(NAP_SECONDS)
