"""The one cluster file: every setting of every part, read once, frozen, strict.

A setting's default is here and nowhere else; ``deploy/cluster.example.toml`` shows all of them and
a test keeps the two equal. Units are in the names. Addresses are never written down: they follow
from the network kind and a worker's name (:func:`addresses`).
"""

from __future__ import annotations

import ipaddress
import math
import tomllib
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

from kvstore.errors import ConfigError
from kvstore.messages import DigestName, Epoch, Role, Share
from kvstore.slices import PORTS

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=3600)]
Gib = Annotated[float, msgspec.Meta(gt=0)]
Sha256Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
TenantName = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9._-]{1,64}$")]
AdapterName = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9._-]{1,64}$")]


MOST_TENANTS = 1 << 16
"""Of one file, and of whom a process remembers what holds (``kvstore.standings``)."""

MOST_WORKERS = 4096
"""Of a role: more is a slip of the pen, and every proxy connects to each."""

BULK_PORT = 2
"""How far behind a shipping port its plain bulk port is."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all sections: frozen, and a key nobody reads is an error."""


class Model(Section, frozen=True):
    """What is served. ``path``: a built-in name, a Hugging Face directory or a hub id.

    Zero for a number and "" for a name mean: what the model or the device suggests.
    """

    path: str = "smollm2-135m-instruct"
    name: str = ""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    max_model_len: NotNegative = 0
    block_size: NotNegative = 0
    chunk_tokens: Positive = 512
    tool_parser: str = ""
    reasoning_parser: str = ""


class Network(Section, frozen=True):
    """How processes reach each other: ``ipc`` on one host, ``tcp`` (with CURVE) across hosts.

    With ``tcp`` worker ``i`` of a role is on the role's host ``i % len(hosts)`` and takes four
    ports for each slice (``kvstore.slices``): with one, from ``first_port + 4 * i`` on.
    """

    kind: Literal["ipc", "tcp"] = "ipc"


class Workers(Section, frozen=True):
    """One role's workers. ``cores``: CPU cores each is bound to; none shares them out.

    A worker computes on ``ranks`` GPUs, or in so many processes on CPU (tensor parallel): its
    model and its ``kv_gib`` are spread over them. ``cores`` are then ``RANK 0|RANK 1|…``.
    """

    count: Annotated[int, msgspec.Meta(ge=1, le=MOST_WORKERS)] = 1
    ranks: Positive = 1
    kv_gib: Gib = 1.0
    max_requests: Positive = 64
    hosts: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("127.0.0.1",)
    first_port: Port = 7100
    cores: tuple[str, ...] = ()


class DecodeWorkers(Workers, frozen=True):
    """As ``Workers``; a default of its own, or a section that sets anything else would lose it."""

    first_port: Port = 7200


