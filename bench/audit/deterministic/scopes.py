"""Rows of who is told apart, within a tenant too, and of what must never be found again."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from bench.audit import prompts
from bench.audit.deterministic.case import Case, not_tried
from bench.audit.deterministic.scene import DECODE_BLOCKS, Scene
from bench.audit.findings import Finding
from kvstore import salts

NO_STORE = {"cache-control": "no-store"}
ISOLATION_KEY = "prompt_cache_isolation_key"


async def index(scene: Scene) -> Finding:
    """What the proxy's directory tells of a prompt that only the owner has asked for."""
    case = Case("index")
    prompt = prompts.fresh(scene.sizes.chunk + scene.sizes.part)
    case.miss(await scene.warm(prompt, dram=True), "a new prompt")
    wanted = scene.kept(len(prompt), dram=True)
    case.knows(await scene.known(scene.owner, prompt), wanted, "of the owner's")
    case.unknown(await scene.known(scene.stranger, prompt), "for the other tenant")
    return case.finding()


async def client_salts(scene: Scene) -> Finding:
    """Fields with which a client could choose its own salt, or take another tenant's."""
    case, prompt = Case("client's salt"), _prompt(scene)
    tokens = scene.sizes.whole_blocks(len(prompt))
    shared = _salt_like()
    case.miss(await scene.warm(prompt, _steering(shared)), "a new prompt")
    await scene.settled(prompt)
    case.hit(await scene.owns(prompt), tokens, "the owner, without the salt it gave")
    other = _steering(_salt_like())
    case.hit(await scene.owns(prompt, other), tokens, "the owner, with another salt")
    case.miss(await scene.looks(prompt, _steering(shared)), "the other tenant, the same salt")
    own = await _owners_salt(scene)
    for alone in (False, True):
        secret = _prompt(scene)
        case.miss(await scene.warm(secret), "a new prompt")
        forged = {**_steering(own), "echo": alone}
        headers = {"x-kvferry-owner": own.rpartition("-")[0]}
        answer = await scene.asks(scene.stranger, {"prompt": secret, **forged}, headers)
        case.miss(answer, f"the other tenant, the owner's very salt{', alone' if alone else ''}")
    return case.finding()


def _salt_like() -> str:
    return f"{secrets.token_hex(salts.TAG_CHARS // 2)}-0-{secrets.token_hex(32)}"


async def _owners_salt(scene: Scene) -> str:
    """What only the cluster should know."""
    key = scene.deployment.credentials.salt_key()
    epoch = await scene.asker.epoch(scene.owner)
    return salts.salt(key, salts.Scope(scene.owner.name, epoch))


def _steering(salt: str) -> dict[str, Any]:
    """Whatever an engine or a connector would take a salt or a tenant from."""
    return {
        "cache_salt": salt,
        "kv_transfer_params": {"cache_salt": salt, "kvferry": {"cache_salt": salt}},
        "vllm_xargs": {"cache_salt": salt},
        "priority": -1,
        "request_id": secrets.token_hex(8),
    }


async def sub_scopes(scene: Scene) -> Finding:
    """A label that divides a tenant, and can only ever narrow."""
    case, prompt = Case("sub-scope"), _prompt(scene)
    tokens = scene.sizes.whole_blocks(len(prompt))
    mine, other = ({ISOLATION_KEY: f"audit-{name}"} for name in ("one", "two"))
    case.miss(await scene.warm(prompt, mine), "a new prompt")
    case.hit(await scene.owns(prompt, mine), tokens, "the same label")
    case.miss(await scene.looks(prompt, mine), "the other tenant, the same label")
    case.miss(await scene.owns(prompt, other), "another label")
    case.miss(await scene.owns(prompt), "no label")
    return case.finding()


