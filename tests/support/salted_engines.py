"""Stand-ins for engines that keep blocks by salt, behind a real proxy; any of their protections can
be taken away.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kvstore.blockhash import Lora, block_chain, block_names
from kvstore.handoff import whole_blocks
from kvstore.messages import ServedAdapter, Snapshot, Standing, Tenancy, Tier, Wiped
from kvstore.salts import owner
from tests.support.proxy_fakes import BLOCK, CHUNK, MODEL, Stage, Worker

CAPACITY = 48
"""Blocks that an engine keeps."""

ADAPTER = ServedAdapter("tuned", "a" * 16, "/adapters/tuned")


@dataclass
class Engines:
    """Those of one prefill worker and one decode worker, and their DRAM tier.

    ``engine_salt``, ``dram_salt``: whether blocks and chunks are kept by salt; ``told_salt``:
    whether the names that proxies are told have it.
    """

    stage: Stage
    engine_salt: bool = True
    dram_salt: bool = True
    told_salt: bool = True
    kept: dict[str, OrderedDict[bytes, bytes]] = field(default_factory=dict)
    chunks: dict[bytes, list[bytes]] = field(default_factory=dict)
    sequence: int = 0

    def __post_init__(self) -> None:
        for worker in (self.stage.p, self.stage.d):
            worker.rendering = rendered
            worker.adapters = (ADAPTER,)
            self.kept[worker.name] = OrderedDict()
            self.stage.said.tenants.met(worker.name, worker.announce().generation)
        self.stage.p.computing = self._prefill
        self.stage.d.computing = self._decode
        say = self.stage.said.say

        def said(standings: Iterable[Standing]) -> None:
            known = list(standings)
            say(known)
            self._flush(known)

        self.stage.said.say = said  # type: ignore[method-assign]

    def _prefill(self, body: dict[str, Any]) -> None:
        worker, tokens = self.stage.p, body["prompt"]
        gpu = min(self._held(worker, body, tokens), whole_blocks(len(tokens), BLOCK))
        there = 0
        for end in range(CHUNK, len(tokens) + 1, CHUNK):
            if self._chunk(body, tokens[:end]) not in self.chunks:
                break
            there = end
        loaded = max(0, min(there, len(tokens) - 1) - gpu)
        if gpu == whole_blocks(len(tokens), BLOCK):
            loaded = 0
        worker.tokens, worker.cached = tokens, gpu + loaded
        worker.report = {"prefill_ms": 1.0, "gpu_tokens": gpu, "dram_tokens": loaded}
        self._keep(worker, body, tokens)
        if _is_kept(body):
            told = self._told(body, tokens)
            for end in range(CHUNK, len(tokens) + 1, CHUNK):
                self.chunks[self._chunk(body, tokens[:end])] = told[: end // BLOCK]
        self._tell(worker)

    def _decode(self, body: dict[str, Any]) -> None:
        worker, params = self.stage.d, body.get("kv_transfer_params") or {}
        prompt = params.get("prompt_token_ids") or body.get("prompt")
        tokens = prompt if isinstance(prompt, list) else rendered("", body)
        local = min(self._held(worker, body, tokens), whole_blocks(len(tokens), BLOCK))
        fetches = (params.get("kvferry") or {}).get("type") == "fetch"
        received = len(tokens) - local if local < whole_blocks(len(tokens), BLOCK) else 0
        worker.tokens = tokens
        worker.cached = len(tokens) - 1 if fetches else local
        worker.outcome = None
        if fetches:
            worker.outcome = {
                "type": "Outcome",
                "shipped": True,
                "local_tokens": local,
                "received_tokens": received,
                "received_bytes": received,
                "wait_ms": 1.0,
                "reason": None,
            }
        self._keep(worker, body, tokens)
        self._tell(worker)

    def _chain(self, body: dict[str, Any], tokens: list[int]) -> list[bytes]:
        salt = body["cache_salt"] if self.engine_salt else ""
        return block_chain(tokens, BLOCK, salt, _lora(body))

    def _told(self, body: dict[str, Any], tokens: list[int]) -> list[bytes]:
        salt = body["cache_salt"] if self.told_salt and self.engine_salt else ""
        return block_names(block_chain(tokens, BLOCK, salt, _lora(body)))

    def _chunk(self, body: dict[str, Any], tokens: list[int]) -> bytes:
        salt = body["cache_salt"] if self.dram_salt else ""
        return hashlib.sha256(f"{salt} {tokens}".encode()).digest()

    def _held(self, worker: Worker, body: dict[str, Any], tokens: list[int]) -> int:
        kept, blocks = self.kept[worker.name], 0
        for name in self._chain(body, tokens):
            if name not in kept:
                break
            kept.move_to_end(name)
            blocks += 1
        return blocks * BLOCK

    def _keep(self, worker: Worker, body: dict[str, Any], tokens: list[int]) -> None:
        if not _is_kept(body):
            return
        kept, told = self.kept[worker.name], self._told(body, tokens)
        for name, known in zip(self._chain(body, tokens), told, strict=True):
            kept[name] = known
        while len(kept) > CAPACITY:
            kept.popitem(last=False)

    def _tell(self, worker: Worker) -> None:
        self.sequence += 1
        gpu = list(self.kept[worker.name].values())
        dram = [name for names in self.chunks.values() for name in names]
        tiers: dict[Tier, list[bytes]] = {
            "gpu": gpu,
            "dram": dram if worker.role == "prefill" else [],
        }
        directory = self.stage.directory
        directory.expire(0.0)
        for part, (tier, names) in enumerate(tiers.items()):
            held = b"".join(dict.fromkeys(names))
            generation = worker.announce().generation
            message = Snapshot(worker.name, generation, self.sequence, part, 2, tier, held)
            directory.apply(message, 0.0)

    def _flush(self, standings: list[Standing]) -> None:
        for worker in (self.stage.p, self.stage.d):
            self.stage.said.hear(Tenancy(worker.name, tuple(standings)))
            for one in standings:
                for tier in ("gpu", "dram") if worker.role == "prefill" else ("gpu",):
                    self.stage.said.hear(Wiped(worker.name, tier, one.tag, one.epoch, 0, 0.0))


def rendered(_path: str, body: dict[str, Any]) -> list[int]:
    """A prompt's tokens: as they are, or a number for each word."""
    prompt = body.get("prompt")
    if isinstance(prompt, list):
        return prompt
    texts = [prompt] if prompt else [str(one["content"]) for one in body["messages"]]
    words = " ".join(["<chat>", *texts] if not prompt else texts).split()
    return [int.from_bytes(hashlib.sha256(word.encode()).digest()[:2], "big") for word in words]


def _lora(body: dict[str, Any]) -> Lora | None:
    return None if body.get("model") in (None, MODEL) else (ADAPTER.model, ADAPTER.path)


def _is_kept(body: dict[str, Any]) -> bool:
    known = owner(body["cache_salt"])
    return known is None or known.kept
