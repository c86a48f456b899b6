"""Caches with and without tenants in them, on the installed vLLM and LMCache, with one tenant."""

from __future__ import annotations

import pytest

from bench.isolation.caches import Tier, hit_ratio
from bench.isolation.dram import DRAM
from bench.isolation.engine import ENGINE
from bench.isolation.sessions import sessions
from bench.simulation.prompts import prompts

ASKED = prompts(sessions(150, seed=1), tenants=1)


def test_one_tenant_finds_in_an_engine_what_it_finds_without_tenants() -> None:
    found = ENGINE.hits(ASKED, blocks=300)
    assert 0 < found.ours == found.theirs
    assert found.ours == pytest.approx(found.ideal, rel=0.05)


def test_one_tenant_finds_no_less_in_dram_than_in_lmcaches_own_lru() -> None:
    found = DRAM.hits(ASKED, blocks=300)
    assert found.ours >= 0.99 * found.theirs > 0
    assert found.ours < found.ideal  # of which nothing is kept free


@pytest.mark.parametrize("tier", [ENGINE, DRAM], ids=lambda tier: tier.name)
def test_with_room_for_everything_all_is_found(tier: Tier) -> None:
    ratios = {hit_ratio(made(4000), ASKED) for made in (tier.ours, tier.theirs)}
    assert len(ratios) == 1
    assert tier.hits(ASKED[:20], 4000).ours == tier.hits(ASKED[:20], 4000).ideal
