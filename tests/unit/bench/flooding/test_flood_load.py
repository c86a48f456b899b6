"""Which requests the flood benchmark makes, and that its arms differ in one thing."""

from __future__ import annotations

from typing import get_args

import pytest

from bench.flooding.load import (
    ARMS,
    NOISY,
    QUIET,
    Sizes,
    Wanted,
    filling,
    settling,
    sizes,
    slice_of,
)
from bench.flooding.measuring import TOGETHER, shape
from bench.flooding.model import TOKEN_BYTES
from bench.flooding.settings import FLOOD, FLOOR, INSIDE, LIMIT, Amounts, Within
from kvstore.cluster import parse

AMOUNTS = Amounts(seconds=50.0, lead=5.0)
MANY = Sizes(quiet=10, inside=10, flood=300, everything=80)
RATE = 4.0


def of(tenant: str, arm: str, number: int = 0) -> list[Wanted]:
    (found,) = (one for one in ARMS if one == arm)
    made = slice_of(AMOUNTS, MANY, found, number, RATE)
    return [one for one in made if one.tenant == tenant]


def documents(wanted: list[Wanted]) -> set[str]:
    return {one.prompt[0].key for one in wanted}


@pytest.mark.parametrize("within", get_args(Within))
def test_a_working_set_fits_its_tiers_quota_and_the_flood_none(within: Within) -> None:
    amounts = Amounts(within=within)
    document = amounts.document * TOKEN_BYTES
    many = sizes(amounts, TOKEN_BYTES)
    engine, dram = (gib * (1 << 30) for gib in (amounts.kv_gib, amounts.dram_gib))
    quota = FLOOR * (engine if within == "gpu" else dram)
    assert many.quiet == many.inside
    assert INSIDE * quota - document < many.quiet * document <= INSIDE * quota
    assert many.flood * document >= FLOOD * FLOOR * max(engine, dram)
    assert many.everything * document >= max(engine, dram)
    if within == "dram":
        assert many.quiet * document > LIMIT * engine


def test_what_fills_caches_is_as_much_as_they_hold() -> None:
    assert len(documents(filling(AMOUNTS, MANY))) == MANY.everything


def test_the_quiet_tenant_asks_for_the_same_at_the_same_times_in_both_arms() -> None:
    inside, flood = of(QUIET, "inside"), of(QUIET, "flood")
    assert [(one.at, one.prompt[0]) for one in inside] == [(one.at, one.prompt[0]) for one in flood]
    assert documents(inside) <= {f"document-quiet-{number}" for number in range(10)}
    assert not {one.prompt[1] for one in inside} & {one.prompt[1] for one in flood}


def test_the_noisy_tenant_has_one_rate_in_both_arms_and_more_documents_in_one() -> None:
    inside, flood = of(NOISY, "inside"), of(NOISY, "flood")
    assert [one.at for one in inside] == [one.at for one in flood]
    assert len(documents(inside)) == 10
    assert len(documents(flood)) > 100
    assert len(inside) == pytest.approx(RATE * 55, rel=0.3)


def test_rounds_differ_and_are_the_same_again() -> None:
    assert of(QUIET, "inside", 1) == of(QUIET, "inside", 1) != of(QUIET, "inside", 2)


def test_what_comes_in_the_lead_does_not_count() -> None:
    made = slice_of(AMOUNTS, MANY, "flood", 0, RATE)
    assert [one.at for one in made] == sorted(one.at for one in made)
    assert -5 <= made[0].at < 0
    assert not made[0].counted
    assert made[-1].counted
    assert made[-1].at < 50


def test_before_a_slice_both_working_sets_are_asked_for_as_far_as_they_fit() -> None:
    for arm in ARMS:
        asked = settling(AMOUNTS, MANY, arm, 0)
        assert len(documents(asked)) == len(asked) == 20
        assert asked[-1].tenant == QUIET


def test_the_cluster_has_two_tenants_with_quotas_and_one_without() -> None:
    made = shape(AMOUNTS)
    assert made.tenants == (QUIET, NOISY, TOGETHER)
    assert made.shares.keys() == {QUIET, NOISY}
    config = parse(made.settings)
    assert config.prefill.kv_gib == config.decode.kv_gib == AMOUNTS.kv_gib
    assert config.dram.gib == AMOUNTS.dram_gib
