"""What of the cluster file, and of what kvferry makes of it, could show prompts or KV to others."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from deploy.volatile.findings import Finding, flaw, ok
from deploy.volatile.host import Host, Place
from kvstore.cluster import ClusterConfig
from kvstore.messages import ROLES

Reach = Literal["loopback", "private", "everywhere", "unknown"]

LOOPBACK = "127.0.0.1"
ENGINE_NEVER = (
    "--enable-log-requests",
    "--enable-log-outputs",
    "--enable-logging-iteration-details",
    "--log-error-stack",
    "--log-config-file",
    "--logging-config",
    "--profiler-config",
    "--otlp-traces-endpoint",
    "--collect-detailed-traces",
    "--kv-offloading-size",
    "--kv-offloading-backend",
    "--ec-transfer-config",
    "--allowed-local-media-path",
    "--trust-request-chat-template",
    "--trust-request-mm-kwargs",
)
"""Options of vLLM's server that log, trace or dump, keep KV elsewhere or trust what is sent."""
ENGINE_ALWAYS = ("--no-enable-log-requests", "--disable-uvicorn-access-log")
DRAM_NEVER = (
    "--l1-manager",
    "--l2-adapter",
    "--gds-l1-path",
    "--l1-devdax-path",
    "--trace-level",
    "--trace-output",
    "--lookup-hash-log-dir",
    "--enable-extra-logging",
    "--enable-tracing",
    "--otlp-endpoint",
    "--coordinator-url",
    "--coordinator-event-reporting",
    "--p2p-advertise-url",
    "--p2p-listen-url",
    "--runtime-plugin-locations",
    "--run-script-api-enabled",
)
"""Options of LMCache's server that keep KV elsewhere, record it, tell of it or run others' code."""
DRAM_ALWAYS = ("--disable-metrics",)


@dataclass(frozen=True)
class Picture:
    """What is looked at: the cluster's settings, the host, and the commands that would be run.

    ``engines`` by role, ``dram`` empty where there is no DRAM tier: argument lists.
    """

    config: ClusterConfig
    host: Host
    engines: Mapping[str, tuple[str, ...]]
    dram: tuple[str, ...]


Check = Callable[[Picture], Finding]


def proxy_address(picture: Picture) -> Finding:
    """Clients' keys and prompts cross a network in the clear if the proxy is reached over one."""
    name, host = "proxy.host", picture.config.proxy.host
    if reach(host) == "loopback":
        return ok(name, "this host only")
    found = "reached over a network, without TLS: keys and prompts can be read on it"
    fix = f"a TLS server before it, on this host, and proxy.host = {LOOPBACK!r}"
    return flaw(name, picture.config.profile, "note", found, fix)


def worker_addresses(picture: Picture) -> Finding:
    """Workers' HTTP is not encrypted, and nobody outside has any business there."""
    name, config = "workers' hosts", picture.config
    if config.network.kind == "ipc":
        return ok(name, "this host only: sockets in run_dir")
    hosts = sorted({host for role in ROLES for host in config.workers(role).hosts})
    for host in hosts:
        if reach(host) == "everywhere":
            fix = "an address of a private network in the roles' hosts"
            found = f"{host or 'every interface'} can be reached from anywhere"
            return flaw(name, config.profile, "host", found, fix)
    if strange := [host for host in hosts if reach(host) == "unknown"]:
        found = f"{strange[0]} is a name: whether its network is private is not known"
        return flaw(name, config.profile, "note", found, "addresses instead of names in hosts")
    return ok(name, "loopback and private networks only")


def bulk(picture: Picture) -> Finding:
    """KV that crosses a network in the clear is a prompt that does."""
    name, config = "KV on the network", picture.config
    hosts = {host for role in ROLES for host in config.workers(role).hosts}
    if config.network.kind == "ipc" or all(reach(host) == "loopback" for host in hosts):
        return ok(name, "none: it stays on this host")
    if config.ship.bulk == "authenticated" or config.ship.transport == "nccl":
        fix = 'ship.bulk = "encrypted" and ship.transport = "zmq", unless that network is your own'
        return flaw(name, config.profile, "note", "crosses it in the clear", fix)
    return ok(name, "encrypted (CURVE)")


def dram_command(picture: Picture) -> Finding:
    """LMCache's server has no keys, so it is for this host's programs only; and it has no disk."""
    name, dram = "DRAM tier", picture.dram
    if not dram:
        return ok(name, "there is none")
    if wrong := _wrong(dram, DRAM_NEVER, DRAM_ALWAYS):
        return _started_wrongly(name, picture, wrong)
    if {_after(dram, "--host"), _after(dram, "--http-host")} != {LOOPBACK}:
        return _started_wrongly(name, picture, "another host than loopback")
    ports = {picture.config.dram.port, picture.config.dram.http_port}
    for address, port in picture.host.listening:
        if port in ports and reach(address) != "loopback":
            found = f"port {port}, which is to be on loopback only, is served on {address}"
            return flaw(name, picture.config.profile, "leak", found, "stop what listens there")
    return ok(name, "loopback and shared memory only, no disk, no remote tier")


def engine_commands(picture: Picture) -> Finding:
    """Engines log no request, write no trace and keep KV nowhere else."""
    name = "engines"
    for role, argv in picture.engines.items():
        if wrong := _wrong(argv, ENGINE_NEVER, ENGINE_ALWAYS):
            return _started_wrongly(f"{name} ({role})", picture, wrong)
    return ok(name, "request logs, traces and KV offloading are off")


def private_places(picture: Picture) -> Finding:
    """Keys and sockets are this user's alone."""
    name, host, config = "folders", picture.host, picture.config
    folders = {config.run_dir, config.state_dir}
    for place in host.places:
        if place.uid != host.uid:
            found = f"{place.path} belongs to user {place.uid}"
            fix = "run as that user, or choose another place"
            return flaw(name, picture.config.profile, "leak", found, fix)
        if place.path in folders and not place.is_folder:
            found = f"{place.path} is no folder"
            fix = "choose another place for run_dir or state_dir"
            return flaw(name, picture.config.profile, "leak", found, fix)
        if place.mode & 0o077:
            found = f"{place.path} is open to other users"
            fix = f"chmod {_private(place)} {place.path}, or delete it if anyone may have read it"
            return flaw(name, picture.config.profile, "leak", found, fix)
    return ok(name, "keys and sockets are this user's alone")


CHECKS: tuple[Check, ...] = (
    proxy_address,
    worker_addresses,
    bulk,
    dram_command,
    engine_commands,
    private_places,
)


def reach(host: str) -> Reach:
    """From where an address can be reached. A name but ``localhost`` says nothing."""
    if host == "localhost":
        return "loopback"
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return "everywhere" if host == "" else "unknown"
    if address.is_unspecified or address.is_global:
        return "everywhere"
    return "loopback" if address.is_loopback else "private"


def _wrong(argv: tuple[str, ...], never: Iterable[str], always: Iterable[str]) -> str:
    """The first option that is there and must not be, or is not and must; "" if there is none."""
    given = {word.partition("=")[0] for word in argv}
    for option in never:
        if option in given:
            return option
    for option in always:
        if option not in given:
            return f"no {option}"
    return ""


def _after(argv: tuple[str, ...], option: str) -> str:
    return argv[argv.index(option) + 1] if option in argv[:-1] else ""


def _started_wrongly(name: str, picture: Picture, wrong: str) -> Finding:
    found = f"kvferry would start it with {wrong}"
    return flaw(name, picture.config.profile, "leak", found, "report it: no setting asks for that")


def _private(place: Place) -> str:
    return "700" if place.is_folder else "600"
