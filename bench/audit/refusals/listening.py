"""TCP ports on which the deployment's processes listen, and from where they can be reached."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import psutil

from bench.audit.deployment import Deployment
from bench.audit.findings import Finding
from bench.audit.refusals.attempt import Attempt, not_tried, row
from kvstore.cluster import ClusterConfig, tcp_ports
from kvstore.messages import ROLES


class Listener(NamedTuple):
    """An address that a process listens on."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Nobody on another host can reach it."""
        return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback


def beyond_loopback(deployment: Deployment, processes: Iterable[psutil.Process]) -> Finding:
    """Nothing but what the cluster file opens can be reached from other hosts."""
    config, found, hidden = deployment.config, list[Listener](), 0
    for process in processes:
        try:
            found += [
                Listener(one.laddr.ip, one.laddr.port)
                for one in process.net_connections(kind="tcp")
                if one.status == psutil.CONN_LISTEN
            ]
        except psutil.Error:
            hidden += 1
    control = "" if found else "no process of the deployment's was seen to listen"
    note = f"{hidden} processes were not seen" if hidden else ""
    return row("ports beyond loopback", judged(sorted(set(found)), config), control, note)


def dram(config: ClusterConfig) -> Finding:
    """LMCache's ports on loopback: what keeps others from them is that there are none."""
    name = "DRAM tier's ports, another user of this host"
    if not config.dram.enabled:
        return not_tried(name, "this deployment has no DRAM tier")
    if config.profile == "strict":
        return not_tried(name, "kvferry does not start under this profile where there are others")
    ports = f"LMCache ({config.dram.port}, {config.dram.http_port}) asks nobody who it is"
    return Finding(
        name=name,
        verdict="inconclusive",
        why=f"{ports}: any user of this host can talk to it; kvferry doctor says if there are any",
    )


def judged(listeners: Sequence[Listener], config: ClusterConfig) -> list[Attempt]:
    """Each of them: on loopback, or meant to be open. Pure."""
    meant = {config.proxy.port, config.proxy.admin_port} - {0}
    if config.network.kind == "tcp":
        for role in ROLES:
            for at in range(config.workers(role).count):
                meant |= set(tcp_ports(config, role, at))
    meant -= {config.dram.port, config.dram.http_port}
    return [
        Attempt(
            f"port {one.port} from another host",
            one.loopback or one.port in meant,
            f"listens on {one.host}",
        )
        for one in listeners
    ]
