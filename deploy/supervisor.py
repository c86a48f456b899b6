"""Everything of one cluster on this machine: started, kept up, ended without a trace.

Each part is a child under a keeper. A part that ends is started again with growing pauses; one
that ends with exit code 2 has said that trying again is useless. Before the cluster is ready that
ends the start; afterwards the rest goes on without it.

Order of ending: the proxy first, so that answers under way can finish, then all the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy import dram
from kvstore import cluster, probe
from kvstore.child import Child
from kvstore.cluster import ClusterConfig
from kvstore.errors import ConfigError
from kvstore.launch import Command
from kvstore.messages import ROLES, Role
from kvstore.restarts import Restarts

READY_SECONDS = 1200.0
PROBE_SECONDS = 2.0
PROBE_EVERY = 0.3
PROXY_STOP_SECONDS = 12.0
"""More than the proxy itself gives to answers under way."""
WORKER_STOP_SECONDS = 9.0
DRAM_STOP_SECONDS = 2.0
USELESS = 2
"""The exit code that says: it would only end the same way again."""


Tell = Callable[[str], None]


@dataclass
class Part:
    """One child: how it is started and what it is doing now.

    ``prepare`` runs before each start and at the very end.
    """

    name: str
    command: Command
    grace: float
    prefix: str = ""
    prepare: Callable[[], None] = lambda: None
    quiet: Callable[[str], bool] = lambda _line: False  # tells which lines are not worth showing
    child: Child | None = None
    given_up: bool = False
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


class Supervisor:
    """The parts of one cluster. Everything happens on one event loop."""

    def __init__(self, config: ClusterConfig, parts: Sequence[Part], tell: Tell) -> None:
        self._config = config
        self._parts = parts
        self._tell = tell
        self._ready = False
        self._gave_up = asyncio.Event()

    async def run(self, stop: asyncio.Event, when_ready: Callable[[], None]) -> None:
        """Runs until ``stop`` is set; ``when_ready`` is called once all can serve.

        Raises ConfigError when a part gives up before that.
        """
        keeping = [asyncio.create_task(self._keep(part)) for part in self._parts]
        try:
            await self._until(stop, self._all_ready())
            if stop.is_set():
                return
            if self._gave_up.is_set():
                names = ", ".join(part.name for part in self._parts if part.given_up)
                raise ConfigError(f"cannot start without {names}: see above")
            self._ready = True
            when_ready()
            await self._until(stop, asyncio.Event().wait())
        finally:
            await self._end()
            await asyncio.gather(*keeping)

    def kill(self) -> None:
        """Ends everything at once, for the impatient."""
        for part in self._parts:
            part.stopping.set()
            if part.child is not None:
                part.child.kill()

    async def _until(self, stop: asyncio.Event, work: Coroutine[Any, Any, Any]) -> None:
        """Returns when ``stop`` is set, ``work`` is done or, while starting, a part gave up."""
        waits: list[Coroutine[Any, Any, Any]] = [work, stop.wait()]
        if not self._ready:
            waits.append(self._gave_up.wait())
        tasks = [asyncio.create_task(wait) for wait in waits]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks[1:]:
            task.cancel()
        if not tasks[0].cancel():
            await tasks[0]

    async def _all_ready(self) -> None:
        """Returns when the proxy knows every worker as ready: what is announced to it can be used.

        Raises ConfigError after ``READY_SECONDS``.
        """
        proxy = base_url(self._config)
        wanted = {role: self._config.workers(role).count for role in ROLES}
        until = time.monotonic() + READY_SECONDS
        while not _counts_reach(wanted, await probe.get(proxy, "/ready", PROBE_SECONDS)):
            if time.monotonic() > until:
                raise ConfigError(
                    f"not ready after {READY_SECONDS:g} s: see what {proxy}/ready says"
                )
            await asyncio.sleep(PROBE_EVERY)

    async def _keep(self, part: Part) -> None:
        restarts = Restarts()
        while not part.stopping.is_set():
            started = time.monotonic()
            status = await self._run_once(part)
            if part.stopping.is_set():
                return
            pause = None if status == USELESS else restarts.after(time.monotonic() - started)
            if pause is None:
                part.given_up = True
                if status != USELESS:  # which comes with a line of its own
                    self._tell(f"{part.name}: ended with exit code {status}, given up")
                self._gave_up.set()
                return
            self._tell(f"{part.name}: ended with exit code {status}, restart in {pause:g} s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await part.stopping.wait()

    async def _run_once(self, part: Part) -> int:
        part.prepare()

        def on_line(line: str) -> None:
            if not part.quiet(line):
                self._tell(f"{part.prefix}{line}")

        env = {**os.environ, **part.command.env}
        part.child = await Child.start(part.command.argv, env, part.grace, on_line)
        return await part.child.wait()

    async def _end(self) -> None:
        first = [part for part in self._parts if part.name == "proxy"]
        rest = [part for part in self._parts if part.name != "proxy"]
        for some in (first, rest):
            await asyncio.gather(*(_stop(part) for part in some))
        for part in self._parts:
            part.prepare()


async def _stop(part: Part) -> None:
    part.stopping.set()
    if part.child is not None:
        await part.child.stop(part.grace)


def base_url(config: ClusterConfig) -> str:
    """Where clients on this machine reach the proxy."""
    host = config.proxy.host
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 - compared with, not bound
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{config.proxy.port}"


def parts(
    config: ClusterConfig, config_file: Path, on_gpu: bool, verbose: bool, followed: Path
) -> list[Part]:
    """All parts of ``config``, whose file for the children is ``config_file``.

    Workers and tenants come and go in the file that is ``followed``.
    """
    loud = ("--verbose",) if verbose else ()
    found = []
    if config.dram.enabled:
        found.append(
            Part(
                "dram",
                dram.command(config, on_gpu, verbose),
                DRAM_STOP_SECONDS,
                "dram | ",
                quiet=_never if verbose else _is_chatter,
                prepare=lambda: dram.remove_segment(config),
            )
        )
    for role in ROLES:
        for index in range(config.workers(role).count):
            name = cluster.worker_name(role, index)
            argv = (*_python(role), "--config", str(config_file), "--name", name, *loud)
            found.append(Part(name, Command(argv, {}), WORKER_STOP_SECONDS))
    argv = (*_python("proxy"), "--config", str(config_file), "--follow", str(followed))
    proxy = Command(argv, {})
    quiet = _never if verbose else _is_chatter
    found.append(Part("proxy", proxy, PROXY_STOP_SECONDS, "proxy | ", quiet=quiet))
    return found


def _never(_line: str) -> bool:
    return False


def _is_chatter(line: str) -> bool:
    """Whether a part's line says only that all is as it should be."""
    return line.startswith("INFO:") or " INFO " in line


def _python(module: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module)


def _counts_reach(wanted: Mapping[Role, int], answer: probe.Answer) -> bool:
    """Whether the proxy's ``/ready`` counts at least ``wanted`` workers of each role."""
    if answer.status != 200:
        return False
    counts = json.loads(answer.body)
    return all(counts[role] >= count for role, count in wanted.items())
