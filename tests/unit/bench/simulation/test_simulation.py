"""The simulated fleet: its engines keep vLLM's books, its figures mean what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from bench.load.errors import BadLoad
from bench.load.traces import Traced
from bench.simulation.engine import Engine
from bench.simulation.outcome import Outcome, oracle
from bench.simulation.policies import ConsistentHash, GreedyPrefix, LeastWork, RoundRobin, Seen
from bench.simulation.prompts import Prompt, prompts
from bench.simulation.replaying import OURS, RULES, Faults, replay
from bench.simulation.steered import Steered
from bench.simulation.world import Settings, World
from kvstore.curves import PrefillCurve
from kvstore.engagements import Engagements

CURVE = PrefillCurve(0.01, 0.001, 0.0)
TOKEN = 512


def conversations(count: int, turns: int, gap: float = 30.0) -> list[Traced]:
    """Each turn goes on where the last one ended; all share one system prompt."""
    trace = [
        Traced(
            at=turn * gap + talk * gap / count,
            prompt_tokens=(3 + turn * 2) * TOKEN + 100,
            output_tokens=10,
            blocks=(0, *(1 + talk * 1000 + block for block in range(3 + turn * 2))),
        )
        for talk in range(count)
        for turn in range(turns)
    ]
    return sorted(trace, key=lambda one: one.at)


CALM = Settings(workers=3, blocks=1000, curve=CURVE)


def alone(blocks: Sequence[int], tokens: int | None = None) -> Prompt:
    names = tuple(bytes([block]) * 16 for block in blocks)
    return Prompt(0, 0.0, "t", tokens or len(blocks) * TOKEN, names)


def engine_of(blocks: int, step_tokens: int) -> Engine:
    return Engine(blocks, step_tokens, lambda: 1.0)


def steps(engine: Engine) -> int:
    """Until nothing is left to do."""
    count = 0
    while True:
        chunks, _ = engine.begin()
        if not chunks:
            return count
        engine.end()
        count += 1


def test_an_engine_computes_what_it_does_not_hold_in_steps() -> None:
    engine = engine_of(100, 1000)
    engine.take(alone([1, 2, 3, 4]))
    chunks, evicted = engine.begin()
    assert [(chunk.tokens, chunk.first) for chunk in chunks] == [(1000, True)]
    assert not evicted
    through, new = engine.end()
    assert (through, len(new)) == ([], 1)  # a block counts when all of it has been computed
    assert steps(engine) == 2
    engine.take(alone([1, 2, 3, 9]))
    chunks, _ = engine.begin()
    assert chunks[0].progress.held == 3 * TOKEN
    assert chunks[0].tokens == TOKEN


def test_of_a_prompt_that_is_held_the_last_token_is_computed() -> None:
    engine = engine_of(100, 8192)
    tokens = []
    for _ in range(2):
        engine.take(alone([1, 2]))
        chunks, _ = engine.begin()
        tokens.append(chunks[0].tokens)
        engine.end()
    assert tokens == [2 * TOKEN, 1]


def test_small_prompts_share_a_step() -> None:
    engine = engine_of(100, 1100)
    for block in (1, 2, 3):
        engine.take(alone([block]))
    chunks, _ = engine.begin()
    assert [chunk.tokens for chunk in chunks] == [512, 512, 76]
    through, _ = engine.end()
    assert len(through) == 2


def test_room_is_made_by_the_ends_of_what_was_used_longest_ago() -> None:
    engine = engine_of(6, 8192)
    for blocks in ([1, 2, 3], [4, 5, 6], [1, 2]):
        engine.take(alone(blocks))
        engine.begin()
        engine.end()
    engine.take(alone([7, 8]))
    _, evicted = engine.begin()
    assert [name[0] for name in evicted] == [3, 6]


def test_a_crash_gives_back_every_prompt() -> None:
    engine = engine_of(100, 512)
    for block in (1, 2, 3):
        engine.take(alone([block, block + 10]))
    engine.begin()
    assert len(engine.crash()) == 3
    assert engine.idle
    assert len(engine.cache) == 0


def test_nothing_in_a_trace_without_blocks_can_be_found() -> None:
    with pytest.raises(BadLoad, match="names no blocks"):
        prompts([Traced(0.0, 10, 10)], 1)


def test_tenants_share_no_names() -> None:
    one, many = prompts(conversations(20, 2), 1), prompts(conversations(20, 2), 5)
    assert len({prompt.names[0] for prompt in one}) == 1
    owners = {prompt.names[0]: prompt.tenant for prompt in many}
    assert len(owners) == len(set(owners.values())) > 1


def test_an_infinite_cache_finds_all_that_came_before() -> None:
    asked = prompts(conversations(4, 3), 1)
    found = oracle(asked, CURVE)
    total = sum(prompt.tokens for prompt in asked)
    # The first turn finds the system prompt, unless it is the very first; a later one the turn
    # before, whose blocks were 1 + 2 * turn and the one that all share.
    blocks = 3 * 1 + 4 * 3 + 4 * 5
    assert found.hit_ratio == pytest.approx(blocks * TOKEN / total)


@pytest.mark.parametrize("policy", [OURS, *RULES])
def test_every_request_is_served_once_and_none_before_it_can_be(policy: str) -> None:
    asked = prompts(conversations(12, 4), 2)
    outcome = replay(policy, asked, CALM)
    assert sorted(one.prompt.number for one in outcome.served) == [one.number for one in asked]
    assert outcome.cross_tenant_hits == 0
    assert 0 <= outcome.hit_ratio <= oracle(asked, CURVE).hit_ratio
    assert all(one.ttft >= one.seconds for one in outcome.served)


def test_conversations_stay_where_their_blocks_are() -> None:
    asked = prompts(conversations(12, 12, gap=8.0), 1)
    ours = replay(OURS, asked, CALM)
    assert ours.hit_ratio > 0.95 * oracle(asked, CURVE).hit_ratio
    assert replay("round-robin", asked, CALM).hit_ratio < ours.hit_ratio
    assert ours.imbalance < 2


def test_one_that_is_alone_waits_for_nothing_but_the_way() -> None:
    asked = prompts(conversations(1, 3), 1)
    ours = replay(OURS, asked, CALM)
    assert all(one.ttft == pytest.approx(one.seconds + 0.002) for one in ours.served)


def test_a_cache_that_forgot_its_tenants_is_told() -> None:
    """The names are what keeps tenants apart; without them the count is not 0."""
    asked = [
        replace(prompt, names=tuple(name[:8] + bytes(8) for name in alike.names))
        for prompt, alike in zip(
            prompts(conversations(12, 3), 4), prompts(conversations(12, 3), 1), strict=True
        )
    ]
    assert replay(OURS, asked, CALM).cross_tenant_hits > 0


def test_lost_messages_cost_little_and_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts(conversations(12, 6), 1)
    whole = replay(OURS, asked, CALM)
    world = World(replace(CALM, seed=1), asked)
    steering = Steered(world, lost=0.2)
    subscribed: list[float] = []
    subscribe = Steered._subscribe

    def noted(self: Steered, proxy: Any, worker: int) -> None:
        subscribed.append(world.now)
        subscribe(self, proxy, worker)

    monkeypatch.setattr(Steered, "_subscribe", noted)
    outcome = Outcome(world.run(steering), 3)
    assert outcome.hit_ratio > 0.8 * whole.hit_ratio
    between_rounds = [at for at in subscribed if at % 1.0 > 1e-6]
    assert between_rounds, "no gap was ever noticed when it came"


def test_proxies_that_tell_each_other_do_nearly_as_well_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = prompts(conversations(24, 6, gap=15.0), 1)
    one, three = replay(OURS, asked, CALM), replay(OURS, asked, CALM, Faults(proxies=3))
    monkeypatch.setattr(Engagements, "apply", lambda *_: None)
    silent = replay(OURS, asked, CALM, Faults(proxies=3))
    assert len(three.served) == len(asked)
    assert three.ttft(90) < 1.25 * one.ttft(90)
    assert three.ttft(90) < 0.9 * silent.ttft(90)


def test_restarts_lose_no_request_and_nothing_is_computed_while_away() -> None:
    asked = prompts(conversations(12, 6, gap=20.0), 1)
    world = World(replace(CALM, restart_every=15.0, restart_seconds=5.0), asked)
    outcome = Outcome(world.run(Steered(world)), 3)
    assert sorted(one.prompt.number for one in outcome.served) == [one.number for one in asked]
    assert world.restarts > 3
    for number in range(world.restarts):
        gone = 15.0 * (number + 1)
        ends = [
            world.arrived_at(one.prompt) + one.ttft
            for one in outcome.served
            if one.worker == number % 3
        ]
        assert not [at for at in ends if gone + 0.01 < at < gone + 5.0]


def test_rules_choose_as_they_say() -> None:
    seen = [Seen(5.0, 1000), Seen(0.0, 0), Seen(1.0, 500)]
    asked = alone([1, 2, 3, 4])
    turns = RoundRobin()
    assert [turns.choose(asked, seen) for _ in range(4)] == [0, 1, 2, 0]
    assert GreedyPrefix(10.0).choose(asked, seen) == 0
    assert GreedyPrefix(2.0).choose(asked, seen) == 2
    assert LeastWork(CURVE).choose(asked, seen) == 1
    assert LeastWork(PrefillCurve(0.01, 0.01, 0.0)).choose(asked, seen) == 0
    assert len({ConsistentHash(3).choose(alone([0, at]), seen) for at in range(50)}) == 3
    assert len({ConsistentHash(3).choose(alone([0, 1, at]), seen) for at in range(50)}) == 1
