"""Which calls a worker's gate lets through to its engine, and which of them it ends. Pure.

A call that computes something claims in a header whose it is: a tenant in one of its epochs. One of
an epoch that is over is refused, and was it admitted before, it is ended; so a proxy that does not
know of a flush brings nothing back. Until a gate has been told once what holds, it admits none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kvstore.messages import Standing
from kvstore.salts import Owner, claimed
from kvstore.standings import Standings

COMPUTING_PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
"""What a leg may call."""

_RENDERING = frozenset(f"{path}/render" for path in COMPUTING_PATHS)
_OTHERS = frozenset({"/v1/models", "/metrics", "/tokenize", "/reset_prefix_cache"})
PASSED_PATHS = _OTHERS | _RENDERING
"""What else of vLLM's is passed on: nothing that computes KV, or shows what is kept.

The last of the others is there in vLLM's development mode only.
"""


@dataclass(frozen=True)
class Refusal:
    """How a call is answered that is not let through, or is ended."""

    status: int
    message: str
    code: str | None = None


FLUSHED = Refusal(409, "the tenant's cache was flushed: this epoch of it is over", "cache_flushed")
_NOT_TOLD = Refusal(503, "this worker has not been told yet what holds for tenants")
_NO_CLAIM = Refusal(400, "a leg must say whose it is")


class Admission:
    """One gate's. Calls under way are known until ``leave``."""

    def __init__(self) -> None:
        self._standings = Standings()
        self._told = False
        self._numbers = itertools.count()
        self._under_way: dict[str, dict[int, tuple[int, Callable[[], None]]]] = {}

    def tell(self, standings: Iterable[Standing]) -> None:
        """These hold from now on; ends calls of epochs that are over.

        Raises WireError where there are more tenants than may be remembered.
        """
        changed = self._standings.take(standings)
        self._told = True
        for now in changed:
            for epoch, end in list(self._under_way.get(now.tag, {}).values()):
                if epoch < now.epoch:
                    end()

    def admit(self, claim: str) -> Owner | Refusal:
        """Whose a call is, by its header; or why it is refused."""
        if not self._told:
            return _NOT_TOLD
        owner = claimed(claim)
        if owner is None:
            return _NO_CLAIM
        return FLUSHED if owner.epoch < self._standings.of(owner.tag).epoch else owner

    def enter(self, owner: Owner, end: Callable[[], None]) -> int:
        """A call of this owner is under way, which ``end`` ends. Returns its number."""
        number = next(self._numbers)
        self._under_way.setdefault(owner.tag, {})[number] = owner.epoch, end
        return number

    def leave(self, owner: Owner, number: int) -> None:
        """That call is over."""
        calls = self._under_way[owner.tag]
        del calls[number]
        if not calls:
            del self._under_way[owner.tag]
