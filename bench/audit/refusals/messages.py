"""Forged and replayed messages at a prefill worker's shipping socket.

The audit plays both of a request's proxies, and catches the message with which decode asks for a
prompt's KV. That message brings blocks, and so does one of the audit's own for another prompt
(the controls); with anything wrong in it, or a second time, none may come.
"""

from __future__ import annotations

import asyncio
import secrets

import zmq
from msgspec.structs import replace

from bench.audit.deployment import Deployment, Worker
from bench.audit.findings import Finding
from bench.audit.refusals.attempt import Attempt, row
from bench.audit.refusals.legs import Leg, Legs
from bench.audit.refusals.wire import Guise, dialled, hear, say
from bench.client import Client
from kvstore.messages import (
    PROTOCOL_VERSION,
    Announce,
    Blocks,
    Cancel,
    Failed,
    Ready,
    Received,
    Subscribe,
)
from kvstore.transfer import Prompt, ready_mac
from kvstore.transport.sockets import socket_uri

_ANSWER_SECONDS = 10.0
_SILENCE_SECONDS = 3.0


class Messages:
    """At ``worker``, by who has the cluster's keys, with prompts of the owner's ``epoch``."""

    def __init__(self, deployment: Deployment, client: Client, worker: Worker, epoch: int) -> None:
        self._deployment = deployment
        self._client = client
        self._worker = worker
        self._epoch = epoch
        self._key = deployment.credentials.transport_key()

    async def finding(self) -> Finding:
        """All forgeries, and the control."""
        name = f"{self._worker.name}, messages"
        announce = await asyncio.to_thread(self._announced)
        if announce is None:
            return row(name, [], "its relay announces nothing")
        legs = Legs(self._deployment, self._client, announce, self._epoch)
        decode = next(one for one in self._deployment.workers if one.role == "decode")
        first = legs.new()
        caught = await legs.caught(decode, first)
        if caught is None:
            return row(name, [], f"{decode.name} asked nobody for a prompt's KV")
        signed = legs.new()
        for leg, right in ((signed, signed.asked(caught, self._key)), (first, caught)):
            heard = await self._asked(legs, leg, right, take=True)
            if not isinstance(heard, Blocks):
                return row(name, [], f"what is right was refused as well: {_told(heard)}")
        again = await asyncio.to_thread(self._exchange, caught, take=False)
        attempts = [_judged("a message replayed when its transfer has ended", again)]
        for told in forgeries(first, caught, self._key):
            leg = legs.new()  # one for each: what is refused once has ended
            forged = forgeries(leg, caught, self._key)[told]
            attempts.append(_judged(told, await self._asked(legs, leg, forged)))
        return row(name, attempts)

    def _announced(self) -> Announce | None:
        guise = Guise("a proxy", "proxy", self._deployment.credentials)
        with dialled(self._worker.at.feed, self._worker.role, guise) as feed:
            subscribe = Subscribe(PROTOCOL_VERSION, f"audit-{secrets.token_hex(4)}", "", 0)
            if not say(feed, subscribe):
                return None
            heard = hear(feed, (Announce,), _SILENCE_SECONDS)
        return heard if isinstance(heard, Announce) else None

    async def _asked(self, legs: Legs, leg: Leg, ready: Ready, *, take: bool = False) -> object:
        """What comes of ``ready`` while the worker computes ``leg``."""
        computing = asyncio.create_task(legs.prefilled(self._worker, leg))
        try:
            return await asyncio.to_thread(self._exchange, ready, take=take)
        finally:
            await computing

    def _exchange(self, ready: Ready, *, take: bool) -> object:
        """The first answer to ``ready``. ``take``: and everything that it asks for."""
        guise = Guise("decode", "decode", self._deployment.credentials)
        with dialled(socket_uri(self._worker.at.ship), self._worker.role, guise) as ship:
            if not say(ship, ready):
                return None
            heard = hear(ship, (Blocks, Failed), _ANSWER_SECONDS if take else _SILENCE_SECONDS)
            if take and isinstance(heard, Blocks):
                _take(ship, ready, heard)
            else:
                say(ship, Cancel(ready.transfer))
            return heard


def forgeries(leg: Leg, template: Ready, key: bytes) -> dict[str, Ready]:
    """Messages for ``leg`` that are right but for one thing. ``key``: the cluster's own."""
    ready, prompt = leg.asked(template, key), leg.prompt

    def signed(changed: Prompt, under: bytes = key) -> Ready:
        return replace(ready, mac=ready_mac(under, ready, changed))

    salt = f"{prompt.salt[:-64]}{secrets.token_hex(32)}"
    return {
        "no MAC": replace(ready, mac=bytes(32)),
        "a MAC under another key": signed(prompt, secrets.token_bytes(32)),
        "a MAC with another salt": signed(Prompt(salt, prompt.digest, prompt.blocks)),
        "a MAC with another prompt": signed(
            Prompt(prompt.salt, secrets.token_bytes(32), prompt.blocks)
        ),
        "another request's MAC": replace(template, transfer=leg.transfer),
        "changed after it was signed": replace(ready, stop=ready.stop - 1),
        "another receiver than signed": replace(ready, receiver_generation=secrets.token_hex(8)),
        "an earlier generation's": replace(ready, sender_generation=secrets.token_hex(8)),
        "another layout's": replace(ready, fingerprint=secrets.token_bytes(32)),
        "another protocol's": replace(ready, version=PROTOCOL_VERSION - 1),
    }


def _take(ship: zmq.Socket[bytes], ready: Ready, blocks: Blocks) -> None:
    """Everything, acknowledged, so that the transfer ends as it should."""
    heard: object = blocks
    through = dict(enumerate(ready.first))
    while isinstance(heard, Blocks):
        through[heard.group] = heard.first + len(heard.digests)
        say(ship, Received(ready.transfer, heard.group, through[heard.group]))
        if min(through.values()) >= ready.stop:
            return
        heard = hear(ship, (Blocks, Failed), _ANSWER_SECONDS)


def _judged(name: str, heard: object) -> Attempt:
    return Attempt(name, not isinstance(heard, Blocks), _told(heard))


def _told(heard: object) -> str:
    if isinstance(heard, Blocks):
        return "blocks came"
    return heard.reason if isinstance(heard, Failed) else "silence"
