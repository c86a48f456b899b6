"""Where hints belong: evenly, each tenant's by itself, and hardly moved by who comes and goes."""

from __future__ import annotations

from collections import Counter

import numpy as np

from proxy import hints

WORKERS = [f"prefill-{at}" for at in range(8)]


def placed(workers: list[str], tenant: str = "t", count: int = 4000) -> list[str]:
    numbers = hints.numbers(workers)
    found = (hints.meant(hints.number(tenant, f"chat-{at}"), numbers) for at in range(count))
    return [workers[at] for at in found]


def test_hints_are_spread_evenly() -> None:
    counts = Counter(placed(WORKERS))
    assert len(counts) == 8
    assert all(400 < count < 600 for count in counts.values())


def test_who_comes_takes_its_share_and_moves_nothing_else() -> None:
    before, after = placed(WORKERS), placed([*WORKERS, "prefill-8"])
    moved = [now for then, now in zip(before, after, strict=True) if then != now]
    assert set(moved) == {"prefill-8"}
    assert 300 < len(moved) < 600


def test_the_order_of_workers_does_not_matter() -> None:
    assert placed(WORKERS) == placed(WORKERS[::-1])


def test_equal_hints_of_two_tenants_have_nothing_in_common() -> None:
    same = sum(a == b for a, b in zip(placed(WORKERS, "a"), placed(WORKERS, "b"), strict=True))
    assert 400 < same < 600
    assert hints.number("a", "b c") != hints.number("a b", "c")
    assert hints.number("a", "1 x") != hints.number("a 1", "x")


def test_only_those_among_whom_it_may_choose() -> None:
    numbers = hints.numbers(WORKERS)
    among = np.array([at in (2, 5) for at in range(8)])
    assert {hints.meant(hint, numbers, among) for hint in range(50)} == {2, 5}


def test_no_text_is_too_odd() -> None:
    assert hints.number("t", "\ud800") != hints.number("t", "\ud801")
