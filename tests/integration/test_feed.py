"""An engine's events through a relay to proxies' directories, over real sockets.

The engine is vLLM's own publisher, so what is on the wire is what an engine sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio
from vllm.distributed.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KVEventBatch,
    ZmqEventPublisher,
)

from kvstore.codec import encode
from kvstore.credentials import Credentials, load_or_create
from kvstore.errors import ConfigError
from kvstore.feed import FeedClient
from kvstore.index import Directory
from kvstore.messages import PROTOCOL_VERSION, Announce, Delta, Role, Snapshot
from kvstore.relay_engine import replay_endpoint
from kvstore.transport.sockets import listen
from tests.support.announcing import announce
from tests.support.relays import WAIT_SECONDS, RunningRelay, following, until

HASHES = [bytes([i]) * 32 for i in range(200)]
NAMES = [block[:16] for block in HASHES]


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return load_or_create(tmp_path_factory.mktemp("state"))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


class Engine:
    """The publishing part of a vLLM engine."""

    def __init__(
        self, run_dir: Path, replay: bool = True, remembers: int = 1000, worker: str = "w"
    ) -> None:
        events = f"ipc://{run_dir}/{worker}.events"
        self._publisher = ZmqEventPublisher(
            0, events, replay_endpoint(events) if replay else None, buffer_steps=remembers
        )

    def store(self, *blocks: int, group: int = 0) -> None:
        self.publish(
            BlockStored(
                block_hashes=[HASHES[block] for block in blocks],
                parent_block_hash=None,
                token_ids=list(range(32 * len(blocks))),
                block_size=32,
                lora_id=None,
                medium="GPU",
                lora_name=None,
                extra_keys=[("salt",)] * len(blocks),
                group_idx=group,
            )
        )

    def remove(self, *blocks: int) -> None:
        gone = [HASHES[block] for block in blocks]
        self.publish(BlockRemoved(block_hashes=gone, medium="GPU", group_idx=0))

    def clear(self) -> None:
        self.publish(AllBlocksCleared())

    def publish(self, *events: Any) -> None:
        self._publisher.publish(KVEventBatch(ts=time.time(), events=list(events)))

    def lose_next(self) -> None:
        """Counts one batch that is neither sent nor remembered."""
        self._publisher._event_queue.join()
        next(self._publisher._seq_gen)

    def stop(self) -> None:
        self._publisher.shutdown()


@pytest.fixture
def engine(run_dir: Path) -> Iterator[Engine]:
    engine = Engine(run_dir)
    yield engine
    engine.stop()


@pytest.fixture(params=["ipc", "tcp"])
def feed(request: pytest.FixtureRequest, run_dir: Path, free_port: int) -> str:
    ipc = f"zmq+ipc://{run_dir}/w.feed"
    return ipc if request.param == "ipc" else f"zmq+tcp://127.0.0.1:{free_port}"


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


@pytest.fixture
def relay(run_dir: Path, credentials: Credentials, feed: str) -> Iterator[RunningRelay]:
    running = RunningRelay(run_dir, credentials, feed, "prefill")
    yield running
    running.stop()


def held(directory: Directory, worker: str = "w") -> int:
    found = directory.held(NAMES).get(worker)
    return found.gpu if found is not None else -1


def generation(directory: Directory) -> str:
    return directory.wants("w")[0]


def test_two_proxies_know_what_the_engine_holds(
    engine: Engine, relay: RunningRelay, feed: str, credentials: Credentials
) -> None:
    async def scenario() -> None:
        engine.store(0, 1)
        async with following(feed, credentials) as one, following(feed, credentials) as two:
            await until(lambda: held(one) == held(two) == 2)
            engine.store(2, 3, 4)
            engine.store(5, group=1)
            engine.remove(3)
            await until(lambda: held(one) == held(two) == 3)
            engine.clear()
            await until(lambda: held(one) == held(two) == 0)
            assert generation(one) == "g0"
            relay.relay.set_state("ready")
            await until(lambda: [w.state for w in one.workers("prefill")] == ["ready"])

    asyncio.run(scenario())


def test_what_was_published_before_the_relay_came_is_replayed(
    run_dir: Path, credentials: Credentials, engine: Engine, feed: str
) -> None:
    async def scenario() -> None:
        engine.store(*range(10))
        engine._publisher._event_queue.join()
        late = RunningRelay(run_dir, credentials, feed, "prefill")
        try:
            async with following(feed, credentials) as directory:
                await until(lambda: held(directory) == 10)
        finally:
            late.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("feed", ["ipc"], indirect=True)
def test_events_lost_for_good_make_the_worker_cold(
    engine: Engine, relay: RunningRelay, feed: str, credentials: Credentials
) -> None:
    async def scenario() -> None:
        engine.store(*range(10))
        async with following(feed, credentials) as directory:
            await until(lambda: held(directory) == 10)
            engine.lose_next()
            engine.store(0)
            await until(lambda: held(directory) == 1)
            assert directory.blocks("w", "gpu") == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("feed", ["ipc"], indirect=True)
def test_an_engine_that_replays_nothing_makes_the_worker_cold(
    run_dir: Path, credentials: Credentials, relay: RunningRelay, feed: str
) -> None:
    engine = Engine(run_dir, replay=False)

    async def scenario() -> None:
        async with following(feed, credentials) as directory:
            await until(lambda: generation(directory) == "g0")
            # Without a replay, what is published before the subscription has arrived is gone.
            deadline = time.monotonic() + WAIT_SECONDS
            while held(directory) != 10:
                assert time.monotonic() < deadline, "nothing was heard"
                engine.store(*range(10))
                await asyncio.sleep(0.05)
            engine.lose_next()
            engine.store(0, 1)
            await until(lambda: held(directory) == 2)
            assert directory.blocks("w", "gpu") == 2

    try:
        asyncio.run(scenario())
    finally:
        engine.stop()


def test_a_relay_that_is_started_anew_is_found_and_knows_it_all(
    run_dir: Path, credentials: Credentials, engine: Engine, feed: str
) -> None:
    async def scenario() -> None:
        engine.store(*range(10))
        first = RunningRelay(run_dir, credentials, feed, "prefill")
        async with following(feed, credentials) as directory:
            await until(lambda: held(directory) == 10)
            first.stop()
            await until(lambda: held(directory) == -1)
            engine.remove(9)
            second = RunningRelay(run_dir, credentials, feed, "prefill")
            try:
                await until(lambda: held(directory) == 9)
            finally:
                second.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("feed", ["ipc"], indirect=True)
def test_a_new_engine_is_a_new_generation(
    run_dir: Path, credentials: Credentials, relay: RunningRelay, feed: str
) -> None:
    async def scenario() -> None:
        old = Engine(run_dir)
        old.store(*range(10))
        async with following(feed, credentials) as directory:
            await until(lambda: held(directory) == 10)
            old.stop()
            relay.relay.engine_restarted("g1")
            await until(lambda: generation(directory) == "g1" and held(directory) == 0)
            new = Engine(run_dir)
            try:
                new.store(*range(3))
                await until(lambda: held(directory) == 3)
            finally:
                new.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("feed", ["ipc"], indirect=True)
def test_thousands_of_batches_arrive_whole(
    engine: Engine, relay: RunningRelay, feed: str, credentials: Credentials
) -> None:
    async def scenario() -> None:
        async with following(feed, credentials) as directory:
            await until(lambda: generation(directory) == "g0")
            for turn in range(3000):
                block = turn % len(HASHES)
                if turn >= len(HASHES):
                    engine.remove(block)
                engine.store(block)
            engine.remove(100)
            # A hundred in a row are held on the way, too, when just so many have been stored.
            last = len(HASHES) - 1
            await until(lambda: held(directory) == 100 and directory.blocks("w", "gpu") == last)

    asyncio.run(scenario())


def test_a_relay_that_cannot_listen_says_so(
    run_dir: Path, credentials: Credentials, relay: RunningRelay, feed: str
) -> None:
    with pytest.raises(ConfigError, match="in use"):
        RunningRelay(run_dir, credentials, feed, "prefill")


def test_nothing_is_left_behind(
    run_dir: Path, credentials: Credentials, engine: Engine, feed: str
) -> None:
    async def scenario() -> None:
        running = RunningRelay(run_dir, credentials, feed, "prefill")
        async with following(feed, credentials) as directory:
            await until(lambda: generation(directory) == "g0")
        running.stop()
        assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    threads = set(threading.enumerate())
    asyncio.run(scenario())
    assert not (run_dir / "w.feed").exists()
    for thread in set(threading.enumerate()) - threads:
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive()
    # The address is free again at once, and the context was really ended.
    RunningRelay(run_dir, credentials, feed, "prefill").stop()


def test_of_a_worker_that_is_gone_nothing_stays_to_be_told(credentials: Credentials) -> None:
    """A request may end long after its worker has left."""
    client = FeedClient({}, credentials, "proxy-0", Directory(3.0))
    for number in range(9):
        gone = announce(f"prefill-{number}")
        client.tell(gone, 1, 0.5)
        client.tell(gone, 0, 0.0)
    assert not client._told


def test_workers_join_and_leave_and_others_are_known_all_the_time(
    run_dir: Path, credentials: Credentials
) -> None:
    names = ("stays", "leaves", "joins")
    uris: dict[str, Role] = {f"zmq+ipc://{run_dir}/{name}.feed": "prefill" for name in names}
    stays, leaves, joins = uris
    engines = {name: Engine(run_dir, worker=name) for name in names}
    for engine in engines.values():
        engine.store(*range(10))
    directory = Directory(3.0)
    client = FeedClient({stays: "prefill", leaves: "prefill"}, credentials, "proxy-0", directory)
    lookups: list[int] = []

    async def look_up() -> None:
        while True:
            lookups.append(held(directory, "stays"))
            if len(lookups) % 50 == 0:
                engines["stays"].store(10 + len(lookups) // 50 % 100)
            await asyncio.sleep(0.001)

    async def scenario() -> None:
        task = asyncio.create_task(client.run())
        await until(lambda: held(directory, "stays") == held(directory, "leaves") == 10)
        looking = asyncio.create_task(look_up())
        with pytest.raises(ConfigError, match="nobody"):
            client.follow({joins: "prefill", "zmq+tcp://nobody:x": "prefill"})
        client.follow({stays: "prefill", joins: "prefill"})
        await until(lambda: held(directory, "joins") == 10 and held(directory, "leaves") == -1)
        client.follow({stays: "prefill", joins: "prefill", leaves: "prefill"})
        await until(lambda: held(directory, "leaves") == 10)
        looking.cancel()
        task.cancel()
        await asyncio.wait({looking, task})

    relays = [
        RunningRelay(run_dir, credentials, uri, "prefill", worker=name)
        for uri, name in zip(uris, names, strict=True)
    ]
    try:
        asyncio.run(scenario())
    finally:
        for relay in relays:
            relay.stop()
        for engine in engines.values():
            engine.stop()
    assert client.dropped == 0
    assert len(lookups) > 100
    assert min(lookups) >= 10


@pytest.mark.parametrize("feed", ["tcp"], indirect=True)
def test_a_client_without_our_keys_hears_nothing(
    relay: RunningRelay, feed: str, tmp_path: Path
) -> None:
    stranger = load_or_create(tmp_path / "other")

    async def scenario() -> None:
        async with following(feed, stranger) as directory:
            await asyncio.sleep(1.5)
            assert directory.workers("prefill") == []

    asyncio.run(scenario())


@pytest.mark.parametrize("joined", [b"abc", bytes(24)])
def test_names_that_are_none_cost_nothing_but_their_message(
    run_dir: Path, credentials: Credentials, joined: bytes
) -> None:
    """Neither the feeds of other workers nor what is known of this one."""
    uri = f"zmq+ipc://{run_dir}/liar.feed"

    async def scenario() -> None:
        context = zmq.asyncio.Context()
        liar = listen(context, uri, "prefill", frozenset({"proxy"}), credentials)
        directory = Directory(600.0)
        client = FeedClient({uri: "prefill"}, credentials, "proxy-0", directory)
        task = asyncio.create_task(client.run())
        peer, _ = await liar.recv_multipart()
        announce = Announce(
            PROTOCOL_VERSION, "w", "prefill", "g0", "ready", "m", "", "", "", 32, 8192, 100, 0
        )
        told: list[Announce | Snapshot | Delta] = [
            announce,
            Snapshot("w", "g0", 0, 0, 1, "gpu", NAMES[0]),
            Snapshot("w", "g0", 1, 0, 1, "gpu", joined),
            Delta("w", "g0", 1, "gpu", False, joined, b""),
            Delta("w", "g0", 1, "gpu", False, NAMES[1], joined),
            Delta("w", "g0", 1, "gpu", False, NAMES[1], b""),
        ]
        for message in told:
            await liar.send_multipart([peer, encode(message)])
        try:
            await until(lambda: held(directory) == 2)
            assert client.dropped == 3
            assert not task.done()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            context.destroy(linger=0)

    asyncio.run(scenario())
