"""Programs bound to one core each: the stub to the first, whoever is measured to the last."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import msgspec

from bench import processes
from bench.processes import Child, StartFailed
from bench.selftest.settings import SelftestFailed
from bench.stub.config import StubConfig

_START_SECONDS = 30.0
_POLL_SECONDS = 0.1

_STUB = (
    "import sys, msgspec; from bench.stub import StubConfig, run; "
    "run(msgspec.json.decode(sys.argv[1], type=StubConfig), '127.0.0.1', 0)"
)


def cores() -> tuple[int, int]:
    """The stub's and the client's; the same where there is one only."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


@asynccontextmanager
async def running_stub(config: StubConfig) -> AsyncIterator[str]:
    """A stub in a process of its own; its address. Raises SelftestFailed."""
    with tempfile.TemporaryDirectory(prefix="kvferry-selftest-") as folder:
        command = [sys.executable, "-c", _STUB, msgspec.json.encode(asdict(config)).decode()]
        child = _launch("stub", cores()[0], command, {}, Path(folder))
        try:
            await processes.until_ready(child, lambda: _listening(child), _START_SECONDS)
            yield child.log.read_text().strip()
        except StartFailed as error:
            raise SelftestFailed(str(error)) from None
        finally:
            await processes.stop(child)


async def finished(
    name: str,
    command: Sequence[str],
    environ: Mapping[str, str],
    folder: Path,
    seconds: float,
) -> None:
    """Run a client to its end, within ``seconds``. Raises SelftestFailed with its last lines."""
    child = _launch(name, cores()[1], command, environ, folder)
    deadline = time.monotonic() + seconds
    try:
        while child.running.poll() is None:
            if time.monotonic() > deadline:
                raise SelftestFailed(f"{name} took more than {seconds:.0f} s:\n{child.tail()}")
            await asyncio.sleep(_POLL_SECONDS)
        if child.running.returncode:
            code = child.running.returncode
            raise SelftestFailed(f"{name} ended with {code}:\n{child.tail()}")
    finally:
        await processes.stop(child)


def _launch(
    name: str, core: int, command: Sequence[str], environ: Mapping[str, str], folder: Path
) -> Child:
    bound = processes.bound(core, command)
    return processes.launch(name, bound, {**os.environ, **environ}, folder)


async def _listening(child: Child) -> bool:
    return child.log.read_text().startswith("http")
