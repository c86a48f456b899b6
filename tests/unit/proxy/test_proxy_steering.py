"""Plans, as a pure function of what is known."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from kvstore.index import Held
from kvstore.messages import PROTOCOL_VERSION, Announce, Role
from proxy.steering import (
    LOAD_SLACK,
    DecodeOnly,
    Disaggregated,
    Fleet,
    Prompt,
    Reject,
    best,
    plan,
)

PROMPT = Prompt(tokens=100, block_size=16)  # six full blocks


def worker(name: str, role: Role, **fields: Any) -> Announce:
    announce = Announce(
        version=PROTOCOL_VERSION,
        worker=name,
        role=role,
        generation="g",
        state="ready",
        model="m",
        http="unix:/x",
        ship="zmq+ipc:///x",
        fingerprint="f",
        block_size=16,
        max_model_len=100,
        capacity_blocks=10,
        seq=0,
    )
    return msgspec.structs.replace(announce, **fields)


P0, P1 = worker("p0", "prefill"), worker("p1", "prefill")
D0, D1 = worker("d0", "decode"), worker("d1", "decode")


def fleet(
    prefill: list[Announce] | None = None,
    decode: list[Announce] | None = None,
    load: dict[str, int] | None = None,
    held: dict[str, Held] | None = None,
) -> Fleet:
    return Fleet(
        [P0, P1] if prefill is None else prefill,
        [D0, D1] if decode is None else decode,
        load or {},
        held or {},
    )


def test_disaggregates_by_default() -> None:
    assert plan(PROMPT, None, fleet()) == Disaggregated(P0, D0, 0)


def test_rejects_without_ready_decode() -> None:
    draining = msgspec.structs.replace(D0, state="draining")
    assert plan(PROMPT, None, fleet(decode=[])) == Reject("no-decode-worker")
    assert plan(PROMPT, "n", fleet(decode=[draining])) == Reject("no-decode-worker")


def test_alone() -> None:
    assert plan(Prompt(0, 0), "echo", fleet()) == DecodeOnly(D0, "echo")


def test_short() -> None:
    assert plan(Prompt(15, 16), None, fleet()) == DecodeOnly(D0, "short")
    assert plan(Prompt(16, 16), None, fleet()) == Disaggregated(P0, D0, 0)


def test_decode_holds_all_but_the_last_block() -> None:
    for gpu, alone in ((6, True), (5, True), (4, False)):
        decided = plan(PROMPT, None, fleet(held={"d1": Held(gpu, 0)}))
        expected = DecodeOnly(D1, "decode-holds") if alone else Disaggregated(P0, D1, 0)
        assert decided == expected
    assert isinstance(plan(PROMPT, None, fleet(held={"d0": Held(0, 6)})), Disaggregated)
    one = Prompt(20, 16)
    assert isinstance(plan(one, None, fleet()), Disaggregated)
    assert isinstance(plan(one, None, fleet(held={"d0": Held(1, 0)})), DecodeOnly)


def test_no_prefill() -> None:
    starting = msgspec.structs.replace(P0, state="starting")
    assert plan(PROMPT, None, fleet(prefill=[])) == DecodeOnly(D0, "no-prefill-worker")
    assert plan(PROMPT, None, fleet(prefill=[starting])) == DecodeOnly(D0, "no-prefill-worker")


def test_layouts_must_match() -> None:
    other = msgspec.structs.replace(P0, fingerprint="z")
    assert plan(PROMPT, None, fleet(prefill=[other])) == DecodeOnly(D0, "layout-mismatch")
    assert plan(PROMPT, None, fleet(prefill=[other, P1])) == Disaggregated(P1, D0, 0)


def test_longest_prefix_in_either_tier_then_least_loaded() -> None:
    held = {"p0": Held(2, 0), "p1": Held(0, 4)}
    assert plan(PROMPT, None, fleet(held=held)) == Disaggregated(P1, D0, 64)
    assert plan(PROMPT, None, fleet(load={"p0": 1, "d0": 1})) == Disaggregated(P1, D1, 0)


def test_a_prefix_is_not_worth_any_queue() -> None:
    held = {"p0": Held(6, 0)}
    assert plan(PROMPT, None, fleet(held=held, load={"p0": LOAD_SLACK})) == Disaggregated(
        P0, D0, 96
    )
    busy = fleet(held=held, load={"p0": LOAD_SLACK + 1})
    assert plan(PROMPT, None, busy) == Disaggregated(P1, D0, 0)


NAMES = ["w0", "w1", "w2", "w3"]
HELDS = st.builds(Held, st.integers(0, 9), st.integers(0, 9))
STATES = st.sampled_from(["starting", "ready", "draining"])


@given(
    st.dictionaries(st.sampled_from(NAMES), STATES),
    st.dictionaries(st.sampled_from(NAMES), st.integers(0, 30)),
    st.dictionaries(st.sampled_from(NAMES), HELDS),
)
def test_best(states: dict[str, str], load: dict[str, int], held: dict[str, Held]) -> None:
    workers = [worker(name, "prefill", state=state) for name, state in states.items()]
    chosen = best(workers, Fleet(workers, [], load, held), tiers=("gpu", "dram"))
    ready = [name for name, state in states.items() if state == "ready"]
    assert (chosen is None) == (not ready)
    if chosen is None:
        return
    assert chosen.worker in ready
    least = min(load.get(name, 0) for name in ready)
    assert load.get(chosen.worker, 0) <= least + LOAD_SLACK
    longest = max(held.get(chosen.worker, Held(0, 0)))
    for name in ready:
        if load.get(name, 0) <= least + LOAD_SLACK:
            rank = (max(held.get(name, Held(0, 0))), -load.get(name, 0))
            assert (longest, -load.get(chosen.worker, 0)) >= rank
