"""Requests follow from the seed, are of every kind, and begin as others of their tenant do."""

from __future__ import annotations

from collections import Counter

from bench.prediction.load import LONGEST, SHORTEST, Wanted, mixed

MANY = 500


def wanted(seed: int = 0, requests: int = MANY, rate: float = 2.0) -> list[Wanted]:
    return list(mixed(requests, 3, rate, seed))


def test_the_same_seed_asks_the_same() -> None:
    assert wanted(1) == wanted(1) != wanted(2)


def test_arrivals_have_the_rate_asked_for() -> None:
    last = wanted()[-1].at
    assert 0.8 < MANY / last / 2.0 < 1.25


def test_every_kind_every_tenant_and_a_wide_range_of_lengths() -> None:
    asked = wanted()
    assert min(Counter(one.kind for one in asked).values()) > MANY / 20
    assert {one.tenant for one in asked} == {0, 1, 2}
    novel = [one.words.tokens for one in asked if one.kind == "novel"]
    assert SHORTEST <= min(novel) < 100
    assert 1500 < max(novel) <= LONGEST


def test_a_chats_turns_come_in_order_and_keep_its_beginning() -> None:
    talks: dict[int, list[Wanted]] = {}
    for one in wanted():
        if one.kind == "chat":
            talks.setdefault(one.conversation, []).append(one)
    assert max(len(talk) for talk in talks.values()) > 3
    for talk in talks.values():
        assert [one.turn for one in talk] == list(range(len(talk)))
        assert len({(one.tenant, one.system) for one in talk}) == 1


def test_what_is_asked_again_was_asked_by_that_tenant() -> None:
    asked = wanted()
    for one in asked:
        if one.kind == "again":
            old = asked[one.again]
            assert (old.tenant, old.words, old.system) == (one.tenant, one.words, one.system)
            assert old.number < one.number
