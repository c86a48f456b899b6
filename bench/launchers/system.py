"""What a benchmark may do with any system it measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.client import Body, Timeline
from bench.counters import CacheCounters
from bench.processes import Child

START_SECONDS = 300.0
"""How long a system may take to come up."""

MODEL_NAME = "model"
"""The name every system serves the model under."""


@dataclass(frozen=True)
class Setting:
    """What is the same for all systems of a run.

    ``dtype`` is vLLM's; ``compiled`` is false for ``--enforce-eager``; ``chunk_tokens`` is its
    ``--max-num-batched-tokens``; ``environ`` what child processes inherit; ``logs`` a folder for
    what they write, ``scratch`` for their sockets.
    """

    model: Path
    dtype: str
    compiled: bool
    environ: Mapping[str, str]
    logs: Path
    scratch: Path
    python: str
    first_port: int
    chunk_tokens: int = 512
    block_size: int = 32
    kv_gib: int = 1


class System(Protocol):
    """A system under measurement, between ``start`` and ``stop``."""

    name: str

    async def start(self) -> None:
        """Bring it up. Raises StartFailed, with nothing left behind."""

    async def stop(self) -> None:
        """Take it down to the last process."""

    async def stream(self, body: Body, intended: float, lane: int = 0) -> Timeline:
        """One streamed completion. ``lane``: its number, where requests are dealt round robin."""

    async def complete(self, body: Body, lane: int = 0) -> Mapping[str, Any]:
        """One completion in one piece. Raises RequestFailed."""

    async def forget(self) -> None:
        """Empty the prefix cache of the engine that decodes. Raises RequestFailed."""

    async def counters(self) -> Mapping[str, CacheCounters]:
        """Every engine's counters; the one that decodes is called ``decode``."""

    def children(self) -> Sequence[Child]:
        """The processes it consists of."""
