"""The ledger reports each released request once, and only when nothing of it is open."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstore.ledger import CompletionLedger

REQUESTS = st.integers(0, 4).map(str)
WORK = st.integers(0, 3)


class LedgerMachine(RuleBasedStateMachine):
    """Abort, preemption and failure are all the same to the ledger: work ends, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = CompletionLedger()
        self.open: dict[str, set[int]] = {}
        self.released: set[str] = set()

    @rule(request=REQUESTS, work=WORK)
    def begin(self, request: str, work: int) -> None:
        if request in self.released:
            with pytest.raises(ValueError, match="after its release"):
                self.ledger.begin(request, work)
            return
        self.ledger.begin(request, work)
        self.open.setdefault(request, set()).add(work)

    @rule(request=REQUESTS, work=WORK)
    def settle(self, request: str, work: int) -> None:
        self.ledger.settle(request, work)
        self.open.get(request, set()).discard(work)

    @rule(requests=st.sets(REQUESTS))
    def release(self, requests: set[str]) -> None:
        self.ledger.release(requests)
        self.released |= requests

    @rule()
    def collect(self) -> None:
        done = {request for request in self.released if not self.open.get(request)}
        assert self.ledger.collect() == done
        assert self.ledger.collect() == set()
        self.released -= done
        for request in done:
            self.open.pop(request, None)

    @invariant()
    def open_work_is_what_was_begun_and_not_settled(self) -> None:
        mine = {request: frozenset(work) for request, work in self.open.items() if work}
        theirs = {request: work for request, work in self.ledger.open_work().items() if work}
        assert theirs == mine


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=200, deadline=None)
