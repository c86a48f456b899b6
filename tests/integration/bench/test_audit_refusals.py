"""Knocking where one is let in, and where one is not: the audit tells them apart."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import zmq
from aiohttp import web

from bench.audit import processes
from bench.audit.asking import Asker
from bench.audit.deployment import Deployment, TestTenant, Worker
from bench.audit.findings import Finding
from bench.audit.refusals import folders
from bench.audit.refusals.doors import Doors
from bench.audit.refusals.messages import Messages
from bench.audit.refusals.wire import Guise, dialled, hear, say, shakes_hands, strangers
from bench.client import Client, Endpoint
from kvstore import salts
from kvstore.blockhash import prompt_digest
from kvstore.cluster import Addresses, ClusterConfig, Model, Ship
from kvstore.credentials import Credentials, PeerRole, load_or_create
from kvstore.handoff import DecodeTicket, decode_ticket, prefill_ticket
from kvstore.layout import KVGroup, KVLayout
from kvstore.messages import Failed, Role
from kvstore.pages import HostPages
from kvstore.transfer import Prompt
from kvstore.transport.opening import Setting, open_shipper
from kvstore.transport.shipper import Shipper
from kvstore.transport.sockets import listen, uri_of
from proxy.identity import Keyring
from tests.integration.bench.test_audit_mutants import deployment as of_stage
from tests.support.proxy_fakes import MODEL, run, stage
from tests.support.relays import RunningRelay
from tests.support.transfers import Errand

pytestmark = pytest.mark.timeout(120)

BLOCK = 32
PRIVATE = dict.fromkeys(("events", "gate", "abandon", "tenants"), "")


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return load_or_create(tmp_path_factory.mktemp("state"))


@pytest.fixture
def listener(credentials: Credentials) -> Iterator[str]:
    """Where decode workers, and nobody else, are let in."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    allowed: frozenset[PeerRole] = frozenset({"decode"})
    router = listen(context, "zmq+tcp://127.0.0.1:0", "prefill", allowed, credentials)
    yield uri_of(router)
    context.destroy(linger=0)


def test_curve_lets_in_its_peer_and_none_of_the_strangers(
    listener: str, credentials: Credentials
) -> None:
    assert shakes_hands(listener, "prefill", Guise("decode", "decode", credentials))
    guises = strangers(credentials, "decode")
    assert len(guises) == 5
    let_in = [guise.name for guise in guises if shakes_hands(listener, "prefill", guise)]
    assert not let_in


def test_a_socket_without_curve_lets_in_whoever_comes(credentials: Credentials) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    try:
        guise = Guise("no CURVE", "decode", None)
        assert shakes_hands(f"zmq+tcp://127.0.0.1:{port}", "prefill", guise)
    finally:
        context.destroy(linger=0)


def test_folders_are_closed_or_not(tmp_path: Path) -> None:
    config = ClusterConfig(run_dir=f"{tmp_path}/run", state_dir=f"{tmp_path}/state")
    (tmp_path / "run").mkdir(mode=0o700)
    deployment = Deployment(config, load_or_create(tmp_path / "state"), [])
    assert folders.modes(deployment).verdict == "pass"
    (tmp_path / "run").chmod(0o755)
    found = folders.modes(deployment)
    assert found.verdict == "fail"
    assert "mode 755" in found.why


@pytest.mark.skipif("os.geteuid() != 0")
def test_another_user_is_let_in_where_folders_are_open(tmp_path_factory: Any) -> None:
    base = Path(tmp_path_factory.mktemp("open"))
    for parent in (base, *list(base.parents)[:2]):
        parent.chmod(0o755)
    config = ClusterConfig(run_dir=f"{base}/run", state_dir=f"{base}/state")
    (base / "run").mkdir(mode=0o700)
    deployment = Deployment(config, load_or_create(base / "state"), [])
    assert folders.another_user(deployment).verdict == "invalid"  # no socket is there
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{base}/run/a.http")
        listening.listen(4)
        closed = folders.another_user(deployment)
        assert (closed.verdict, closed.figures["refused"]) == ("pass", 5)
        assert Path(f"{base}/run/a.http") in processes.sockets([psutil.Process()])
        (base / "run").chmod(0o755)
        Path(f"{base}/run/a.http").chmod(0o777)
        opened = folders.another_user(deployment)
        assert (opened.verdict, opened.figures["refused"]) == ("fail", 4)
        assert "connect to a.http: connected" in opened.why
        twice = folders.another_user(deployment, [base / "run" / "a.http", base / "none"])
        assert twice.figures["tried"] == 5


def test_the_proxys_doors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with stage(tmp_path) as s, Client(10.0) as client:
            deployed = of_stage(s, tmp_path)
            doors = Doors(deployed, client, Asker(client, MODEL, deployed.operator))
            clients, operators = await doors.clients(), await doors.operators()
            assert (clients.verdict, clients.why) == ("pass", "")
            assert (operators.verdict, operators.why) == ("pass", "")
            assert clients.figures["tried"] == 16
            monkeypatch.setattr("proxy.admin.WIPE_SECONDS", 0.01)
            monkeypatch.setattr("proxy.admin.CONFIRM_SECONDS", 0.01)
            monkeypatch.setattr(Keyring, "operator", lambda _keyring, _token: True)
            assert (await doors.operators()).verdict == "fail"
            assert "told a plan" in (await doors.clients()).why

    run(scenario)


