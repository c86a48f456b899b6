"""Every flush is told once to every relay."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from kvstore.messages import Standing, Wiped
from kvstore.tier_reports import AT_ONCE, WipeReports

TAGS = [f"{number:016x}" for number in range(3)]
PEERS = [b"one", b"two", b"three"]


def wiped(tag: str, epoch: int) -> Wiped:
    return Wiped("dram", "dram", tag, epoch, 0, 0.0)


class Reports(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.reports = WipeReports()
        self.here: set[bytes] = set()
        self.done: dict[str, int] = {}
        self.knows: dict[bytes, dict[str, int]] = {}

    @rule(here=st.sets(st.sampled_from(PEERS)))
    def come_and_go(self, here: set[bytes]) -> None:
        self.here = here
        self.reports.keep(here)
        self.knows = {peer: self.knows.get(peer, {}) for peer in here}

    @rule(tag=st.sampled_from(TAGS))
    def flush(self, tag: str) -> None:
        self.done[tag] = self.done.get(tag, 0) + 1
        self.reports.done(wiped(tag, self.done[tag]), self.here)

    @rule(lost=st.sets(st.integers(0, 8)))
    def tell(self, lost: set[int]) -> None:
        told: dict[bytes, dict[str, int]] = {}
        for number, (peer, report) in enumerate(self.reports.take()):
            if number in lost:
                self.reports.missed(peer, report)
                continue
            assert report.tag not in told.setdefault(peer, {})
            told[peer][report.tag] = report.epoch
        for peer in self.here:
            for tag, epoch in told.get(peer, {}).items():
                assert epoch == self.done[tag] > self.knows[peer].get(tag, 0)
            self.knows[peer] |= told.get(peer, {})

    @rule()
    def everybody_says_what_holds_and_knows_then_what_is_done(self) -> None:
        for peer in self.here:
            self.reports.asked(peer, [Standing(tag, epoch) for tag, epoch in self.done.items()])
        self.tell(set())
        assert all(known == self.done for known in self.knows.values())


TestReports = Reports.TestCase


def test_a_flush_that_is_not_done_is_not_reported() -> None:
    reports = WipeReports()
    reports.done(wiped(TAGS[0], 1), [])
    reports.asked(b"one", [Standing(TAGS[0], 2), Standing(TAGS[1], 1)])
    assert list(reports.take()) == []


def test_many_reports_are_told_a_few_at_a_time() -> None:
    reports = WipeReports()
    for number in range(3 * AT_ONCE):
        reports.done(wiped(f"{number:016x}", 1), [b"one"])
    told = [list(reports.take()) for _ in range(4)]
    assert [len(turn) for turn in told] == [AT_ONCE, AT_ONCE, AT_ONCE, 0]
    assert len({report.tag for turn in told for _, report in turn}) == 3 * AT_ONCE
