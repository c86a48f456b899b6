"""Plans and pairs, as pure functions of what is known."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from kvstore.curves import PrefillCurve
from kvstore.messages import Announce, Role
from proxy import hints
from proxy.pace import STEP_TOKENS
from proxy.prompts import Expected, Layout
from proxy.steering import (
    LOAD_SLACK,
    DecodeOnly,
    Disaggregated,
    Fleet,
    Reject,
    Staff,
    alone_sooner,
    best,
    pair,
    plan,
)
from proxy.workload import Given
from tests.support.announcing import announce

BLOCKS = 6
CURVE = PrefillCurve(0.0, 0.001, 0.0)


def worker(name: str, role: Role, **fields: Any) -> Announce:
    return msgspec.structs.replace(announce(name), role=role, block_size=16, **fields)


P0, P1 = worker("p0", "prefill"), worker("p1", "prefill")
D0, D1 = worker("d0", "decode"), worker("d1", "decode")
LAYOUT = Layout.of(P0)
GIVEN = Given(0, P0, 32, 0.1)


def fleet(
    prefill: list[Announce] | None = None,
    decode: list[Announce] | None = None,
    load: dict[str, int] | None = None,
    held: dict[str, int] | None = None,
    hint: int | None = None,
) -> Fleet:
    staff = Staff.of(
        [P0, P1] if prefill is None else prefill, [D0, D1] if decode is None else decode
    )
    names = [one.worker for one in staff.decode]
    return Fleet(staff, by_name(names, load or {}), by_name(names, held or {}), hint)


def by_name(names: list[str], known: dict[str, int]) -> npt.NDArray[np.int64]:
    return np.array([known.get(name, 0) for name in names], dtype=np.int64)


def test_prefill_has_it_by_default() -> None:
    assert plan(BLOCKS, None, fleet()) == LAYOUT


def test_rejects_without_ready_decode() -> None:
    draining = msgspec.structs.replace(D0, state="draining")
    assert plan(BLOCKS, None, fleet(decode=[])) == Reject("no-decode-worker")
    assert plan(BLOCKS, "n", fleet(decode=[draining])) == Reject("no-decode-worker")


def test_alone() -> None:
    assert plan(0, "echo", fleet()) == DecodeOnly(D0, "echo")


def test_short() -> None:
    assert plan(0, None, fleet()) == DecodeOnly(D0, "short")
    assert plan(1, None, fleet()) == LAYOUT


def test_decode_holds_all_but_the_last_block() -> None:
    for gpu, alone in ((6, True), (5, True), (4, False)):
        decided = plan(BLOCKS, None, fleet(held={"d1": gpu}))
        assert decided == (DecodeOnly(D1, "decode-holds") if alone else LAYOUT)
    one = 1
    assert plan(one, None, fleet()) == LAYOUT
    assert isinstance(plan(one, None, fleet(held={"d0": 1})), DecodeOnly)


def test_no_prefill() -> None:
    starting = msgspec.structs.replace(P0, state="starting")
    assert plan(BLOCKS, None, fleet(prefill=[])) == DecodeOnly(D0, "no-prefill-worker")
    assert plan(BLOCKS, None, fleet(prefill=[starting])) == DecodeOnly(D0, "no-prefill-worker")


def test_layouts_must_match() -> None:
    other = msgspec.structs.replace(P0, fingerprint="z")
    assert plan(BLOCKS, None, fleet(prefill=[other])) == DecodeOnly(D0, "layout-mismatch")
    assert plan(BLOCKS, None, fleet(prefill=[other, P1])) == LAYOUT
    changed = msgspec.structs.replace(D0, fingerprint="z")
    assert pair(GIVEN, LAYOUT, fleet(decode=[changed, D1])) == Disaggregated(GIVEN, D1)
    assert pair(GIVEN, LAYOUT, fleet(decode=[changed])) == DecodeOnly(changed, "layout-mismatch")


def test_what_prefill_was_given_is_decoded_where_most_of_it_is() -> None:
    assert pair(GIVEN, LAYOUT, fleet(held={"d1": 2})) == Disaggregated(GIVEN, D1)
    assert pair(GIVEN, LAYOUT, fleet(load={"d0": 1})) == Disaggregated(GIVEN, D1)


def test_prefill_has_gone_meanwhile_or_decode() -> None:
    assert pair(None, LAYOUT, fleet()) == DecodeOnly(D0, "no-prefill-worker")
    assert pair(GIVEN, LAYOUT, fleet(decode=[])) == Reject("no-decode-worker")


TURN = 1000
"""Tokens of a conversation: decode wrote what lies between 320 and 960."""
WROTE = {"d1": 60}


def sooner(load: int = 0, **fields: Any) -> DecodeOnly | None:
    expected = Expected(**{"seconds": 0.68, "held": 320, "curve": CURVE, **fields})
    return alone_sooner(TURN, LAYOUT, expected, fleet(held=WROTE, load={"d1": load}))


def test_who_wrote_the_answer_computes_the_next_question() -> None:
    assert sooner() == DecodeOnly(D1, "decode-holds")


def test_but_not_at_the_cost_of_many_that_it_decodes() -> None:
    assert sooner(load=LOAD_SLACK) is not None
    assert sooner(load=LOAD_SLACK, seconds=0.3) is None


def test_what_comes_after_prefill_speaks_for_decode() -> None:
    assert sooner(seconds=0.05) is None
    assert sooner(seconds=0.05, after=0.1) is not None


def test_nor_where_prefill_holds_as_much() -> None:
    assert sooner(held=960) is None


def test_nor_for_longer_than_a_step() -> None:
    for more, alone in ((0, True), (1, False)):
        longer = 960 + STEP_TOKENS + more
        found = alone_sooner(longer, LAYOUT, Expected(9.0, 0, CURVE), fleet(held=WROTE))
        assert (found is not None) == alone


NAMES = ["w0", "w1", "w2", "w3"]
STATES = st.sampled_from(["starting", "ready", "draining"])


@given(
    st.dictionaries(st.sampled_from(NAMES), STATES),
    st.dictionaries(st.sampled_from(NAMES), st.integers(0, 30)),
    st.dictionaries(st.sampled_from(NAMES), st.integers(0, 9)),
    st.none() | st.sampled_from(NAMES),
)
def test_best(
    states: dict[str, str], load: dict[str, int], held: dict[str, int], but: str | None
) -> None:
    workers = [worker(name, "decode", state=state) for name, state in states.items()]
    crew = fleet([], workers, load, held)
    chosen = best(crew, but=but)
    ready = [name for name, state in states.items() if state == "ready" and name != but]
    assert (chosen is None) == (not ready)
    if chosen is None:
        return
    name = crew.staff.decode[chosen].worker
    assert name in ready
    least = min(load.get(one, 0) for one in ready)
    assert load.get(name, 0) <= least + LOAD_SLACK
    for one in ready:
        if load.get(one, 0) <= least + LOAD_SLACK:
            rank = (held.get(one, 0), -load.get(one, 0))
            assert (held.get(name, 0), -load.get(name, 0)) >= rank


def test_a_hint_decides_between_decode_workers_that_are_equal() -> None:
    numbers = hints.numbers(["d0", "d1"])
    for at in (0, 1):
        hint = next(h for h in range(100) if hints.meant(h, numbers) == at)
        other = f"d{1 - at}"
        assert best(fleet(hint=hint)) == at
        assert best(fleet(hint=hint, held={other: 1})) == 1 - at
        assert best(fleet(hint=hint, load={f"d{at}": 1})) == 1 - at
        assert best(fleet(hint=hint), but=f"d{at}") == 1 - at
