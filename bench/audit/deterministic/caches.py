"""Rows of what is kept where: engines' memory on either side, the DRAM tier, after a restart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bench.audit import prompts
from bench.audit.asking import CHAT, Answer, Known, answered
from bench.audit.deployment import TestTenant
from bench.audit.deterministic.case import Case, not_tried
from bench.audit.deterministic.emptying import crowded_out, prefill_blocks
from bench.audit.deterministic.scene import DECODE_BLOCKS, Fields, Scene
from bench.audit.findings import Finding

CHAT_WORDS = 160


async def on_prefill(scene: Scene) -> Finding:
    """A prompt that begins as the owner's: only prefill's memory can give its beginning."""
    case, shared = Case("GPU on prefill"), scene.sizes.below_chunk
    prompt = prompts.fresh(shared + scene.sizes.part)
    case.miss(await scene.warm(prompt), "a new prompt")
    beginning = prompt[:shared]
    same = await scene.owns(prompts.extended(beginning, scene.sizes.rest))
    case.hit(same, shared, "the owner", path="disaggregated")
    case.miss(await scene.looks(prompts.extended(beginning, scene.sizes.rest)), "the other tenant")
    return case.finding()


async def on_decode(scene: Scene) -> Finding:
    """A prompt again: decode holds all of it."""
    return await _on_decode(scene, Case("GPU on decode"), {})


async def on_decode_alone(scene: Scene) -> Finding:
    """Likewise with requests that decode serves by itself: they tell what its own cache had."""
    return await _on_decode(scene, Case("GPU on decode, alone"), {"echo": True})


async def _on_decode(scene: Scene, case: Case, fields: Fields) -> Finding:
    prompt = prompts.fresh(DECODE_BLOCKS * scene.sizes.block + scene.sizes.part)
    case.miss(await scene.warm(prompt), "a new prompt")
    tokens = scene.sizes.whole_blocks(len(prompt))
    case.hit(await scene.owns(prompt, fields), tokens, "the owner", path="decode-only")
    case.miss(await scene.looks(prompt, fields), "the other tenant")
    return case.finding()


async def in_dram(scene: Scene) -> Finding:
    """A prompt's whole chunks, when prefill's memory has forgotten them."""
    case, sizes = Case("DRAM"), scene.sizes
    if not scene.dram:
        return not_tried(case.name, "this deployment has no DRAM tier")
    prompt = prompts.fresh(sizes.chunk + sizes.part)
    case.miss(await scene.warm(prompt, dram=True), "a new prompt")

    async def gone() -> bool:
        return (await scene.known(scene.owner, prompt)).prefill_gpu == 0

    async def crowd() -> Answer:
        # No whole chunk: the DRAM tier keeps nothing of it.
        return await scene.owns(prompts.fresh(max(sizes.block, sizes.chunk - 1)))

    blocks = await prefill_blocks(scene.deployment, scene.client)
    most = None if blocks is None else blocks * sizes.block // sizes.chunk
    left = await crowded_out(gone, crowd, most, scene.budget)
    beginning = prompt[: sizes.chunk]
    if not left:
        case.notes.append("other prompts of the owner's pushed it out of prefill's memory before")
        same = await scene.owns(prompts.extended(beginning, sizes.rest))
        case.hit(same, sizes.chunk, "the owner", tier="dram", path="disaggregated")
    case.miss(await scene.looks(prompts.extended(beginning, sizes.rest)), "the other tenant")
    if left:
        case.notes.append(f"no control: {left}; --restart-workers restarts the engines instead")
    return case.finding("inconclusive" if left else "pass")


async def after_restart(scene: Scene) -> Finding:
    """Engines forget everything, the DRAM tier nothing."""
    case, sizes = Case("after worker restart"), scene.sizes
    if scene.restarter is None:
        return not_tried(case.name, "engines are restarted with --restart-workers only")
    prompt = prompts.fresh((sizes.chunk if scene.dram else 2 * sizes.block) + sizes.part)
    short = prompts.fresh(DECODE_BLOCKS * sizes.block + sizes.part)
    case.miss(await scene.warm(short), "a new prompt")
    case.miss(await scene.warm(prompt, dram=True), "a new prompt")
    seconds = await scene.restarter.restart()
    case.notes.append(f"all engines were killed; the last one was back after {seconds:.0f} s")
    case.miss(await scene.owns(short), "what lay in engines' memory only")
    if scene.dram:
        beginning = prompt[: sizes.chunk]
        await scene.asker.until_known(scene.owner, {"prompt": beginning}, Known(0, sizes.chunk, 0))
        same = await scene.owns(prompts.extended(beginning, sizes.rest))
        case.hit(same, sizes.chunk, "the owner", tier="dram", path="disaggregated")
        other = await scene.looks(prompts.extended(beginning, sizes.rest))
        case.miss(other, "the other tenant, from DRAM")
    await scene.settled(short)
    case.hit(await scene.owns(short), sizes.whole_blocks(len(short)), "the owner, once more")
    case.miss(await scene.looks(short), "the other tenant")
    return case.finding()


async def chat_stream(scene: Scene) -> Finding:
    """A chat, streamed.

    What templates put before a chat is in everyone's own cache: a tenant asks something else
    before, and may find no more than of that.
    """
    case, asks = Case("chat, streamed"), _chat()
    usual = await _usual(scene, scene.owner)
    first = await _said(scene, scene.owner, asks)
    case.miss(_beyond(first, usual), "a new chat")
    await scene.asker.until_known(scene.owner, asks, scene.kept(first.prompt))
    again = await _said(scene, scene.owner, asks)
    case.hit(again, scene.sizes.whole_blocks(first.prompt), "the owner", path="decode-only")
    usual = await _usual(scene, scene.stranger)
    case.miss(_beyond(await _said(scene, scene.stranger, asks), usual), "the other tenant")
    return case.finding()


async def _usual(scene: Scene, tenant: TestTenant) -> Answer:
    """Any new chat, when there has been another."""
    first = _chat()
    answer = await _said(scene, tenant, first)
    await scene.asker.until_known(tenant, first, scene.kept(answer.prompt))
    return await _said(scene, tenant, _chat())


def _chat() -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": prompts.text(CHAT_WORDS)}]}


async def _said(scene: Scene, tenant: TestTenant, asks: dict[str, Any]) -> Answer:
    return await answered(scene.asker.stream(tenant, CHAT, asks))


def _beyond(answer: Answer, usual: Answer) -> Answer:
    """``answer`` less what a new chat finds as well."""
    known = Known(
        *(
            max(0, getattr(answer.known, name) - getattr(usual.known, name))
            for name in Known.__struct_fields__
        )
    )
    return replace(answer, cached=max(0, answer.cached - usual.cached), known=known)