LAYOUT = KVLayout("m", "e", "f32", "auto", "x", "cpu", BLOCK, 1, 256, 0, 1, (KVGroup(("l",)),))


class Pair:
    """A shipper and a relay, and HTTP that takes legs up as engines of either role do."""

    def __init__(self, folder: Path, credentials: Credentials) -> None:
        self.credentials = credentials
        self.workers = [_worker("prefill", folder), _worker("decode", folder)]
        self.ship, feed = f"zmq+ipc://{folder}/prefill-0.ship", f"zmq+ipc://{folder}/prefill-0.feed"
        memory = torch.arange(16 * 256, dtype=torch.int32).to(torch.int8).reshape(16, 256)
        setting = Setting(Ship(), credentials, time.monotonic)
        pages = HostPages([memory])
        self.shipper: Shipper = open_shipper(self.ship, pages, LAYOUT, "g0", setting)
        self.shipper.start()
        self.relay = RunningRelay(folder, credentials, feed, "prefill")

    async def prefill(self, request: web.Request) -> web.Response:
        body, prompt = await _leg(request)
        ticket = prefill_ticket(body["kv_transfer_params"])
        assert ticket is not None
        transfer = bytes.fromhex(ticket.transfer)
        self.shipper.open(transfer, prompt, time.monotonic() + 20)
        self.shipper.supply(transfer, {(0, at): at for at in range(prompt.blocks)})
        return web.json_response({})

    async def decode(self, request: web.Request) -> web.Response:
        body, prompt = await _leg(request)
        ticket = decode_ticket(body["kv_transfer_params"])
        assert isinstance(ticket, DecodeTicket)
        errand = Errand(bytes.fromhex(ticket.transfer), prompt, (0,), prompt.blocks)
        generation = ticket.sender_generation
        ready = errand.ready(LAYOUT, self.credentials.transport_key(), generation=generation)
        guise = Guise("decode", "decode", self.credentials)

        def ask() -> bool:
            with dialled(ticket.ship, "prefill", guise) as ship:
                return say(ship, ready) and hear(ship, (Failed,), 10.0) is not None

        assert await asyncio.to_thread(ask)
        return web.json_response({})

    def close(self) -> None:
        self.relay.stop()
        self.shipper.stop()


def _worker(role: Role, folder: Path) -> Worker:
    name = f"{role}-0"
    uris = {part: f"zmq+ipc://{folder}/{name}.{part}" for part in ("ship", "feed")}
    return Worker(name, role, Addresses(http=f"unix:{folder}/{name}.http", **uris, **PRIVATE))


async def _leg(request: web.Request) -> tuple[dict[str, Any], Prompt]:
    body = await request.json()
    claim = salts.owner(body["cache_salt"])
    assert claim is not None
    assert not claim.kept
    assert request.headers[salts.OWNER_HEADER] == claim.claim
    assert request.headers["x-kvferry-token"]
    tokens = body["prompt"]
    return body, Prompt(body["cache_salt"], prompt_digest(tokens), -(-len(tokens) // BLOCK))


def messages(tmp_path: Path, credentials: Credentials) -> Finding:
    """The row of forged and replayed messages, at such workers."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    config = ClusterConfig(run_dir=str(folder), model=Model(name=MODEL))
    deployment = Deployment(config, credentials, [TestTenant("red", Endpoint(""))])
    pair = Pair(folder, credentials)

    async def scenario() -> Finding:
        async with contextlib.AsyncExitStack() as stack:
            for worker, leg in zip(pair.workers, (pair.prefill, pair.decode), strict=True):
                app = web.Application()
                app.router.add_post("/v1/completions", leg)
                runner = web.AppRunner(app)
                await runner.setup()
                stack.push_async_callback(runner.cleanup)
                await web.UnixSite(runner, worker.at.http.removeprefix("unix:")).start()
            client = await stack.enter_async_context(Client(20.0))
            return await Messages(deployment, client, pair.workers[0], 0).finding()

    try:
        return asyncio.run(asyncio.wait_for(scenario(), 100))
    finally:
        pair.close()


def test_forged_and_replayed_messages_bring_no_block(
    tmp_path: Path, credentials: Credentials
) -> None:
    found = messages(tmp_path, credentials)
    assert (found.verdict, found.why) == ("pass", "")
    assert found.figures == {"tried": 11, "refused": 11}


def test_a_worker_that_checks_no_mac_is_found_out(
    tmp_path: Path, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvstore.sending.hmac.compare_digest", lambda _a, _b: True)
    found = messages(tmp_path, credentials)
    assert found.verdict == "fail"
    assert "no MAC: blocks came" in found.why
    assert "an earlier generation's" not in found.why


def test_nobody_there_is_no_pass(tmp_path: Path, credentials: Credentials) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    deployment = Deployment(ClusterConfig(run_dir=str(folder)), credentials, [])

    async def scenario() -> None:
        async with Client(5.0) as client:
            row = Messages(deployment, client, _worker("prefill", folder), 0)
            assert (await row.finding()).verdict == "invalid"

    run(scenario)
