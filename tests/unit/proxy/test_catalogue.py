"""What a name stands for, also while an adapter is exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from kvstore.messages import Announce, ServedAdapter
from kvstore.salts import Scope, salt
from proxy.catalogue import Served, catalogue
from tests.support.announcing import announce

OLD, NEW = (ServedAdapter("poet", revision * 16, "/poet") for revision in "ab")
CLERK = ServedAdapter("clerk", "a" * 16, "/clerk")


def decode(name: str, *adapters: ServedAdapter, **fields: Any) -> Announce:
    return msgspec.structs.replace(announce(name), role="decode", adapters=adapters, **fields)


def prefill(name: str, *adapters: ServedAdapter) -> Announce:
    return msgspec.structs.replace(announce(name), adapters=adapters)


def test_base_and_adapters_by_name_and_by_revision() -> None:
    found = catalogue([prefill("p", OLD)], [decode("d", OLD, CLERK)])
    assert next(iter(found)) == "m"
    assert {name: served.model for name, served in found.items()} == {
        "m": "m",
        "poet": OLD.model,
        OLD.model: OLD.model,
        "clerk": CLERK.model,
        CLERK.model: CLERK.model,
    }
    assert {served.name for served in found.values()} == {"m", "poet", "clerk"}


def test_while_it_is_exchanged_a_name_is_what_most_ready_decode_workers_serve() -> None:
    known = [prefill("p0", NEW), prefill("p1", NEW)]
    mixed = [decode("d0", OLD), decode("d1", OLD), decode("d2", NEW)]
    found = catalogue(known, mixed)
    assert (found["poet"].adapter, found[NEW.model].adapter) == (OLD, NEW)
    starting = [decode("d0", OLD, state="starting"), decode("d1", OLD), mixed[2]]
    assert catalogue(known, starting)["poet"].adapter == OLD  # as many of each
    draining = [decode("d0", OLD, state="draining"), decode("d1", NEW)]
    assert catalogue(known, draining)["poet"].adapter == NEW
    assert catalogue(known, [])["poet"].adapter == NEW


def test_a_base_keeps_its_name() -> None:
    namesake = ServedAdapter("m", "a" * 16, "/x")
    found = catalogue([], [decode("d", namesake)])
    assert (found["m"], found[namesake.model].adapter) == (Served("m"), namesake)


def test_only_who_has_the_very_weights_serves_it() -> None:
    served = Served("m", OLD)
    assert served.by(decode("d", CLERK, OLD))
    assert not served.by(decode("d", NEW))
    assert not served.by(decode("d"))
    assert not served.by(decode("d", OLD, model="other"))
    assert Served("m").by(decode("d"))


def test_each_adapter_and_each_revision_has_a_salt_of_its_own() -> None:
    scope = Scope("alice", 3)
    served = [Served("m", one) for one in (None, OLD, NEW, CLERK)]
    assert len({salt(b"k" * 32, one.within(scope)) for one in served}) == 4
    assert Served("m").within(scope) == scope
    assert [one.lora for one in served[:2]] == [None, (OLD.model, OLD.path)]


WORKERS = st.lists(
    st.builds(
        decode,
        st.sampled_from("abcd"),
        st.sampled_from([OLD, NEW, CLERK]),
        state=st.sampled_from(["ready", "starting"]),
        model=st.sampled_from("mn"),
    ),
    max_size=5,
)


@given(WORKERS, WORKERS)
def test_a_name_stands_for_one_thing_that_somebody_serves(
    left: Sequence[Announce], right: Sequence[Announce]
) -> None:
    found = catalogue(left, right)
    for name, served in found.items():
        assert name in {served.name, served.model}
        assert any(served.by(worker) for worker in (*left, *right))
    assert {worker.model for worker in (*left, *right)} <= set(found)
    # The order in which workers are known decides nothing.
    assert found == catalogue(left[::-1], right[::-1])
