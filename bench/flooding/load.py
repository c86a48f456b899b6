"""Who asks for what and when: two tenants at one rate, each for documents of its own. Pure.

Both arms have the same times and the same requests of the quiet tenant; the other one asks for few
documents in one arm and for many in the other.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from bench.flooding.settings import FLOOD, FLOOR, INSIDE, Amounts
from bench.load import arrivals
from bench.load.schedule import Segment

Arm = Literal["inside", "flood"]
ARMS: tuple[Arm, Arm] = ("inside", "flood")
QUIET, NOISY = "quiet", "noisy"


@dataclass(frozen=True)
class Sizes:
    """Documents in each working set; ``everything``: as many as the larger tier has room for."""

    quiet: int
    inside: int
    flood: int
    everything: int

    def of(self, tenant: str, arm: Arm) -> int:
        """That of ``tenant`` in ``arm``."""
        if tenant == QUIET:
            return self.quiet
        return self.inside if arm == "inside" else self.flood


@dataclass(frozen=True)
class Wanted:
    """One request, ``at`` seconds from the begin of its slice; below 0: in its lead."""

    at: float
    tenant: str
    prompt: tuple[Segment, Segment]

    @property
    def counted(self) -> bool:
        """Whether it is in any figure."""
        return self.at >= 0


def sizes(amounts: Amounts, token_bytes: int) -> Sizes:
    """Working sets in documents: most are within the quota of the tier that is to hold them, the
    flood is many times that of the larger one.
    """
    of_document = amounts.document * token_bytes / (1 << 30)
    tier = amounts.kv_gib if amounts.within == "gpu" else amounts.dram_gib
    larger = max(amounts.kv_gib, amounts.dram_gib)
    inside = int(INSIDE * FLOOR * tier / of_document)
    flood = math.ceil(FLOOD * FLOOR * larger / of_document)
    return Sizes(inside, inside, flood, math.ceil(larger / of_document))


def slice_of(amounts: Amounts, many: Sizes, arm: Arm, number: int, rate: float) -> list[Wanted]:
    """Slice ``number`` of ``arm``, in order of time; ``rate`` requests per second of a tenant."""
    of_both = (_requests(amounts, many, arm, number, rate, tenant) for tenant in (QUIET, NOISY))
    return sorted(itertools.chain(*of_both), key=lambda one: one.at)


def _requests(
    amounts: Amounts, many: Sizes, arm: Arm, number: int, rate: float, tenant: str
) -> Iterator[Wanted]:
    times = arrivals.times("poisson", rate, random.Random(f"{amounts.seed}/{number}/{tenant}"))
    dice = random.Random(f"{amounts.seed}/{number}/{tenant}/documents")
    for count, at in enumerate(times):
        if at >= amounts.lead + amounts.seconds:
            return
        document = dice.randrange(many.of(tenant, arm))
        question = Segment(f"question-{tenant}-{arm}-{number}-{count}", amounts.question)
        yield Wanted(at - amounts.lead, tenant, (_document(tenant, document, amounts), question))


def filling(amounts: Amounts, many: Sizes) -> list[Wanted]:
    """So much of the flood that there is room for nothing else."""
    return [
        Wanted(
            -amounts.lead,
            NOISY,
            (_document(NOISY, at, amounts), Segment(f"fill-{at}", amounts.question)),
        )
        for at in range(many.everything)
    ]


def settling(amounts: Amounts, many: Sizes, arm: Arm, number: int) -> list[Wanted]:
    """What is asked one after the other before a slice: the quiet tenant's documents, and those of
    the other one that fit within its quota.
    """
    wanted = []
    for tenant in (NOISY, QUIET):
        for document in range(min(many.of(tenant, arm), many.inside)):
            question = Segment(f"settle-{tenant}-{arm}-{number}-{document}", amounts.question)
            wanted.append(
                Wanted(-amounts.lead, tenant, (_document(tenant, document, amounts), question))
            )
    return wanted


def _document(tenant: str, number: int, amounts: Amounts) -> Segment:
    return Segment(f"document-{tenant}-{number}", amounts.document)
