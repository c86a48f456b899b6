"""A worker: one engine and the relay beside it, kept running.

Every start of the engine is a new generation, so that nothing said by the one before has any
effect. The relay lives in a thread of this process and outlives the engine. An engine that ends
by itself is started again; one that cannot run is given up with one line that says why.

Status lines for whoever supervises go to standard output; the engine's own go to standard error,
each prefixed with the worker's name. What an engine says while it starts is shown only when it
ends without having become ready, or with ``--verbose``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import msgspec

from kvstore import adapters, cluster, keeper, probe, vitals
from kvstore.adapters import ReadAdapter
from kvstore.child import Child, kill_group
from kvstore.cluster import ClusterConfig, WorkerSettings
from kvstore.credentials import TOKEN_HEADER, Credentials, load_or_create
from kvstore.errors import ConfigError
from kvstore.gate_telling import GateTelling
from kvstore.launch import Command, with_adapters
from kvstore.machine import Machine, inspect
from kvstore.messages import PROTOCOL_VERSION, Announce, Role
from kvstore.private import require_private
from kvstore.relay import Relay
from kvstore.restarts import Restarts
from kvstore.slices import slice_address

START_SECONDS = 900.0
"""How long an engine may load its model."""
STOP_SECONDS = 5.0
"""How long an engine may take to end by itself. A starting one does not hear that it should."""
STARTING_STOP_SECONDS = 1.0
PROBE_SECONDS = 2.0
PROBE_EVERY = 0.25
TELL_EVERY = 15.0
LISTEN_SECONDS = 10.0

_TAIL_LINES = 80

EngineCommand = Callable[[ClusterConfig, WorkerSettings, Machine, bool], Command]


@dataclass(frozen=True)
class Job:
    """Which worker to run, and how."""

    config: ClusterConfig
    role: Role
    index: int
    machine: Machine
    engine: EngineCommand
    verbose: bool

    @property
    def name(self) -> str:
        """``prefill-0``."""
        return cluster.worker_name(self.role, self.index)

    @property
    def run_dir(self) -> Path:
        """The private folder with this host's sockets."""
        return Path(self.config.run_dir)

    def settings(self, generation: str) -> WorkerSettings:
        """The settings of one generation."""
        return WorkerSettings(
            worker=self.name,
            role=self.role,
            generation=generation,
            addresses=cluster.addresses(self.config, self.run_dir, self.role, self.index),
            state_dir=self.config.state_dir,
            ship=self.config.ship,
            dram=self.config.dram,
            model_name=self.config.model.name,
            slices=self.config.slices,
            dram_feed=cluster.dram_feed(self.config, self.run_dir, self.role),
        )

    def announce(self, generation: str) -> Announce:
        """What proxies are told before the engine has said anything."""
        settings = self.settings(generation)
        return Announce(
            version=PROTOCOL_VERSION,
            worker=self.name,
            role=self.role,
            generation=generation,
            state="starting",
            model=settings.model_name,
            http=settings.addresses.http,
            ship=settings.addresses.ship,
            fingerprint="",
            block_size=self.config.model.block_size,
            max_model_len=self.config.model.max_model_len,
            capacity_blocks=0,
            seq=0,
        )


