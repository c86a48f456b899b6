"""Where two ranks leave what the other needs to connect."""

from __future__ import annotations

import datetime
import threading

import pytest

from kvstore.errors import CommunicatorLost
from kvstore.transport.communicator import (
    LONGEST_ENTRY,
    MOST_ENTRIES,
    ControlStore,
    GlooCommunicator,
)


def nobody(_key: str, _value: bytes) -> None:
    """Entries that reach no one."""


def test_what_is_set_is_there_and_posted() -> None:
    posted: list[tuple[str, bytes]] = []
    store = ControlStore(lambda key, value: posted.append((key, value)), 1.0)
    store.set("0/1", b"here")
    assert store.get("0/1") == b"here"
    assert posted == [("0/1", b"here")]


def test_what_comes_from_the_other_end_ends_the_wait() -> None:
    store = ControlStore(nobody, 60.0)
    late = [
        threading.Thread(target=store.enter, args=entry) for entry in (("a", b"1"), ("b", b"2"))
    ]
    for thread in late:
        thread.start()
    store.wait(["a", "b"], datetime.timedelta(seconds=60))
    assert (store.get("a"), store.get("b")) == (b"1", b"2")
    for thread in late:
        thread.join()


def test_what_does_not_come_is_waited_for_no_longer_than_the_build_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    store = ControlStore(nobody, 20.0)
    monkeypatch.setattr(store._changed, "wait_for", lambda _done, seconds: waits.append(seconds))
    store.enter("a", b"1")
    with pytest.raises(CommunicatorLost):
        store.get("b")
    with pytest.raises(CommunicatorLost):
        store.wait(["a", "b"], datetime.timedelta(hours=1))
    with pytest.raises(CommunicatorLost):
        store.wait(["b"], datetime.timedelta(seconds=3))
    assert waits == [20.0, 20.0, 3.0]


def test_closing_ends_every_wait() -> None:
    store = ControlStore(nobody, 60.0)
    store.close()
    with pytest.raises(CommunicatorLost):
        store.get("a")


def test_a_peer_cannot_fill_the_store() -> None:
    store = ControlStore(nobody, 0.001)
    store.enter("long", bytes(LONGEST_ENTRY + 1))
    for number in range(MOST_ENTRIES + 1):
        store.enter(str(number), b"")
    assert not store.check(["long"])
    assert store.check([str(number) for number in range(MOST_ENTRIES)])
    assert not store.check([str(MOST_ENTRIES)])


def test_a_communicator_whose_other_end_never_comes_is_lost() -> None:
    with pytest.raises(CommunicatorLost):
        GlooCommunicator(ControlStore(nobody, 0.05), 0, "127.0.0.1", 0.05)
