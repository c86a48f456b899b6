"""Clients' hints which prompts belong together, and the worker where equal ones meet. Pure.

A hint decides between workers that are about equally good, and never against what is known to be
held. Rendezvous hashing: who comes or goes moves only the hints that it gets or had.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.uint64]


class Lean(NamedTuple):
    """A prompt had rather go to the worker at ``position``, if that costs no more ``seconds``."""

    position: int
    seconds: float


def number(tenant: str, hint: str) -> int:
    """What a tenant's ``hint`` is known by: another one for every tenant."""
    # With its length, or another tenant's name could go on as this one's hint does.
    return _number(f"{len(tenant)} {tenant} {hint}")


def numbers(workers: Iterable[str]) -> Numbers:
    """What workers are known by, whichever generation they are of."""
    return np.array([_number(worker) for worker in workers], dtype=np.uint64)


def meant(hint: int, workers: Numbers, among: npt.NDArray[np.bool_] | None = None) -> int:
    """The position of the worker where ``hint`` belongs; only those ``among`` them, if given."""
    mixed = workers ^ np.uint64(hint)
    for shift, factor in _MIX:
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return int(np.argmax(mixed if among is None else np.where(among, mixed, np.uint64(0))))


_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
"""Of SplitMix64 (Steele 2014): each bit of a number changes half of the bits of what it returns."""


def _number(text: str) -> int:
    return int.from_bytes(
        blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big"
    )