async def adapters(scene: Scene) -> Finding:
    """Fine-tunes of one base, and the base itself; DRAM too, whose keys know no adapter."""
    case = Case("LoRA")
    named = {adapter.name for adapter in scene.deployment.config.adapters}
    served = [model for model in await scene.asker.models(scene.owner) if model in named]
    if not served:
        return not_tried(case.name, "no adapter is served")
    first, *others = [*served[:2], scene.asker.model]
    prompt = prompts.fresh(scene.sizes.chunk + scene.sizes.part)
    case.miss(await scene.warm(prompt, {"model": first}, dram=True), f"a new prompt to {first}")
    wanted = scene.kept(len(prompt), dram=True)
    case.knows(await scene.known(scene.owner, prompt, {"model": first}), wanted, f"of {first}")
    tokens = scene.sizes.whole_blocks(len(prompt))
    case.hit(await scene.owns(prompt, {"model": first}), tokens, f"{first} again")
    for other in others:
        case.unknown(await scene.known(scene.owner, prompt, {"model": other}), f"for {other}")
        case.miss(await scene.owns(prompt, {"model": other}), f"{other}, the same tenant")
    case.miss(await scene.looks(prompt, {"model": first}), f"{first}, the other tenant")
    return case.finding()


async def no_store(scene: Scene) -> Finding:
    """A request of which nothing may be kept finds nothing, and nothing of it is found."""
    case = Case("no-store")
    prompt = prompts.fresh(scene.sizes.chunk + scene.sizes.part)
    tokens = scene.sizes.whole_blocks(len(prompt))
    once = {"prompt": prompt}
    case.miss(await scene.asks(scene.owner, once, NO_STORE), "a new prompt, no-store")
    for whose, tenant in (("its own", scene.owner), ("another tenant's", scene.stranger)):
        case.unknown(await scene.known(tenant, prompt), f"of it, for {whose} later requests")
    case.miss(await scene.asks(scene.owner, once, NO_STORE), "its repeat, no-store")
    case.miss(await scene.looks(prompt), "the other tenant")
    case.miss(await scene.warm(prompt, dram=True), "its repeat, stored")
    case.miss(await scene.asks(scene.owner, once, NO_STORE), "no-store of what is stored")
    case.hit(await scene.owns(prompt), tokens, "the stored one's repeat")
    by_field = prompts.fresh(len(prompt))
    case.miss(await scene.owns(by_field, {"no_store": True}), "a new prompt, by the field")
    case.miss(await scene.owns(by_field), "its repeat")
    return case.finding()


async def flushed(scene: Scene) -> Finding:
    """After a flush the owner finds nothing of before, and what comes after it is kept."""
    case = Case("flush")
    prompt, others = (prompts.fresh(scene.sizes.chunk + scene.sizes.part) for _ in range(2))
    tokens = scene.sizes.whole_blocks(len(prompt))
    case.miss(await scene.warm(prompt, dram=True), "a new prompt")
    kept = scene.kept(len(others), dram=True)
    case.miss(await scene.looks(others), "a new prompt of the other tenant's")
    await scene.asker.until_known(scene.stranger, {"prompt": others}, kept)
    case.hit(await scene.owns(prompt), tokens, "the owner before")
    told = await scene.asker.flush(scene.owner)
    case.notes.append(_flush_told(told))
    case.doubts += [f"{worker} did not confirm the flush" for worker in told.get("unconfirmed", ())]
    case.unknown(await scene.known(scene.owner, prompt), "after the flush")
    case.miss(await scene.owns(prompt), "the owner after it")
    await scene.settled(prompt, dram=True)
    case.hit(await scene.owns(prompt), tokens, "the owner, once more")
    case.hit(await scene.looks(others), tokens, "the other tenant, who was not flushed")
    return case.finding()


def _flush_told(told: Mapping[str, Any]) -> str:
    size = sum(one["bytes"] for one in told.get("overwritten", ()))
    return (
        f"in force everywhere after {told.get('unreachable_ms', 0):.0f} ms, {size:,} bytes "
        f"overwritten after {told.get('overwritten_ms', 0):.0f} ms"
    )


def _prompt(scene: Scene) -> list[int]:
    return prompts.fresh(DECODE_BLOCKS * scene.sizes.block + scene.sizes.part)