class Worker:
    """One worker's life, from :meth:`run` to its end. Everything happens on one event loop."""

    def __init__(self, job: Job, credentials: Credentials, tell: Callable[[str], None]) -> None:
        self._job = job
        self._token = {TOKEN_HEADER: credentials.http_token()}
        self._out = tell
        self._generation = secrets.token_hex(8)
        self._telling = GateTelling(self._token)
        self._relay = Relay(
            job.announce(self._generation),
            job.settings(self._generation),
            credentials,
            changed=self._telling.changed,
        )
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._loud = job.verbose
        self._adapters: tuple[ReadAdapter, ...] = ()
        self._record: TextIO | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until ``stop`` is set. Raises ConfigError when the engine cannot be kept up."""
        name, settings = self._job.name, self._job.settings(self._generation)
        self._telling.begin()
        with _owned(self._job.run_dir / f"{name}.group", name) as self._record:
            _remove_sockets(settings)
            stop_relay = threading.Event()
            relay = asyncio.create_task(asyncio.to_thread(self._relay.run, stop_relay))
            try:
                await asyncio.to_thread(self._relay.wait_listening, LISTEN_SECONDS)
                await _first_of(self._keep_up(stop), relay)
            finally:
                stop_relay.set()
                await asyncio.wait({relay}, timeout=LISTEN_SECONDS)
                _remove_sockets(settings)
                for address in (settings.addresses.feed, settings.addresses.tenants):
                    _remove(address)

    async def _keep_up(self, stop: asyncio.Event) -> None:
        restarts = Restarts()
        while not stop.is_set():
            started = time.monotonic()
            was_ready = await self._one_engine(stop)
            if stop.is_set():
                return
            if not was_ready and (reason := vitals.hopeless(self._tail)):
                raise ConfigError(f"{self._job.name}: {reason}")
            pause = restarts.after(time.monotonic() - started if was_ready else 0.0)
            if pause is None:
                why = vitals.last_error(self._tail)
                raise ConfigError(
                    f"{self._job.name}: the engine ended {restarts.in_a_row} times: {why}"
                )
            self._tell(f"engine ended, starting it again in {pause:g} s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await stop.wait()
            self._generation = secrets.token_hex(8)
            self._relay.engine_restarted(self._generation)

    async def _one_engine(self, stop: asyncio.Event) -> bool:
        """Runs one engine to its end. Whether it had become ready."""
        job, settings = self._job, self._job.settings(self._generation)
        self._tail.clear()
        self._loud = job.verbose
        _remove_sockets(settings)
        self._adapters = await asyncio.to_thread(adapters.read, job.config)
        if self._adapters:
            self._relay.describe(self._announce())
        command = job.engine(job.config, settings, job.machine, job.verbose)
        command = with_adapters(command, self._adapters, job.machine)
        # Set, it would change the names vLLM gives to blocks, and no proxy would find one again.
        inherited = {name: v for name, v in os.environ.items() if name != "PYTHONHASHSEED"}
        child = await Child.start(
            command.argv, {**inherited, **command.env}, STOP_SECONDS, self._hear
        )
        self._write_group(child.group)
        shared: set[str] = set()
        ready = False
        try:
            ready = await self._await_ready(child, settings, stop)
            if ready:
                shared = keeper.segments(child.group)
                await _either(
                    child.wait(), stop.wait(), self._telling.keep(settings.addresses.http)
                )
        finally:
            self._relay.set_state("draining" if stop.is_set() else "starting")
            self._loud = job.verbose
            await child.stop(STOP_SECONDS if ready else STARTING_STOP_SECONDS)
            keeper.remove(shared)
            unexplained = not (ready or stop.is_set() or vitals.hopeless(self._tail))
            if unexplained and not job.verbose:
                self._show_tail()
        return ready

    async def _await_ready(
        self, child: Child, settings: WorkerSettings, stop: asyncio.Event
    ) -> bool:
        began = told = time.monotonic()
        self._tell("loading the model")
        while not (child.ended or stop.is_set()):
            now = time.monotonic()
            if now - began > START_SECONDS:
                return False
            if now - told >= TELL_EVERY:
                told = now
                self._tell(f"loading the model, {now - began:.0f} s")
            http = settings.addresses.http
            healthy = (await probe.get(http, "/health", PROBE_SECONDS)).status == 200
            if healthy and await self._telling.all(http):
                if not await asyncio.to_thread(adapters.are, self._adapters, self._job.config):
                    self._hear("Error: an adapter's files changed while they were loaded")
                    return False
                await self._describe(settings)
                self._loud = True
                self._relay.set_state("ready")
                self._tell(f"ready after {time.monotonic() - began:.0f} s")
                return True
            await asyncio.sleep(PROBE_EVERY)
        return False

    def _announce(self) -> Announce:
        announce = self._job.announce(self._generation)
        return msgspec.structs.replace(announce, adapters=adapters.served(self._adapters))

    async def _describe(self, settings: WorkerSettings) -> None:
        """Announces what the running engine says of itself."""
        http = settings.addresses.http
        models = await probe.get(http, "/v1/models", PROBE_SECONDS, self._token)
        metrics = await probe.get(http, "/metrics", PROBE_SECONDS, self._token)
        facts = vitals.facts(models.body, metrics.body)
        announce = self._announce()
        self._relay.describe(
            msgspec.structs.replace(
                announce,
                block_size=facts.block_size or announce.block_size,
                max_model_len=facts.max_model_len or announce.max_model_len,
                capacity_blocks=facts.capacity_blocks,
            )
        )

    def _tell(self, text: str) -> None:
        self._out(f"{self._job.name}: {text}")

    def _write_group(self, group: int) -> None:
        assert self._record is not None
        self._record.truncate(0)
        self._record.write(str(group))
        self._record.flush()

    def _hear(self, line: str) -> None:
        self._tail.append(line)
        if self._loud:
            sys.stderr.write(f"{self._job.name} | {line}\n")

    def _show_tail(self) -> None:
        for line in self._tail:
            sys.stderr.write(f"{self._job.name} | {line}\n")


@contextlib.contextmanager
def _owned(path: Path, name: str) -> Iterator[TextIO]:
    """The file that holds a worker's process group, locked; what an earlier run left is ended.

    Raises ConfigError when the worker runs already.
    """
    with path.open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{name} runs already in {path.parent}") from None
        end_group(path)
        yield file
        path.unlink(missing_ok=True)


def end_group(file: Path) -> None:
    """Kills the engine that ``file`` speaks of, if it is there, and awaits its end."""
    text = file.read_text(encoding="ascii", errors="replace")
    if not (text.isdecimal() and keeper.is_ours(int(text))):
        return
    shared = keeper.segments(int(text))
    until = time.monotonic() + STOP_SECONDS
    while kill_group(int(text)) and time.monotonic() < until:
        time.sleep(0.05)
    keeper.remove(shared)


def _remove_sockets(settings: WorkerSettings) -> None:
    """Removes what a killed engine has left where the next one wants to listen.

    The feed is not the engine's but the relay's, which lives on, and so is what hears the engine.
    """
    places = settings.addresses
    sliced = [
        slice_address(address, number)
        for address in (places.ship, places.abandon)
        for number in range(settings.slices)
    ]
    for address in (places.http, places.events, f"{places.events}-replay", places.gate, *sliced):
        _remove(address)


def _remove(address: str) -> None:
    """Removes the file behind an address that has one (``unix:/p``, ``ipc:///p``…)."""
    path = address.partition(":")[2].removeprefix("//")
    if path.startswith("/"):
        Path(path).unlink(missing_ok=True)


async def _either(*waits: Coroutine[Any, Any, object]) -> None:
    """Returns when the first of ``waits`` has."""
    tasks = {asyncio.create_task(wait) for wait in waits}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _first_of(work: Coroutine[Any, Any, None], background: asyncio.Task[None]) -> None:
    """Does ``work``; ends it with the error of ``background`` if that ends first."""
    working = asyncio.create_task(work)
    try:
        await asyncio.wait({working, background}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            await background
            raise ConfigError("the relay ended")
    finally:
        working.cancel()
        await asyncio.wait({working})
    await working


def main(role: Role, engine: EngineCommand, argv: Sequence[str] | None = None) -> int:
    """The command line of a role. 0 after a clean stop, 2 for what cannot work."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {role}", description=f"One {role} worker: the engine and its relay."
    )
    parser.add_argument("--config", type=Path, required=True, help="the cluster's TOML file")
    parser.add_argument("--name", default=f"{role}-0", help="which worker (%(default)s)")
    parser.add_argument("--verbose", action="store_true", help="show all the engine says")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    try:
        config = cluster.load(options.config)
        index = _index(config, role, options.name)
        job = Job(config, role, index, inspect(), engine, options.verbose)
        asyncio.run(_serve(job))
    except ConfigError as error:
        sys.stderr.write(f"kvferry: {error}\n")
        return 2
    return 0


def _index(config: ClusterConfig, role: Role, name: str) -> int:
    named, index = cluster.parse_worker_name(config, name)
    if named != role:
        raise ConfigError(f"{name} is no {role} worker")
    return index


async def _serve(job: Job) -> None:
    for name, folder in (("run_dir", job.config.run_dir), ("state_dir", job.config.state_dir)):
        if not folder:
            raise ConfigError(f"set {name} in the configuration, or start with kvferry {job.role}")
    try:
        require_private(job.run_dir.stat(), job.run_dir)
    except OSError as error:
        raise ConfigError(f"cannot use run_dir {job.run_dir}: {error.strerror}") from None
    credentials = load_or_create(Path(job.config.state_dir))
    stop = asyncio.Event()
    for ending in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(ending, stop.set)
    await Worker(job, credentials, _tell).run(stop)


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
