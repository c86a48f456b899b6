"""Prompts on their way to a prefill worker, and what they find. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kvstore.curves import PrefillCurve
from kvstore.messages import Announce
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
    """``tokens`` of a ``tenant``'s prompt; ``names`` of its whole blocks."""

    tenant: str
    tokens: int
    names: Sequence[bytes]


@dataclass(eq=False)
class Waiting:
    """A prompt in the queue. ``order``: who of its tenant has the least is looked at first.

    ``least``: seconds that it seemed to take when it came. ``held``: tokens, and ``seconds`` to
    compute the rest, by the worker's position in the fleet of that ``version``.
    """

    key: int
    prompt: Prompt
    chain: bytes
    since: float
    order: float
    least: float
    held: Counts
    seconds: Floats
    looked_up: float
    version: int

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.prompt.tenant


class Expected(NamedTuple):
    """What is to be expected of prefill: the prompt computed in ``seconds``, where ``held`` tokens
    of it need no computing; and how fast workers compute.
    """

    seconds: float
    held: int
    curve: PrefillCurve


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
