"""The supervisor: restarts what dies, stops in order, and leaves when a part cannot work."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from deploy import places, supervisor
from deploy.supervisor import Part, Supervisor
from kvstore import cluster
from kvstore.cluster import ClusterConfig
from kvstore.errors import ConfigError
from kvstore.launch import Command
from proxy.__main__ import GRACE_SECONDS
from tests.support.standins import alive

pytestmark = pytest.mark.anyio

SECONDS = 30.0

SERVES = """
import http.server, os, signal, socketserver, sys, time
print("pid", os.getpid(), flush=True)
ending, where = float(sys.argv[1]), sys.argv[2]

def end(*_):
    time.sleep(ending)
    print("ended", flush=True)
    os._exit(0)

signal.signal(signal.SIGTERM, end)

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        # What a proxy says on /ready: how many workers of each role it knows as ready.
        self.wfile.write(b'HTTP/1.0 200 OK\\r\\n\\r\\n{"prefill": 1, "decode": 1}')
    def log_message(self, *_):
        pass

class Unix(socketserver.ThreadingUnixStreamServer):
    def finish_request(self, request, _address):
        self.RequestHandlerClass(request, ("unix", 0), self)

server = Unix(where, Answer) if where.startswith("/") else http.server.HTTPServer(
    ("127.0.0.1", int(where)), Answer
)
server.serve_forever()
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def config(tmp_path: Path) -> ClusterConfig:
    proxy = msgspec.structs.replace(ClusterConfig().proxy, port=places.free_port())
    return msgspec.structs.replace(ClusterConfig(), run_dir=str(tmp_path), proxy=proxy)


class Cluster:
    """One supervisor over stand-ins and all it says."""

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self.told: list[str] = []
        self.stop = asyncio.Event()
        self.ready = asyncio.Event()
        self.parts = [
            self.part("prefill-0", f"{config.run_dir}/prefill-0.http"),
            self.part("decode-0", f"{config.run_dir}/decode-0.http"),
            self.part("proxy", str(config.proxy.port)),
        ]

    def part(self, name: str, where: str, ending: float = 0.0) -> Part:
        def clean() -> None:
            if where.startswith("/"):
                Path(where).unlink(missing_ok=True)

        argv = (sys.executable, "-c", SERVES, str(ending), where)
        return Part(name, Command(argv, {}), 3.0, f"{name} ", prepare=clean)

    def run(self) -> asyncio.Task[None]:
        self.supervisor = Supervisor(self.config, self.parts, self.told.append)
        return asyncio.create_task(self.supervisor.run(self.stop, self.ready.set))

    def pids(self, name: str) -> list[int]:
        lines = [line.split() for line in self.told]
        return [int(words[2]) for words in lines if words[:2] == [name, "pid"]]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not true():
            await asyncio.sleep(0.02)


async def test_ready_when_every_part_answers_and_gone_when_stopped(config: ClusterConfig) -> None:
    c = Cluster(config)
    task = c.run()
    await asyncio.wait_for(c.ready.wait(), SECONDS)
    c.stop.set()
    await asyncio.wait_for(task, SECONDS)
    pids = [pid for part in c.parts for pid in c.pids(part.name)]
    assert len(pids) == 3
    assert not any(map(alive, pids))
    assert list(Path(config.run_dir).iterdir()) == []


async def test_a_part_that_dies_is_started_again(config: ClusterConfig) -> None:
    c = Cluster(config)
    task = c.run()
    await asyncio.wait_for(c.ready.wait(), SECONDS)
    os.kill(c.pids("decode-0")[0], 9)
    await until(lambda: len(c.pids("decode-0")) == 2)
    assert any("decode-0: ended with exit code 137, restart in" in line for line in c.told)
    c.stop.set()
    await asyncio.wait_for(task, SECONDS)
    assert not any(map(alive, c.pids("decode-0")))


async def test_the_proxy_ends_before_the_workers_do(config: ClusterConfig) -> None:
    c = Cluster(config)
    c.parts[2] = c.part("proxy", str(config.proxy.port), ending=0.5)
    task = c.run()
    await asyncio.wait_for(c.ready.wait(), SECONDS)
    c.stop.set()
    await asyncio.wait_for(task, SECONDS)
    ended = [line.split()[0] for line in c.told if line.endswith(" ended")]
    assert ended[0] == "proxy"
    assert set(ended) == {"proxy", "prefill-0", "decode-0"}


async def test_a_part_that_says_it_is_useless_ends_the_start(config: ClusterConfig) -> None:
    c = Cluster(config)
    c.parts[1] = Part("decode-0", Command((sys.executable, "-c", "raise SystemExit(2)"), {}), 1.0)
    with pytest.raises(ConfigError, match="cannot start without decode-0"):
        await asyncio.wait_for(c.run(), SECONDS)
    assert not c.ready.is_set()
    assert not any(map(alive, c.pids("proxy")))


async def test_once_ready_the_rest_goes_on_without_a_part(config: ClusterConfig) -> None:
    c = Cluster(config)
    dies = "import signal, sys; signal.signal(15, lambda *_: sys.exit(2)); signal.pause()"
    c.parts.append(Part("dram", Command((sys.executable, "-c", dies), {}), 1.0))
    task = c.run()
    await asyncio.wait_for(c.ready.wait(), SECONDS)
    child = c.parts[3].child
    assert child is not None
    await child.stop(5.0)
    await until(lambda: c.parts[3].given_up)
    assert not task.done()
    c.stop.set()
    await asyncio.wait_for(task, SECONDS)


async def test_killing_does_not_wait_for_anybody(config: ClusterConfig) -> None:
    c = Cluster(config)
    c.parts[0] = c.part("prefill-0", f"{config.run_dir}/prefill-0.http", ending=60.0)
    task = c.run()
    await asyncio.wait_for(c.ready.wait(), SECONDS)
    began = time.monotonic()
    c.stop.set()
    await asyncio.sleep(0.1)
    c.supervisor.kill()
    await asyncio.wait_for(task, SECONDS)
    assert time.monotonic() - began < 10.0
    assert not any(map(alive, c.pids("prefill-0")))


def test_the_parts_of_the_default_cluster(tmp_path: Path, config: ClusterConfig) -> None:
    made = supervisor.parts(config, tmp_path / "c.toml", False, False, tmp_path / "d.toml")
    assert [part.name for part in made] == ["dram", "prefill-0", "decode-0", "proxy"]
    without = cluster.parse("[dram]\nenabled=false\n[prefill]\ncount=2")
    names = [
        part.name
        for part in supervisor.parts(
            without, tmp_path / "c.toml", False, False, tmp_path / "d.toml"
        )
    ]
    assert names == ["prefill-0", "prefill-1", "decode-0", "proxy"]


def test_the_proxy_is_not_killed_while_it_lets_answers_finish(
    tmp_path: Path, config: ClusterConfig
) -> None:
    made = {
        p.name: p
        for p in supervisor.parts(config, tmp_path / "c.toml", False, False, tmp_path / "d.toml")
    }
    assert made["proxy"].grace > GRACE_SECONDS


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("gpu1.example", "http://gpu1.example:8000"),
    ],
)
def test_the_address_printed_is_one_that_works_here(host: str, url: str) -> None:
    assert supervisor.base_url(cluster.parse(f"[proxy]\nhost = '{host}'")) == url
