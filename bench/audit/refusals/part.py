"""The part about who is let in: every door, every socket, every message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from bench.audit import processes
from bench.audit.asking import Asker
from bench.audit.deployment import Deployment, Worker
from bench.audit.findings import Finding, Part
from bench.audit.refusals import folders, listening
from bench.audit.refusals.attempt import Attempt, not_made, not_tried, row
from bench.audit.refusals.doors import Doors
from bench.audit.refusals.messages import Messages
from bench.audit.refusals.wire import Guise, shakes_hands, strangers
from bench.client import Client
from bench.errors import RequestFailed
from kvstore.credentials import PeerRole
from kvstore.errors import ConfigError
from kvstore.transport.sockets import socket_uri

_HANDSHAKES = 16
"""At a time: each waits for an answer that must not come."""


async def audited(
    deployment: Deployment, client: Client, asker: Asker, say: Callable[[str], None]
) -> Part:
    """All rows."""
    doors, findings = Doors(deployment, client, asker), list[Finding]()

    def found(finding: Finding) -> None:
        say(f"{finding.name}: {finding.verdict}")
        findings.append(finding)

    found(await doors.clients())
    found(await doors.operators())
    for worker in deployment.workers:
        found(await doors.worker(worker))
    found(folders.modes(deployment))
    running = processes.of(deployment)
    elsewhere = processes.sockets(running)
    found(await asyncio.to_thread(folders.another_user, deployment, elsewhere))
    found(await asyncio.to_thread(handshakes, deployment))
    found(listening.beyond_loopback(deployment, running))
    found(listening.dram(deployment.config))
    try:
        epoch = await asker.epoch(deployment.owner)
        found(await doors.flushed_epochs(epoch))
        for worker in deployment.workers:
            if worker.role == "prefill":
                found(await Messages(deployment, client, worker, epoch).finding())
    except (RequestFailed, ConfigError) as failure:
        found(not_made("messages", str(failure)))
    return Part(name="transport", findings=findings, metrics=metrics(findings))


def metrics(findings: list[Finding]) -> dict[str, float]:
    """So many of so many attempts were refused."""
    return {
        f"transport_{name}": float(sum(one.figures.get(name, 0) for one in findings))
        for name in ("refused", "tried")
    }


def handshakes(deployment: Deployment) -> Finding:
    """CURVE on every socket that crosses hosts: for each its right peer, and all others."""
    name = "CURVE handshakes"
    if deployment.config.network.kind != "tcp":
        return not_tried(name, "network.kind is ipc: its folder's lock is what counts")
    sockets = [socket for worker in deployment.workers for socket in _sockets(worker)]
    tries = [
        (worker, uri, right, guise)
        for worker, uri, right in sockets
        for guise in (
            Guise("its own peer", right, deployment.credentials),
            *strangers(deployment.credentials, right),
        )
    ]
    with ThreadPoolExecutor(_HANDSHAKES) as pool:
        let_in = list(pool.map(lambda one: shakes_hands(one[1], one[0].role, one[3]), tries))
    attempts, unheard = [], []
    for (worker, uri, _, guise), entered in zip(tries, let_in, strict=True):
        if guise.name != "its own peer":
            attempts.append(Attempt(f"{guise.name} at {worker.name}, {uri}", not entered))
        elif not entered:
            unheard.append(f"{worker.name}, {uri}")
    return row(name, attempts, f"nobody answers at {'; '.join(unheard)}" if unheard else "")


def _sockets(worker: Worker) -> list[tuple[Worker, str, PeerRole]]:
    """Its sockets, each with who may come."""
    found: list[tuple[Worker, str, PeerRole]] = [(worker, worker.at.feed, "proxy")]
    if worker.role == "prefill":
        found.append((worker, socket_uri(worker.at.ship), "decode"))
    return found
