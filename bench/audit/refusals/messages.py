"""Forged and replayed messages at a prefill worker's shipping socket.

The audit plays both of a request's proxies and its decode worker: it has a prompt of its own
prefilled under a ticket that it made up, and asks for its KV as decode would. With everything right
blocks come (the control); with anything wrong, or a second time, none may.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq
from msgspec.structs import replace

from bench.audit import prompts
from bench.audit.deployment import Deployment, Worker
from bench.audit.findings import Finding
from bench.audit.refusals.attempt import Attempt, row
from bench.audit.refusals.wire import Guise, dialled, hear, say
from bench.client import Client, Endpoint
from bench.errors import RequestFailed
from kvstore import salts
from kvstore.blockhash import prompt_digest
from kvstore.handoff import PrefillTicket, to_params
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
_SILENCE_SECONDS = 2.0
_TTL_MS = 20_000
_BLOCKS = 3
_MOST_GROUPS = 4
_TRANSFER_HEADER = "x-kvferry-transfer"


@dataclass(frozen=True)
class Leg:
    """A prompt that a prefill worker computes under a ticket; ``ready`` asks for it rightly."""

    transfer: bytes
    prompt: Prompt
    body: dict[str, Any]
    claim: str
    ready: Ready


class Messages:
    """At ``worker``, as the cluster's own, with prompts of the owner's present ``epoch``."""

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
        groups = await self._groups(announce)
        if groups is None:
            return row(name, [], "what is right was refused as well: no block came")
        attempts = []
        for told in forgeries(self._leg(announce, groups), self._key):
            leg = self._leg(announce, groups)  # one for each: what is refused once has ended
            heard = await self._asked(leg, forgeries(leg, self._key)[told])
            attempts.append(_judged(told, heard))
        attempts.append(await self._replayed(announce, groups))
        return row(name, attempts)

    def _announced(self) -> Announce | None:
        guise = Guise("a proxy", "proxy", self._deployment.credentials)
        with dialled(self._worker.at.feed, self._worker.role, guise) as feed:
            subscribe = Subscribe(PROTOCOL_VERSION, f"audit-{secrets.token_hex(4)}", "", 0)
            if not say(feed, subscribe):
                return None
            heard = hear(feed, (Announce,), _SILENCE_SECONDS)
        return heard if isinstance(heard, Announce) else None

    async def _groups(self, announce: Announce) -> int | None:
        """The number of KV groups with which a right message is answered with blocks."""
        for groups in range(1, _MOST_GROUPS + 1):
            leg = self._leg(announce, groups)
            heard = await self._asked(leg, leg.ready)
            if isinstance(heard, Blocks):
                return groups
        return None

    async def _replayed(self, announce: Announce, groups: int) -> Attempt:
        """The same message again, on another connection, when the transfer has ended."""
        leg = self._leg(announce, groups)
        first = await self._asked(leg, leg.ready, take=True)
        if not isinstance(first, Blocks):
            return Attempt("a message replayed", refused=False, told="no block came at first")
        heard = await asyncio.to_thread(self._exchange, leg.ready, take=False)
        return _judged("a message replayed when its transfer has ended", heard)

    async def _asked(self, leg: Leg, ready: Ready, *, take: bool = False) -> object:
        """What comes of ``ready`` while the worker computes ``leg``."""
        computing = asyncio.create_task(self._computed(leg))
        try:
            return await asyncio.to_thread(self._exchange, ready, take=take)
        finally:
            await computing

    async def _computed(self, leg: Leg) -> None:
        shown = self._worker.shown(self._deployment.token)
        headers = {
            **shown.headers,
            _TRANSFER_HEADER: leg.transfer.hex(),
            salts.OWNER_HEADER: leg.claim,
        }
        endpoint = Endpoint(shown.base, headers, shown.socket)
        try:
            await self._client.ask(
                endpoint, "POST", "/v1/completions", msgspec.json.encode(leg.body)
            )
        except RequestFailed:
            return  # no block comes, which is told of

    def _exchange(self, ready: Ready, *, take: bool) -> object:
        guise = Guise("decode", "decode", self._deployment.credentials)
        with dialled(socket_uri(self._worker.at.ship), self._worker.role, guise) as ship:
            if not say(ship, ready):
                return None
            heard = hear(ship, (Blocks, Failed), _ANSWER_SECONDS)
            if take and isinstance(heard, Blocks):
                self._take(ship, ready, heard)
            else:
                say(ship, Cancel(ready.transfer))
            return heard

    def _take(self, ship: zmq.Socket[bytes], ready: Ready, blocks: Blocks) -> None:
        """Everything, acknowledged, so that the transfer ends as it should."""
        heard: object = blocks
        through = dict.fromkeys(range(len(ready.first)), 0)
        while isinstance(heard, Blocks):
            through[heard.group] = heard.first + len(heard.digests)
            say(ship, Received(ready.transfer, heard.group, through[heard.group]))
            if min(through.values()) >= ready.stop:
                return
            heard = hear(ship, (Blocks, Failed), _ANSWER_SECONDS)

    def _leg(self, announce: Announce, groups: int) -> Leg:
        tokens = prompts.fresh(_BLOCKS * announce.block_size)
        transfer, tenant = secrets.token_bytes(16), self._deployment.owner.name
        credentials = self._deployment.credentials
        salt = salts.one_shot(credentials.salt_key(), tenant, self._epoch)
        owner = salts.owner(salt)
        assert owner is not None
        prompt = Prompt(salt, prompt_digest(tokens), _BLOCKS)
        ticket = PrefillTicket(transfer.hex(), _TTL_MS)
        body = {
            "model": announce.model,
            "prompt": tokens,
            "max_tokens": 1,
            "cache_salt": salt,
            "kv_transfer_params": to_params(ticket),
        }
        unsigned = Ready(
            version=PROTOCOL_VERSION,
            transfer=transfer,
            sender_generation=announce.generation,
            receiver="audit",
            receiver_generation=secrets.token_hex(8),
            fingerprint=bytes.fromhex(announce.fingerprint),
            layout="audit",
            first=(0,) * groups,
            stop=_BLOCKS,
            blocks=_BLOCKS,
            carriage="frames",
            ttl_ms=_TTL_MS,
            mac=bytes(32),
        )
        ready = replace(unsigned, mac=ready_mac(self._key, unsigned, prompt))
        return Leg(transfer, prompt, body, owner.claim, ready)


def _judged(name: str, heard: object) -> Attempt:
    if isinstance(heard, Blocks):
        return Attempt(name, refused=False, told="blocks came")
    return Attempt(
        name, refused=True, told=heard.reason if isinstance(heard, Failed) else "silence"
    )


def forgeries(leg: Leg, key: bytes) -> dict[str, Ready]:
    """Messages that are right but for one thing. ``key``: the cluster's own."""
    ready, prompt = leg.ready, leg.prompt

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
        "changed after it was signed": replace(ready, stop=ready.stop - 1),
        "another receiver than signed": replace(ready, receiver_generation=secrets.token_hex(8)),
        "an earlier generation's": replace(ready, sender_generation=secrets.token_hex(8)),
        "another layout's": replace(ready, fingerprint=secrets.token_bytes(32)),
        "another protocol's": replace(ready, version=PROTOCOL_VERSION - 1),
    }
