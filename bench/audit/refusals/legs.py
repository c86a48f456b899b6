"""Legs of requests that the audit makes up, playing the proxy; and what a decode worker says for
one: the genuine message that opens a transfer, caught by whom it takes for a prefill worker.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq
from msgspec.structs import replace

from bench.audit import prompts
from bench.audit.asking import COMPLETIONS
from bench.audit.deployment import Deployment, Worker
from bench.audit.refusals.wire import posing
from bench.client import Client, Endpoint
from bench.errors import RequestFailed
from kvstore import salts
from kvstore.blockhash import prompt_digest
from kvstore.codec import encode, well_formed
from kvstore.handoff import DecodeTicket, PrefillTicket, to_params
from kvstore.messages import PROTOCOL_VERSION, Announce, Failed, Hello, Ready, Welcome
from kvstore.transfer import Prompt, ready_mac
from kvstore.transport.sockets import own_address, uri_of

BLOCKS = 3
TTL_MS = 20_000

_TRANSFER_HEADER = "x-kvferry-transfer"
_HEARD_SECONDS = 10.0


@dataclass(frozen=True)
class Leg:
    """A prompt of one request, under a ticket that the audit made up."""

    transfer: bytes
    prompt: Prompt
    claim: str
    body: Mapping[str, Any]

    def asked(self, template: Ready, key: bytes) -> Ready:
        """As ``template``, for this one, signed with the cluster's ``key``."""
        ready = replace(template, transfer=self.transfer, mac=bytes(32), ttl_ms=TTL_MS)
        return replace(ready, mac=ready_mac(key, ready, self.prompt))


class Legs:
    """Made up as of ``deployment``'s owner in its present ``epoch``, of ``announce``'s model."""

    def __init__(
        self, deployment: Deployment, client: Client, announce: Announce, epoch: int
    ) -> None:
        self._deployment = deployment
        self._client = client
        self._announce = announce
        self._epoch = epoch

    def new(self) -> Leg:
        """Nothing of it is kept anywhere."""
        tokens = prompts.fresh(BLOCKS * self._announce.block_size)
        key = self._deployment.credentials.salt_key()
        salt = salts.one_shot(key, self._deployment.owner.name, self._epoch)
        owner = salts.owner(salt)
        assert owner is not None
        body = {
            "model": self._announce.model,
            "prompt": tokens,
            "max_tokens": 1,
            "temperature": 0,
            "cache_salt": salt,
        }
        prompt = Prompt(salt, prompt_digest(tokens), BLOCKS)
        return Leg(secrets.token_bytes(16), prompt, owner.claim, body)

    async def prefilled(self, worker: Worker, leg: Leg) -> None:
        """Has ``worker`` compute it and wait for whoever asks."""
        await self._sent(worker, leg, PrefillTicket(leg.transfer.hex(), TTL_MS))

    async def caught(self, decode: Worker, leg: Leg) -> Ready | None:
        """What ``decode`` says for it to the prefill worker that the audit poses as."""
        uri = f"zmq+ipc://{self._deployment.run_dir}/audit-{secrets.token_hex(4)}"
        if self._deployment.config.network.kind == "tcp":
            uri = f"zmq+tcp://{own_address(decode.at.feed)}:0"
        with posing("prefill", uri, self._deployment.credentials) as router:
            ticket = DecodeTicket(
                transfer=leg.transfer.hex(),
                ttl_ms=TTL_MS,
                ship=uri_of(router),
                sender_generation=self._announce.generation,
            )
            computing = asyncio.create_task(self._sent(decode, leg, ticket))
            try:
                return await asyncio.to_thread(_overheard, router)
            finally:
                await computing

    async def _sent(self, worker: Worker, leg: Leg, ticket: PrefillTicket | DecodeTicket) -> None:
        shown = worker.shown(self._deployment.token)
        headers = {
            **shown.headers,
            _TRANSFER_HEADER: leg.transfer.hex(),
            salts.OWNER_HEADER: leg.claim,
        }
        content = msgspec.json.encode({**leg.body, "kv_transfer_params": to_params(ticket)})
        endpoint = Endpoint(shown.base, headers, shown.socket)
        try:
            await self._client.ask(endpoint, "POST", COMPLETIONS, content)
        except RequestFailed:
            return  # nothing comes of it then, which shows


def _overheard(router: zmq.Socket[bytes]) -> Ready | None:
    """The first message that opens a transfer; whoever sent it is told that nothing will come."""
    while router.poll(int(1000 * _HEARD_SECONDS)):
        peer, *frames = router.recv_multipart(zmq.NOBLOCK)
        message = well_formed(frames[0]) if frames else None
        if isinstance(message, Hello):
            router.send_multipart([peer, encode(Welcome(PROTOCOL_VERSION))], zmq.NOBLOCK)
        elif isinstance(message, Ready):
            failed = Failed(message.transfer, "prefill-failed", "an audit asked for it")
            router.send_multipart([peer, encode(failed)], zmq.NOBLOCK)
            return message
    return None
