"""How long a server's prefills take, measured one at a time, for the simulation's engines."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.client import Client, Timeline
from bench.driving.target import Target
from bench.errors import RequestFailed
from bench.load.errors import BadLoad
from bench.load.schedule import Segment
from bench.load.words import Words
from kvstore.curves import Sample

SHORTEST = 32
HELD_SHARES = (0.0, 0.5, 0.9)
"""How much of a prompt has been computed for an earlier one."""

FINISH_SECONDS = 0.2
"""Between requests, so that nothing of one is left in the engine when the next one comes."""


@dataclass(frozen=True)
class Asked:
    """A prompt of about ``tokens``, of which the first ``held`` have been computed before."""

    number: int
    tokens: int
    held: int


def asked(longest: int, rounds: int, seed: int) -> list[Asked]:
    """Lengths from ``SHORTEST`` to ``longest``, each twice the one before; in random order."""
    lengths = [longest >> by for by in range(longest.bit_length()) if longest >> by >= SHORTEST]
    each = [
        (length, int(length * share))
        for _ in range(rounds)
        for length in lengths
        for share in HELD_SHARES
    ]
    random.Random(seed).shuffle(each)
    return [Asked(number, length, held) for number, (length, held) in enumerate(each)]


async def samples(
    target: Target, wanted: Sequence[Asked], salt: str, say: Callable[[str], None]
) -> list[Sample]:
    """Seconds to the first token, of each. Raises RequestFailed, BadLoad."""
    words, found = Words(salt), []
    async with Client(target.timeout_seconds) as client:
        await _ask(client, target, words.text(Segment("warm-up", SHORTEST)))
        for done, one in enumerate(wanted):
            head = words.text(Segment(f"head-{one.number}", one.held)) if one.held else ""
            tail = words.text(Segment(f"tail-{one.number}", one.tokens - one.held))
            if head:
                await _ask(client, target, head.lstrip())
                await asyncio.sleep(FINISH_SECONDS)
            timeline = await _ask(client, target, (head + tail).lstrip())
            new = timeline.prompt_tokens - timeline.cached_tokens
            found.append(Sample(new, timeline.cached_tokens, timeline.ttft))
            told = f"{new} tokens after {timeline.cached_tokens} held ones: {timeline.ttft:.3f} s"
            say(f"{done + 1} of {len(wanted)}: {told}")
    if not any(sample.held for sample in found):
        raise BadLoad("the server tells no cached tokens: nothing can be said of what it holds")
    return found


async def _ask(client: Client, target: Target, text: str) -> Timeline:
    endpoint, body = target.endpoint(0), target.body([text], 1)
    timeline = await client.send(endpoint, target.path, body, time.monotonic())
    if timeline.error:
        raise RequestFailed(timeline.error)
    return timeline
