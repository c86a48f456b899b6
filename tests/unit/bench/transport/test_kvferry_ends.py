"""How our own transports are set when they are measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.transport import content
from bench.transport.case import Case
from bench.transport.contender import Kvferry
from bench.transport.ends import kvferry
from bench.transport.ends.end import Room, TransportFailed
from bench.transport.ends.kvferry import KvferryReceiver, ship_of


@pytest.mark.parametrize(
    ("digests", "curve", "set_to"),
    [
        (False, False, ("none", "authenticated")),
        (True, False, ("xxh3-128", "authenticated")),
        (False, True, ("none", "encrypted")),
        (True, True, ("xxh3-128", "encrypted")),
    ],
)
def test_what_is_switched_on_is_set(digests: bool, curve: bool, set_to: tuple[str, str]) -> None:
    ship = ship_of(Kvferry("zmq+tcp", digests=digests, curve=curve))
    assert (ship.digest, ship.bulk) == set_to


@pytest.mark.parametrize(
    ("told", "failure"), [(True, "deadline: "), (False, "2 transfers did not end")]
)
def test_what_never_comes_is_a_failure_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool, failure: str
) -> None:
    monkeypatch.setattr(kvferry, "MOVE_SECONDS", 0.05)
    tmp_path.chmod(0o700)
    receiver = KvferryReceiver(Room(content.awaiting(4), tmp_path), Kvferry("zmq+ipc"))
    try:
        receiver.meet(f"zmq+ipc://{tmp_path}/nobody")
        receiver.arm(Case(2, transfers=2))
        if not told:
            monkeypatch.setattr(receiver._fetcher, "take_ended", lambda wait: [])
        with pytest.raises(TransportFailed, match=f"128 KiB contiguous, 2 transfers: {failure}"):
            receiver.move(Case(2, transfers=2))
    finally:
        receiver.close()
