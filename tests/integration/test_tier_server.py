"""The DRAM tier's feed over a real socket, with a plain caller in the place of LMCache."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest
import zmq

from kvstore import tier_feed, tier_server
from kvstore.engine_events import Cleared, Event, Removed, Stored
from kvstore.errors import ConfigError, WireError
from kvstore.messages import Enrol, Filed, Holding, Standing, Tenancy, Usage, Wiped
from kvstore.tier_feed import COMPLAIN_SECONDS, TierFeed
from kvstore.tier_follower import SILENCE_SECONDS
from kvstore.tier_server import TierServer
from kvstore.transport.sockets import SocketOptions

NAMES = [bytes([number]) * 16 for number in range(6)]
SCOPE = "model/1"


def filed(*names: bytes, scope: str = SCOPE) -> Filed:
    return Filed(scope, 1, "session", 0, 0, 64, b"".join(names))


def store(server: TierServer, *names: bytes, scope: str = SCOPE) -> None:
    """One block in each object."""
    keys = [(scope, name) for name in names]
    server.reserved(keys)
    server.filed(filed(*names, scope=scope), [*keys])
    server.stored(keys)


class Memory:
    """Whose memory it is, as a test has it."""

    def __init__(self) -> None:
        self.standings: dict[str, Standing] = {}
        self.held: list[Usage] = []
        self.done: list[Wiped] = []
        self.too_many = False

    def stand(self, standings: Iterable[Standing]) -> None:
        if self.too_many:
            raise WireError("more tenants than may be remembered")
        self.standings.update({standing.tag: standing for standing in standings})

    def flushed(self) -> list[Standing]:
        return [standing for standing in self.standings.values() if standing.epoch]

    def usage(self) -> list[Usage]:
        return self.held

    def wiped(self) -> list[Wiped]:
        done, self.done = self.done, []
        return done


@pytest.fixture
def uri(tmp_path: Path) -> str:
    tmp_path.chmod(0o700)
    return f"zmq+ipc://{tmp_path}/dram.feed"


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def server(uri: str, memory: Memory) -> Iterator[TierServer]:
    server = TierServer(uri, memory)
    server.enrol(Enrol("w", SCOPE))
    yield server
    server.close()


class Follower:
    """A relay's end, and what it has heard."""

    def __init__(self, uri: str, worker: str = "w") -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.feed = TierFeed(self._context, uri, worker)
        self.known: set[bytes] = set()
        self.forgot = 0
        self.usage: list[Usage] = []
        self.wiped: list[Wiped] = []
        self.flushed: list[Standing] = []

    def hear(self) -> None:
        for event in self.feed.hear(time.monotonic()):
            self.take(event)
        for told in self.feed.told():
            match told:
                case Usage():
                    self.usage.append(told)
                case Wiped():
                    self.wiped.append(told)
                case Tenancy():
                    self.flushed += told.standings

    def tell(self, *standings: Standing) -> None:
        deadline = time.monotonic() + 10
        while not self.feed.tell(Tenancy("w", standings)):
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def take(self, event: Event) -> None:
        match event:
            case Cleared():
                self.known.clear()
                self.forgot += 1
            case Stored(names):
                self.known.update(names)
            case Removed(names):
                self.known.difference_update(names)

    def until(self, holds: Callable[[set[bytes]], bool], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds(self.known):
            assert time.monotonic() < deadline, self.known
            self.hear()
            time.sleep(0.005)

    def stays(self, seconds: float) -> None:
        """Knows all the time what it knows now."""
        before, until = set(self.known), time.monotonic() + seconds
        while time.monotonic() < until:
            self.hear()
            assert self.known == before
            time.sleep(0.005)

    def close(self) -> None:
        self.feed.close()
        self._context.term()


@pytest.fixture
def relay(uri: str) -> Iterator[Follower]:
    follower = Follower(uri)
    yield follower
    follower.close()


def test_a_relay_follows_its_worker_into_another_scope(server: TierServer, relay: Follower) -> None:
    server.enrol(Enrol("other", "model/2"))
    store(server, *NAMES[:2])
    store(server, NAMES[2], scope="model/2")
    relay.until(lambda known: known == set(NAMES[:2]))
    server.enrol(Enrol("w", "model/2"))
    relay.until(lambda known: known == {NAMES[2]})
    forgot = relay.forgot
    store(server, NAMES[3])
    store(server, NAMES[4], scope="model/2")
    relay.until(lambda known: known == {NAMES[2], NAMES[4]})
    relay.stays(SILENCE_SECONDS + 1.5)
    assert relay.forgot == forgot


def test_a_server_that_ends_and_begins_anew(uri: str, relay: Follower) -> None:
    for name in NAMES[:2]:
        server = TierServer(uri, Memory())
        server.enrol(Enrol("w", SCOPE))
        store(server, name)
        relay.until(partial(set.__eq__, {name}))
        server.close()
        assert not Path(uri.removeprefix("zmq+ipc://")).exists()
    relay.until(lambda known: not known)


def test_a_relay_that_reads_nothing_is_dropped_and_asks_anew(
    uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tier_server, "_TURN_MS", 1)
    monkeypatch.setattr(tier_server, "_OPTIONS", SocketOptions(4096, send_queue=4))
    monkeypatch.setattr(tier_feed, "_OPTIONS", SocketOptions(receive_queue=1, heartbeats=False))
    caplog.set_level(logging.INFO)
    server, relay = TierServer(uri, Memory()), Follower(uri)
    server.enrol(Enrol("w", SCOPE))
    many = b"".join(number.to_bytes(16, "big") for number in range(10_000))
    try:
        store(server, NAMES[0])
        relay.until(lambda known: known == {NAMES[0]})
        deadline = time.monotonic() + 20
        while not any(r.message.startswith("feed: relay dropped") for r in caplog.records):
            assert time.monotonic() < deadline, "it is still being told"
            server.reserved(["many"])
            server.filed(filed(many), ["many"])
            server.stored(["many"])
            time.sleep(0.005)
            server.gone(["many"])
            time.sleep(0.005)
        store(server, NAMES[1])
        relay.until(lambda known: known == {NAMES[0], NAMES[1]})
    finally:
        relay.close()
        server.close()


def test_what_does_not_fit_is_refused(server: TierServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.reserved(["a", "b"])
    for names in (b"", b"x" * 33):
        with pytest.raises(WireError, match="bytes of names for 2 objects"):
            server.filed(Filed(SCOPE, 1, "session", 0, 0, 64, names), ["a", "b"])
    with pytest.raises(WireError, match="nobody who has enrolled"):
        server.filed(filed(NAMES[0], scope="model/9"), ["a"])
    monkeypatch.setattr(tier_server, "MAX_SCOPES", 1)
    server.enrol(Enrol("another", SCOPE))
    with pytest.raises(WireError, match="too many"):
        server.enrol(Enrol("w", "model/2"))
    monkeypatch.setattr(tier_server, "MAX_WORKERS", 2)
    with pytest.raises(WireError, match="too many"):
        server.enrol(Enrol("a third", SCOPE))


def test_its_folder_must_be_private_and_its_place_free(server: TierServer, uri: str) -> None:
    with pytest.raises(ConfigError, match="in use"):
        TierServer(uri, Memory())
    with pytest.raises(ConfigError, match="is not zmq\\+ipc"):
        TierServer("zmq+tcp://127.0.0.1:0", Memory())
    Path(uri.removeprefix("zmq+ipc://")).parent.chmod(0o755)
    with pytest.raises(ConfigError, match="open to other users"):
        TierServer(uri, Memory())


def test_a_feed_that_never_comes_is_complained_of_once(
    uri: str, relay: Follower, caplog: pytest.LogCaptureFixture
) -> None:
    begun = time.monotonic()
    for later in (0.0, 1.0, COMPLAIN_SECONDS, COMPLAIN_SECONDS + 1):
        assert relay.feed.hear(begun + later) == []
    assert [r.message for r in caplog.records] == [
        "no feed of the DRAM tier: proxies count it as empty"
    ]
    relay.feed._due = 0.0
    server = TierServer(uri, Memory())
    server.enrol(Enrol("w", SCOPE))
    try:
        store(server, NAMES[0])
        relay.until(lambda known: known == {NAMES[0]})
    finally:
        server.close()
    assert caplog.records[-1].message.startswith("the DRAM tier's feed is back")


TAGS = [f"{number:016x}" for number in range(5_000)]


def until(holds: Callable[[], bool], *relays: Follower, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        for relay in relays:
            relay.hear()
        time.sleep(0.005)


def test_what_holds_for_tenants_reaches_the_memory(
    server: TierServer, relay: Follower, memory: Memory
) -> None:
    """All of them at once, as a relay tells them every second."""
    relay.tell()  # once it is connected
    standings = [Standing(tag, 1, 0.25, 0.5) for tag in TAGS]
    for start in range(0, len(standings), 64):
        assert relay.feed.tell(Tenancy("w", tuple(standings[start : start + 64])))
    until(lambda: list(memory.standings.values()) == standings, relay)


def test_one_tenant_too_many_is_said_and_nothing_stops(
    server: TierServer, relay: Follower, memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    memory.too_many = True
    relay.tell(Standing(TAGS[0], 1))
    until(lambda: "feed: more tenants than may be remembered" in caplog.messages, relay)
    store(server, NAMES[0])
    relay.until(lambda known: known == {NAMES[0]})


def test_every_relay_is_told_every_second_what_is_held(
    uri: str, server: TierServer, relay: Follower, memory: Memory
) -> None:
    server.enrol(Enrol("elsewhere", "model/2"))
    other = Follower(uri, "elsewhere")
    holdings = tuple(Holding(tag, (1 << 53) - 1, 1 << 53) for tag in TAGS[:1024])
    memory.held = [Usage("dram", "dram", 1 << 53, part, 3, holdings) for part in range(3)]
    try:
        until(lambda: len(relay.usage) >= 6 and len(other.usage) >= 6, relay, other)
    finally:
        other.close()
    assert relay.usage[:6] == other.usage[:6] == 2 * memory.held


def test_a_flush_that_is_done_is_told_once_to_every_relay(
    uri: str, server: TierServer, relay: Follower, memory: Memory
) -> None:
    server.enrol(Enrol("elsewhere", "model/2"))
    other = Follower(uri, "elsewhere")
    store(server, NAMES[0])
    store(server, NAMES[1], scope="model/2")
    relay.until(lambda known: known == {NAMES[0]})
    other.until(lambda known: known == {NAMES[1]})
    wiped = Wiped("dram", "dram", TAGS[0], 3, 1 << 30, 0.25)
    memory.done.append(wiped)
    until(lambda: bool(relay.wiped and other.wiped), relay, other)
    for _ in range(3):  # every second
        relay.tell(Standing(TAGS[0], 3), Standing(TAGS[1], 9))
    other.close()
    late = Follower(uri, "elsewhere")
    try:
        late.tell(Standing(TAGS[0], 2))
        until(lambda: bool(late.wiped), relay, late)
        relay.stays(1.2)
    finally:
        late.close()
    assert relay.wiped == other.wiped == late.wiped == [wiped]


def test_many_flushes_at_once_lose_no_relay(
    server: TierServer, relay: Follower, memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store(server, NAMES[0])
    relay.until(lambda known: known == {NAMES[0]})
    memory.done = [Wiped("dram", "dram", tag, 1, 0, 0.0) for tag in TAGS]
    until(lambda: len(relay.wiped) == len(TAGS), relay, seconds=30)
    assert {wiped.tag for wiped in relay.wiped} == set(TAGS)
    assert not any("dropped" in message for message in caplog.messages)


def test_a_flush_that_could_not_be_told_is_told_again(
    uri: str, monkeypatch: pytest.MonkeyPatch, memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tier_server, "_OPTIONS", SocketOptions(4096, send_queue=4))
    monkeypatch.setattr(tier_feed, "_OPTIONS", SocketOptions(receive_queue=1, heartbeats=False))
    caplog.set_level(logging.INFO)
    server, relay = TierServer(uri, memory), Follower(uri)
    standings = [Standing(tag, 1) for tag in TAGS[:64]]
    try:
        relay.tell(*standings)
        until(lambda: len(memory.standings) == 64, relay)
        memory.held = [Usage("dram", "dram", 0, part, 2048, ()) for part in range(2048)]
        until(lambda: any("relay dropped" in message for message in caplog.messages))
        memory.done = [Wiped("dram", "dram", tag, 1, 0, 0.0) for tag in TAGS[:64]]
        time.sleep(0.2)
        memory.held = []
        relay.tell(*standings)
        until(lambda: {one.tag for one in relay.wiped} == set(TAGS[:64]), relay)
    finally:
        relay.close()
        server.close()
