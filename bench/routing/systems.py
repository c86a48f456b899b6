"""Stub workers and the routers in front of them, each a process bound to its core."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import importlib.util
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from bench import processes
from bench.client import Client, Endpoint
from bench.errors import RequestFailed
from bench.processes import Child
from bench.routing.fleet import READY
from bench.routing.settings import Places, RoutingFailed
from kvstore import cluster
from kvstore.cluster import ClusterConfig
from kvstore.messages import ROLES, Role

MODEL = "stub"
BLOCK_SIZE = 16
START_SECONDS = 60.0
PEER = "vllm-router"
ADVICE = f"{PEER}, which kvferry is compared with, is not installed: run `make peers`"

_PROBE_SECONDS = 5.0
_PORTS_FROM, _PORTS_TO = 10_000, 32_000
"""Below those that systems give away by themselves."""
_NOTHING: Mapping[str, str] = MappingProxyType({})


class Fleet:
    """Stub workers of one cluster file, in one process."""

    def __init__(
        self,
        name: str,
        workers: int,
        keys: Sequence[str],
        places: Places,
        options: Sequence[str] = (),
    ) -> None:
        """``options``: of ``bench.routing.fleet``."""
        self.workers = workers
        self._options = options
        self.cores = places.cores
        self._name = name
        self._folder = places.folder / name
        for private in (self._folder, self._folder / "run", self._folder / "state"):
            private.mkdir(mode=0o700)
        self.file = self._folder / "cluster.toml"
        text = cluster_toml(self._folder, places.model, workers, keys)
        self.file.write_text(text, encoding="utf-8")
        self.config: ClusterConfig = cluster.parse(text)

    async def start(self) -> Child:
        """Returns when all of them listen. Raises StartFailed."""
        command = [sys.executable, "-m", "bench.routing.fleet", "--config", str(self.file)]
        command += self._options
        child = _launched(f"{self._name}-workers", self.cores.workers, command, self._folder)

        async def ready() -> bool:
            return READY in child.log.read_text()

        return await _started(child, processes.until_ready(child, ready, START_SECONDS))

    def bases(self, role: Role) -> list[str]:
        """``host:port`` of every worker of ``role``."""
        run_dir = Path(self.config.run_dir)
        count = self.config.workers(role).count
        every = (cluster.addresses(self.config, run_dir, role, at).http for at in range(count))
        return [http.removeprefix("http://") for http in every]


class Kvferry:
    """kvferry's proxy as ``kvferry up`` starts it."""

    def __init__(self, fleet: Fleet, packages: Path | None = None) -> None:
        """``packages``: the folder it is imported from, where that is not the installed one."""
        self.base = f"127.0.0.1:{fleet.config.proxy.port}"
        self._fleet = fleet
        self._packages = packages

    async def start(self) -> Child:
        """Returns when it knows all workers. Raises StartFailed."""
        command = ["-m", "proxy", "--config", str(self._fleet.file)]
        environ = {}
        if self._packages is not None:
            # Or the current folder would come before it.
            command = ["-P", *command]
            environ = {"PYTHONPATH": str(self._packages)}
        command = [sys.executable, *command]
        logs = self._fleet.file.parent
        child = _launched("proxy", self._fleet.cores.router, command, logs, environ)
        config = self._fleet.config
        wanted = {role: config.workers(role).count for role in ROLES}

        async def ready(client: Client) -> bool:
            counts = await client.get(Endpoint(f"http://{self.base}"), "/ready")
            return all(counts.get(role) == count for role, count in wanted.items())

        return await _started(child, _until(child, ready))


class VllmRouter:
    """The peer, in its prefill/decode mode."""

    def __init__(self, policy: str, fleet: Fleet) -> None:
        self.base = f"127.0.0.1:{free_port()}"
        self._policy = policy
        self._fleet = fleet

    async def start(self) -> Child:
        """Returns when it serves. Raises StartFailed."""
        child = _launched(
            self._policy, self._fleet.cores.router, self._command(), self._fleet.file.parent
        )

        async def ready(client: Client) -> bool:
            await client.text(Endpoint(f"http://{self.base}"), "/health")
            return True

        return await _started(child, _until(child, ready))

    def _command(self) -> list[str]:
        host, _, port = self.base.rpartition(":")
        command = [sys.executable, "-m", "vllm_router.launch_router", "--host", host]
        command += ["--port", port, "--policy", self._policy, "--log-level", "warning"]
        command += ["--prometheus-port", str(free_port()), "--vllm-pd-disaggregation"]
        for role in ROLES:
            for base in self._fleet.bases(role):
                command += [f"--{role}", f"http://{base}"]
        return command


def peer_version() -> str | None:
    """None where it is not installed."""
    if importlib.util.find_spec("vllm_router") is None:
        return None
    return importlib.metadata.version(PEER)


def cluster_toml(folder: Path, model: Path, workers: int, keys: Sequence[str]) -> str:
    """A cluster of ``workers``, half of them for prefill, on TCP."""
    each = workers // 2
    first = free_ports(2 * 4 * each)
    tenants = "".join(
        f'[[tenants]]\nname = "tenant-{at}"\n'
        f'keys_sha256 = ["{hashlib.sha256(key.encode()).hexdigest()}"]\n'
        for at, key in enumerate(keys)
    )
    return f"""\
run_dir = "{folder}/run"
state_dir = "{folder}/state"

[model]
path = "{model}"
name = "{MODEL}"
block_size = {BLOCK_SIZE}

[network]
kind = "tcp"

[prefill]
count = {each}
first_port = {first}

[decode]
count = {each}
first_port = {first + 4 * each}

[proxy]
port = {free_port()}

{tenants}"""


def free_port() -> int:
    """One that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_ports(count: int) -> int:
    """The first of ``count`` that follow one another. Raises RoutingFailed."""
    run = 0
    for port in range(_PORTS_FROM, _PORTS_TO):
        run = run + 1 if _is_free(port) else 0
        if run == count:
            return port - count + 1
    raise RoutingFailed(f"no {count} ports that follow one another are free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _launched(
    name: str, core: int, command: Sequence[str], logs: Path, special: Mapping[str, str] = _NOTHING
) -> Child:
    environ = {**os.environ, "TOKENIZERS_PARALLELISM": "false", **special}
    return processes.launch(name, processes.bound(core, command), environ, logs)


async def _started(child: Child, ready: Awaitable[None]) -> Child:
    """``child`` once it is; it is stopped where it does not become so."""
    try:
        await ready
    except BaseException:
        await processes.stop(child)
        raise
    return child


async def _until(child: Child, ready: Callable[[Client], Awaitable[bool]]) -> None:
    async with Client(_PROBE_SECONDS) as client:

        async def asked() -> bool:
            try:
                async with asyncio.timeout(_PROBE_SECONDS):
                    return await ready(client)
            except (RequestFailed, TimeoutError):
                return False

        await processes.until_ready(child, asked, START_SECONDS)