class Ship(Section, frozen=True):
    """KV shipping between workers.

    ``window_mib``: what a transfer may have on the way; one receiver, four times that.
    ``transport`` "auto" reads KV of a worker on the same host from its memory, or takes NCCL
    between two GPUs, and has it sent where neither can be; "zmq" has it sent. NCCL encrypts
    nothing: "auto" takes it across hosts only with ``bulk`` "authenticated", "nccl" always.
    ``bulk`` "authenticated" is for networks of the cluster's own: KV then crosses them in the
    clear, on a connection beside the encrypted one, with a keyed MAC for each block.
    """

    transport: Literal["auto", "zmq", "shm", "nccl"] = "auto"
    bulk: Literal["encrypted", "authenticated"] = "encrypted"
    digest: DigestName = "xxh3-128"
    lease_seconds: Seconds = 30.0
    deadline_seconds: Seconds = 120.0
    window_mib: Positive = 32
    max_transfers: Positive = 256

    def window_blocks(self, block_bytes: int) -> int:
        """``window_mib`` in blocks, at least one."""
        return max(1, (self.window_mib << 20) // block_bytes)


class Dram(Section, frozen=True):
    """The DRAM tier: LMCache's server on this host, loopback and shared memory only."""

    enabled: bool = True
    gib: Gib = 1.0
    chunk_tokens: Positive = 256
    port: Port = 7090
    http_port: Port = 7091
    lookup_seconds: Seconds = 0.25
    operation_seconds: Seconds = 5.0


class Proxy(Section, frozen=True):
    """The OpenAI API. ``key`` in plain text is never kept here: see ``tenants``.

    Operators come in by a socket in the run folder, and where ``admin_port`` is not 0 also there.

    Of all ``max_requests`` at once, ``tenant_waiting`` of one tenant may wait for a prefill worker.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    body_mib: Positive = 8
    max_requests: Positive = 1024
    tenant_waiting: Positive = 256
    request_seconds: Seconds = 600.0
    connect_seconds: Seconds = 2.0
    remember_mib: Positive = 256
    remember_tenant_mib: Positive = 64
    admin_host: str = "127.0.0.1"
    admin_port: Port = 0


class Tenant(Section, frozen=True):
    """Who may call. ``keys_sha256``: SHA-256 of each API key, hex. ``epoch``: raise it to flush.

    Of the DRAM tier's bytes, and of each engine's blocks that are kept for later, ``cache_floor``
    is not taken away from it as long as it uses that, and more than ``cache_limit`` it never has.
    ``max_requests``: under way at a time; 0 sets no bound but the proxy's.
    """

    name: TenantName
    keys_sha256: tuple[Sha256Hex, ...]
    epoch: Epoch = 0
    cache_floor: Share = 0.0
    cache_limit: Share = 1.0
    max_requests: NotNegative = 0


class Adapter(Section, frozen=True):
    """A LoRA fine-tune of the model, served under a ``name`` of its own from a folder ``path``."""

    name: AdapterName
    path: str


class ClusterConfig(Section, frozen=True):
    """Everything. ``run_dir`` holds sockets, ``state_dir`` keys ("" picks a private folder).

    ``profile``: what a host is refused for that could show prompts to others ("strict"), or only
    warned of ("laptop").
    """

    profile: Literal["laptop", "strict"] = "laptop"
    run_dir: str = ""
    state_dir: str = ""
    model: Model = Model()
    network: Network = Network()
    prefill: Workers = Workers()
    decode: DecodeWorkers = DecodeWorkers()
    ship: Ship = Ship()
    dram: Dram = Dram()
    proxy: Proxy = Proxy()
    adapters: Annotated[tuple[Adapter, ...], msgspec.Meta(max_length=64)] = ()
    tenants: tuple[Tenant, ...] = ()

    @property
    def slices(self) -> int:
        """Parts into which pages are cut on their way from prefill to decode."""
        return math.lcm(self.prefill.ranks, self.decode.ranks)

    def workers(self, role: Role) -> Workers:
        """The section of ``role``."""
        return self.prefill if role == "prefill" else self.decode


class Addresses(Section, frozen=True):
    """Where one worker listens.

    ``http`` is ``http://host:port`` or ``unix:/path`` (HTTP over a Unix socket); ``feed`` is
    ``zmq+tcp://host:port`` or ``zmq+ipc:///path``, and so is ``ship``, but for its scheme, which
    may name another transport (``auto``, ``shm``, ``nccl``); the others are private to the
    worker's host: ``events`` (engine to relay) and ``gate`` (connector to HTTP gate) and
    ``abandon`` (gate to connector) and ``tenants`` (engine to relay: what it holds of them), always
    ``ipc://``.
    """

    http: str
    ship: str
    feed: str
    events: str
    gate: str
    abandon: str
    tenants: str


class WorkerSettings(Section, frozen=True):
    """What one worker's processes need to know; travels inside vLLM's connector settings.

    ``dram_feed``: where its relay hears what can be loaded from DRAM; "" where nothing can.
    """

    worker: str
    role: Role
    generation: str
    addresses: Addresses
    state_dir: str
    ship: Ship
    dram: Dram
    model_name: str
    slices: Positive = 1
    dram_feed: str = ""


def load(path: Path) -> ClusterConfig:
    """The configuration in a TOML file. Raises ConfigError, one line, naming the key."""
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not TOML: it is not UTF-8 text") from None


def parse(text: str, source: str = "configuration") -> ClusterConfig:
    """The configuration in ``text`` (TOML). Raises ConfigError as ``load`` does."""
    try:
        config = msgspec.convert(tomllib.loads(text), type=ClusterConfig, strict=True)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}") from None
    except (ValueError, RecursionError) as error:  # a number too long, or too many brackets
        raise ConfigError(f"{source} is not TOML: {error}") from None
    if config.ship.transport == "shm" and config.network.kind == "tcp":
        raise ConfigError(
            f"{source}: ship.transport 'shm' reads memory of the same host, and network.kind is "
            "'tcp': choose 'auto'"
        )
    _require_tenants(config, source)
    _require_private_address(config.proxy.admin_host, f"{source}: proxy.admin_host")
    if config.proxy.admin_port == config.proxy.port > 0:
        raise ConfigError(
            f"{source}: proxy.admin_port is proxy.port: clients would come in where operators do"
        )
    if config.ship.digest == "none" and config.ship.transport != "zmq":
        raise ConfigError(
            f"{source}: ship.digest 'none' cannot tell a page that was given away while it was "
            "read from the sender's memory: choose ship.transport 'zmq', or leave digests on"
        )
    return config


def _require_private_address(host: str, name: str) -> None:
    """Raises ConfigError for an address that anybody may reach."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ConfigError(f"{name} {host!r} is no IP address") from None
    if not address.is_private or address.is_unspecified:
        raise ConfigError(f"{name} {host} is public: choose one of loopback or a private network")


def _require_tenants(config: ClusterConfig, source: str) -> None:
    """Raises ConfigError for tenants, or adapters, that cannot be told apart or do not fit."""
    for kind, names in (
        ("tenants", [tenant.name for tenant in config.tenants]),
        ("adapters", [adapter.name for adapter in config.adapters]),
        ("API keys", [digest for tenant in config.tenants for digest in tenant.keys_sha256]),
    ):
        twice, times = next(iter(Counter(names).most_common(1)), ("", 1))
        if times > 1:
            raise ConfigError(f"{source}: {twice} is there {times} times among the {kind}")
    for tenant in config.tenants:
        if tenant.cache_floor > tenant.cache_limit:
            raise ConfigError(f"{source}: {tenant.name}'s cache_floor is above its cache_limit")
    if len(config.tenants) > MOST_TENANTS:
        raise ConfigError(f"{source}: at most {MOST_TENANTS} tenants")
    floors = sum(tenant.cache_floor for tenant in config.tenants)
    if floors > 1:
        raise ConfigError(f"{source}: all tenants' cache_floor together are {floors:g}, above 1")


def worker_name(role: Role, index: int) -> str:
    """``prefill-0``, ``decode-3``."""
    return f"{role}-{index}"


def parse_worker_name(config: ClusterConfig, name: str) -> tuple[Role, int]:
    """Role and index behind a worker's name. Raises ConfigError for a worker not in the file."""
    for role in get_args(Role):
        for index in range(config.workers(role).count):
            if worker_name(role, index) == name:
                return role, index
    raise ConfigError(f"no worker {name!r} in this cluster: names are ROLE-INDEX, from zero")


_PRIVATE = ("events", "gate", "abandon", "tenants")


def addresses(config: ClusterConfig, run_dir: Path, role: Role, index: int) -> Addresses:
    """Where worker ``index`` of ``role`` listens. ``run_dir`` is the host's private folder."""
    name = worker_name(role, index)
    private = {part: f"ipc://{run_dir}/{name}.{part}" for part in _PRIVATE}
    if config.network.kind == "ipc":
        return Addresses(
            http=f"unix:{run_dir}/{name}.http",
            ship=f"{_ship_scheme(config, 'ipc')}://{run_dir}/{name}.ship",
            feed=f"zmq+ipc://{run_dir}/{name}.feed",
            **private,
        )
    section = config.workers(role)
    host = section.hosts[index % len(section.hosts)]
    port = section.first_port + PORTS * config.slices * index
    return Addresses(
        http=f"http://{host}:{port}",
        ship=f"{_ship_scheme(config, 'tcp')}://{host}:{port + 1}",
        feed=f"zmq+tcp://{host}:{port + 2}",
        **private,
    )


def admin_socket(config: ClusterConfig, run_dir: Path) -> Path:
    """Where the proxy of that port takes operators' calls, on its host."""
    return run_dir / f"proxy.{config.proxy.port}.admin"


def admin_address(config: ClusterConfig, run_dir: Path) -> str:
    """Where to ask the proxy as an operator, from here: by its socket if that is on this host."""
    socket, proxy = admin_socket(config, run_dir), config.proxy
    if socket.exists() or not proxy.admin_port:
        return f"unix:{socket}"
    host = f"[{proxy.admin_host}]" if ":" in proxy.admin_host else proxy.admin_host
    return f"http://{host}:{proxy.admin_port}"


def dram_feed(config: ClusterConfig, run_dir: Path, role: Role) -> str:
    """Where the DRAM tier's server tells relays of ``role``; "": such workers load nothing."""
    if role == "decode" or not config.dram.enabled:
        return ""
    return f"zmq+ipc://{run_dir}/dram.feed"


def tcp_ports(config: ClusterConfig, role: Role, index: int) -> list[int]:
    """The ports that worker ``index`` of ``role`` takes on its host, where the network is TCP.

    Every slice of KV heads is shipped from a port of its own, with bulk two ports on.
    """
    first = config.workers(role).first_port + PORTS * config.slices * index
    ship = [first + 1 + PORTS * number for number in range(config.slices)]
    bulk = [port + BULK_PORT for port in ship] if config.ship.bulk == "authenticated" else []
    return [first, first + 2, *ship, *bulk]


def _ship_scheme(config: ClusterConfig, socket: Literal["ipc", "tcp"]) -> str:
    chosen = config.ship.transport
    return f"zmq+{socket}" if chosen == "zmq" else chosen
