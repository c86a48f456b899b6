"""Completion, reported exactly once.

vLLM's scheduler asserts on a completion it does not expect: one too many ends the engine, one too
few leaks the request's blocks for ever. So every asynchronous use of a request's blocks is written
down here when it begins and struck out when it ends, and the ledger alone decides what is
reported.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field


@dataclass
class _Account:
    open_work: set[Hashable] = field(default_factory=set)
    released: bool = False


class CompletionLedger:
    """Which requests still have work on their blocks, and which may be reported as done.

    ``released`` is the engine's word that it is through with a request and waits for ours.
    Invariant: a request is reported by exactly one ``collect`` after its release, and only when no
    work of it is open. Not thread-safe: owned by the engine's thread.
    """

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}

    def begin(self, request: str, work: Hashable) -> None:
        """Work on the request's blocks begins. Work after its release is refused (ValueError)."""
        account = self._accounts.setdefault(request, _Account())
        if account.released:
            raise ValueError(f"work begins on request {request} after its release")
        account.open_work.add(work)

    def settle(self, request: str, work: Hashable) -> None:
        """That work is over, well or not. Unknown or repeated settlements have no effect."""
        if account := self._accounts.get(request):
            account.open_work.discard(work)

    def release(self, requests: Iterable[str]) -> None:
        """The engine waits for these requests' completion."""
        for request in requests:
            self._accounts.setdefault(request, _Account()).released = True

    def collect(self) -> set[str]:
        """Requests to report now; each is returned once and forgotten."""
        done = {
            request
            for request, account in self._accounts.items()
            if account.released and not account.open_work
        }
        for request in done:
            del self._accounts[request]
        return done

    def open_work(self) -> dict[str, frozenset[Hashable]]:
        """What is outstanding, for diagnosis and tests."""
        return {request: frozenset(a.open_work) for request, a in self._accounts.items()}
