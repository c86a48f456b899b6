"""What is owed to workers until they confirm it, and what they tell of tenants."""

from __future__ import annotations

from kvstore import tenant_feed
from kvstore.messages import Holding, Standing, Tenancy, Usage, Wiped
from kvstore.tenant_feed import TenantFeed

TAG, OTHER = "a" * 16, "b" * 16


def met(feed: TenantFeed, *workers: str, generation: str = "g") -> TenantFeed:
    for worker in workers:
        feed.met(worker, generation)
    return feed


def test_what_holds_is_owed_until_it_is_confirmed() -> None:
    feed = met(TenantFeed(), "p", "d")
    standing = Standing(TAG, 2)
    feed.say([standing])
    assert feed.owed("p") == feed.owed("d") == [Tenancy("", (standing,))]
    feed.hear(Tenancy("p", (Standing(TAG, 1),)))
    assert feed.owed("p")
    feed.hear(Tenancy("p", (standing,)))
    assert (feed.owed("p"), feed.confirmed(TAG, 2)) == ([], {"p"})
    assert feed.owed("d")


def test_who_comes_later_or_anew_is_owed_everything() -> None:
    feed = TenantFeed()
    feed.say([Standing(TAG, 2), Standing(OTHER, 0, 0.5, 0.75)])
    met(feed, "p")
    (owed,) = feed.owed("p")
    feed.hear(Tenancy("p", owed.standings))
    met(feed, "p")
    assert feed.owed("p") == []
    met(feed, "p", generation="another")
    assert feed.owed("p") == [owed]
    assert feed.confirmed(TAG, 2) == set()


def test_what_holds_for_anybody_is_not_told() -> None:
    feed = met(TenantFeed(), "p")
    feed.say([Standing(TAG, 0)])
    assert feed.owed("p") == []


def test_a_later_epoch_elsewhere_counts_here_and_is_passed_on() -> None:
    raised: list[tuple[str, int]] = []
    feed = met(TenantFeed(lambda tag, epoch: raised.append((tag, epoch))), "p", "d")
    feed.say([Standing(TAG, 1, 0.25, 0.5)])
    feed.hear(Tenancy("p", (Standing(TAG, 7),)))
    assert raised == [(TAG, 7)]
    assert feed.owed("d") == [Tenancy("", (Standing(TAG, 7, 0.25, 0.5),))]
    feed.hear(Tenancy("d", (Standing(TAG, 3),)))
    assert raised == [(TAG, 7)]


def usage(part: int, parts: int, *holdings: Holding) -> Usage:
    return Usage("p", "gpu", 1000, part, parts, holdings)


def test_usage_counts_once_all_its_parts_are_here() -> None:
    feed = met(TenantFeed(), "p")
    feed.hear(usage(0, 2, Holding(TAG, 5)))
    assert feed.memory == {}
    feed.hear(usage(1, 2, Holding(OTHER, 6, 1)))
    known = feed.memory["p", "gpu"]
    assert (known.capacity, known.holdings[TAG].kept, known.holdings[OTHER].used) == (1000, 5, 1)
    feed.hear(usage(0, 3, Holding(TAG, 9)))
    feed.hear(usage(2, 3))
    assert feed.memory["p", "gpu"] is known
    feed.hear(usage(0, 1))
    assert feed.memory["p", "gpu"].holdings == {}
    feed.forget(["p"])
    assert feed.memory == {}


def test_the_latest_overwriting_counts_and_reports_are_bounded() -> None:
    feed = met(TenantFeed(), "p")
    feed.hear(Wiped("p", "dram", TAG, 1, 10, 0.1))
    assert feed.wiped(TAG, 2) == []
    late = Wiped("p", "dram", TAG, 2, 20, 0.2)
    feed.hear(late)
    assert (feed.wiped(TAG, 2), feed.wiped(TAG, 1), feed.wiped(OTHER, 0)) == ([late], [late], [])
    for number in range(tenant_feed.MAX_WIPED):
        feed.hear(Wiped("p", "gpu", f"{number:016x}", 1, 1, 0.1))
    assert feed.wiped(TAG, 2) == []


def test_a_worker_nobody_has_met_holds_nothing() -> None:
    feed = TenantFeed()
    feed.hear(usage(0, 1, Holding(TAG, 5)))
    assert (feed.memory, feed.owed("p")) == ({}, [])


def test_what_two_tiers_tell_at_once_does_not_run_together() -> None:
    feed = met(TenantFeed(), "p")
    feed.hear(usage(0, 2, Holding(TAG, 5)))
    feed.hear(Usage("p", "dram", 77, 0, 2, (Holding(TAG, 60),)))
    feed.hear(usage(1, 2, Holding(OTHER, 6)))
    feed.hear(Usage("p", "dram", 77, 1, 2, (Holding(OTHER, 70),)))
    gpu, dram = feed.memory["p", "gpu"], feed.memory["p", "dram"]
    assert (gpu.capacity, gpu.holdings[TAG].kept, gpu.holdings[OTHER].kept) == (1000, 5, 6)
    assert (dram.capacity, dram.holdings[TAG].kept, dram.holdings[OTHER].kept) == (77, 60, 70)
