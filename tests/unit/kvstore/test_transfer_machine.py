"""Sender and receiver together, over a channel that delays, repeats, reorders, cuts and is late."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvstore.messages import Carriage
from tests.support.exchange import Exchange
from tests.support.memory_transport import Parcel
from tests.support.transfers import Errands, Noise, layout_of

BLOCKS = 128
LAYOUTS = [layout_of(2, 16, groups) for groups in (1, 2, 3)]
CARRIAGE: st.SearchStrategy[Carriage] = st.sampled_from(("frames", "pages"))


class TransferMachine(RuleBasedStateMachine):
    """One transfer end to end, by the real codec into real pages.

    Preemption gives the pages away and has the same KV computed into others. What becomes visible
    at the receiver is compared where its end is told (``Exchange.collect``).
    """

    @initialize(
        seed=st.integers(0, 1 << 20),
        groups=st.integers(1, 3),
        carriage=CARRIAGE,
        window=st.integers(1, 4),
    )
    def begin(self, seed: int, groups: int, carriage: Carriage, window: int) -> None:
        source, target = Noise(LAYOUTS[0], BLOCKS, 1), Noise(LAYOUTS[0], BLOCKS, 2)
        self.errands = Errands(random.Random(seed), BLOCKS, BLOCKS)
        self.errand = self.errands.draw(groups, 9)
        self.exchange = Exchange(LAYOUTS[groups - 1], source, target, carriage, window)
        self.exchange.ask(self.errand)
        self.attic: list[tuple[bool, Parcel]] = []
        self.opened = self.closed = False
        self.computed = 0

    @precondition(lambda self: not self.opened and not self.closed)
    @rule()
    def open(self) -> None:
        self.opened = True
        self.exchange.open(self.errand)

    @precondition(lambda self: self.opened and self.computed < self.errand.stop)
    @rule(count=st.integers(1, 4))
    def compute(self, count: int) -> None:
        self.computed = min(self.errand.stop, self.computed + count)
        self.exchange.supply(self.errand, self.computed)

    @precondition(lambda self: self.opened and not self.exchange.settled)
    @rule()
    def preempt(self) -> None:
        self.exchange.sender.withdraw(self.errand.transfer)
        self.errands.move(self.errand, self.exchange.source)
        self.computed = 0

    @rule()
    def ship(self) -> None:
        self.exchange.ship()

    @rule()
    def hear_receiver(self) -> None:
        self.exchange.hear_receiver()

    @rule()
    def hear_sender(self) -> None:
        self.exchange.hear_sender()

    @rule(down=st.booleans(), at=st.integers(0, 5), to=st.integers(0, 5))
    def repeat(self, down: bool, at: int, to: int) -> None:
        queue = self.exchange.down if down else self.exchange.up
        if at < len(queue):
            self.attic.append((down, queue[at]))
            queue.insert(to, queue[at])

    @precondition(lambda self: self.attic)
    @rule(at=st.integers(0, 9))
    def come_late(self, at: int) -> None:
        down, parcel = self.attic[at % len(self.attic)]
        (self.exchange.down if down else self.exchange.up).append(parcel)

    @rule(down=st.booleans())
    def reorder(self, down: bool) -> None:
        (self.exchange.down if down else self.exchange.up).rotate(1)

    @rule(seconds=st.floats(0, 9))
    def wait(self, seconds: float) -> None:
        self.exchange.expire(self.exchange.now + seconds)

    @precondition(lambda self: self.opened)
    @rule()
    def engine_is_through(self) -> None:
        self.closed = True
        self.exchange.sender.close(self.errand.transfer)

    @rule()
    def cut(self) -> None:
        self.exchange.cut()

    @rule()
    def abandon(self) -> None:
        self.exchange.receiver.abandon(self.errand.transfer, self.exchange.now)

    @invariant()
    def every_end_is_told_once(self) -> None:
        if hasattr(self, "exchange"):
            self.exchange.collect()
            assert len(self.exchange.settled) <= 1
            assert all(len(ends) == 1 for ends in self.exchange.ends.values())

    def teardown(self) -> None:
        if not hasattr(self, "exchange"):
            return
        for later in (1000.0, 2000.0):  # what was still on the way then is over by now
            self.exchange.expire(later)
            self.exchange.run_dry()
        assert len(self.exchange.settled) == int(self.opened)
        assert len(self.exchange.ends[self.errand.transfer]) == 1
        assert self.exchange.sender.live() == self.exchange.receiver.live() == 0
        self.exchange.check_pages()


TestTransfer = TransferMachine.TestCase
TestTransfer.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
