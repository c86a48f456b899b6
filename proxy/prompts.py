"""Prompts on their way to a prefill worker, and what they find. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvstore.curves import PrefillCurve
from kvstore.handoff import whole_blocks
from kvstore.messages import Announce, ServedAdapter
from proxy.placement import Counts, Floats


class Layout(NamedTuple):
    """What prefill and decode must have in common for KV to go from one to the other."""

    model: str
    fingerprint: str
    block_size: int

    @classmethod
    def of(cls, worker: Announce) -> Layout:
        """That of ``worker``."""
        return cls(worker.model, worker.fingerprint, worker.block_size)


@dataclass(frozen=True)
class Prompt:
    """``tokens`` of a ``tenant``'s prompt; ``names`` of its whole blocks; its ``hint``, if any; and
    the ``adapter`` that computes it, if one does.
    """

    tenant: str
    tokens: int
    names: Sequence[bytes]
    hint: int | None = None
    adapter: ServedAdapter | None = None


class Found(NamedTuple):
    """What a prompt would find, by the worker's position: ``held`` tokens, as the engine counts
    them, of which ``loads`` lie only in DRAM; to load those and compute the rest takes ``seconds``,
    infinitely many where its adapter is not served.
    """

    held: Counts
    loads: Counts
    seconds: Floats

    def of(self, at: int) -> tuple[int, int, float]:
        """At the worker in that position."""
        return int(self.held[at]), int(self.loads[at]), float(self.seconds[at])


def holdings(
    gpu: Counts, dram: Counts, tokens: int, block_size: int, chunk_tokens: int
) -> tuple[Counts, Counts]:
    """``held`` and ``loads`` of a prompt of which ``gpu`` and ``dram`` blocks lie in the tiers.

    The last token is always computed, because its logits are wanted. An engine counts the whole
    blocks before it in its memory. From DRAM it loads whole chunks, so of one that another prompt
    goes on in nothing, and what it loads may end within a block. Where it has all whole blocks it
    loads nothing.
    """
    whole = whole_blocks(tokens, block_size)
    here = np.minimum(gpu * block_size, whole)
    there = dram * block_size // chunk_tokens * chunk_tokens
    there = np.minimum(there, max(0, tokens - 1))
    held = np.where(here < whole, np.maximum(here, there), here)
    return held, held - here


@dataclass(eq=False)
class Waiting:
    """A prompt in the queue. ``order``: who of its tenant has the least is looked at first.

    ``least``: seconds that it seemed to take when it came. ``found``: by the worker's position in
    the fleet of that ``version``.
    """

    key: int
    prompt: Prompt
    chain: bytes
    since: float
    order: float
    least: float
    found: Found
    looked_up: float
    version: int

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.prompt.tenant


class Expected(NamedTuple):
    """What is to be expected of prefill: the prompt computed in ``seconds``, where ``held`` tokens
    of it need no computing, and its first token ``after`` more; how fast workers compute; and what
    it ``found`` on each.
    """

    seconds: float
    held: int
    curve: PrefillCurve
    after: float = 0.0
    found: Found | None = None


class Candidate(NamedTuple):
    """A worker as it looks to one prompt: ``held`` tokens of it, the rest takes ``seconds`` after
    ``work`` seconds for ``prompts`` others; ``against``: seconds for having computed more of late.
    All in all it ``costs`` so much, and who costs least is meant.
    """

    worker: Announce
    held: int
    seconds: float
    work: float
    prompts: int
    against: float
    costs: float
