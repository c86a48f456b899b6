"""Shipper and receiver threads over real sockets: pages arrive bit for bit, or not at all."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decode.fetching import Receiver, SliceFetching
from decode.orders import FetchOrder, Orders
from decode.telling import Teller
from decode.working import DecodeWorking
from kvstore.cluster import Ship
from kvstore.credentials import load_or_create
from kvstore.gate_link import ConnectorLink, GateLink
from kvstore.layout import KVLayout
from kvstore.messages import Begun, GateReport, Outcome
from kvstore.pages import HostPages
from kvstore.transfer import Prompt
from kvstore.transport.ends import Load
from kvstore.transport.opening import Setting, open_fetcher, open_shipper
from kvstore.transport.shipper import Shipper
from kvstore.transport.zeromq_sending import ZmqSendingEnd
from kvstore.wiping import Wiping

LAYERS, BLOCKS, PAGE = 4, 64, 4096
LAYOUT = KVLayout("m", "e", "bf16", "auto", "LBHNC", "cpu", 32, LAYERS, PAGE, 0, 1)


def make_pages(seed: int) -> tuple[HostPages, torch.Tensor]:
    """Pages over one int8 allocation, as vLLM's CPU worker lays them out."""
    generator = torch.Generator().manual_seed(seed)
    buffer = torch.randint(-128, 127, (LAYERS, BLOCKS, PAGE), dtype=torch.int8, generator=generator)
    return HostPages([buffer[layer] for layer in range(LAYERS)]), buffer


@dataclass
class Pair:
    """A prefill and a decode rank, without engines."""

    shipper: Shipper
    working: DecodeWorking
    gate: GateLink
    source: torch.Tensor
    target: torch.Tensor
    uri: str

    def order(self, transfer: bytes, prompt: Prompt, first: int = 0) -> Orders:
        ids = tuple(range(40 + first, 40 + prompt.blocks))
        fetch = FetchOrder(
            transfer=transfer,
            request=transfer.hex(),
            peer=self.uri,
            sender_generation="gen",
            prompt=prompt,
            first=(first,),
            stop=prompt.blocks,
            block_ids=(ids,),
            local_tokens=first * 32,
            prompt_tokens=prompt.blocks * 32,
            arrived=time.monotonic(),
            deadline=time.monotonic() + 10,
        )
        return Orders(fetches=[fetch])

    def until_ended(self) -> tuple[set[str], set[str]]:
        reports = until(lambda: (r := self.working.reports()).loaded and r)
        return reports.loaded, reports.failed


def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.005)
    raise AssertionError("it did not happen in time")


@pytest.fixture(params=["zmq+ipc", "zmq+tcp", "shm", "auto", "bulk", "gloo"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    credentials = load_or_create(tmp_path / "state")
    local = f"{request.param}://{folder}/ship"
    remote = request.param in {"zmq+tcp", "bulk"}
    uri = "zmq+tcp://127.0.0.1:0" if remote else local
    source_pages, source = make_pages(1)
    target_pages, target = make_pages(2)
    ship = Ship(bulk="authenticated" if request.param == "bulk" else "encrypted")
    setting = Setting(ship, credentials, time.monotonic)
    shipper = open_shipper(uri, source_pages, LAYOUT, "gen", setting)
    gate, abandon = f"ipc://{folder}/gate", f"ipc://{folder}/abandon"
    link = ConnectorLink(gate=gate, abandon=abandon)
    teller = Teller(link)
    fetcher = open_fetcher(target_pages, LAYOUT, setting, teller, link.socket)
    key = credentials.transport_key()
    receiver = Receiver("decode-0", "gen-d", key, time.monotonic)
    fetching = SliceFetching(fetcher, teller, LAYOUT, receiver)
    working = DecodeWorking([fetching], Wiping(target_pages))
    with GateLink(gate=gate, abandon=[abandon]) as reports:
        address = shipper.uri
        shipper.start()
        fetcher.start()
        yield Pair(shipper, working, reports, source, target, address)
        working.stop()
        shipper.stop()


def prompt_of(blocks: int) -> Prompt:
    return Prompt(secrets.token_hex(32), secrets.token_bytes(32), blocks)


def test_pages_arrive_bit_for_bit_chunk_by_chunk(pair: Pair) -> None:
    transfer, prompt = secrets.token_bytes(16), prompt_of(20)
    before = pair.target.clone()
    pair.working.before_forward(pair.order(transfer, prompt, first=3))
    pair.shipper.open(transfer, prompt, time.monotonic() + 10)
    order = np.random.default_rng(0).permutation(BLOCKS)[:20]
    for start in range(0, 20, 6):
        pages = {(0, at): int(order[at]) for at in range(start, min(20, start + 6))}
        pair.shipper.supply(transfer, pages)
    assert pair.until_ended() == ({transfer.hex()}, set())
    assert until(pair.shipper.take_settled) == [transfer]
    for at in range(3, 20):
        assert torch.equal(pair.target[:, 40 + at], pair.source[:, order[at]])
    untouched = [block for block in range(BLOCKS) if not 43 <= block < 60]
    assert torch.equal(pair.target[:, untouched], before[:, untouched])
    outcome = until(pair.gate.reports)[0]
    assert (outcome.shipped, outcome.local_tokens, outcome.received_tokens) == (True, 96, 544)


def test_a_damaged_block_is_never_written(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    end = pair.shipper._end
    assert isinstance(end, ZmqSendingEnd)
    post = end.post

    def damaging(load: Load) -> None:
        pair.source[1, 0, 1234] ^= 1
        if load.buffer is not None:
            end._staging.buffer(load.buffer, 1)[1234] ^= 1
        if load.carriage == "lane":
            assert end._lanes is not None
            slot = end._lanes._lanes[load.peer].slot(time.monotonic())
            assert slot is not None
            slot[1234] ^= 1
        post(load)

    monkeypatch.setattr(end, "post", damaging)
    transfer, prompt = secrets.token_bytes(16), prompt_of(1)
    before = pair.target.clone()
    pair.working.before_forward(pair.order(transfer, prompt))
    pair.shipper.open(transfer, prompt, time.monotonic() + 10)
    pair.shipper.supply(transfer, {(0, 0): 0})
    assert pair.until_ended() == ({transfer.hex()}, {transfer.hex()})
    assert until(pair.gate.reports)[0].reason == "digest-mismatch"
    if pair.uri.startswith(("zmq", "gloo")):
        assert torch.equal(pair.target, before)
    else:  # found wrong where it was to lie, and wiped
        before[:, 40] = 0
        assert torch.equal(pair.target, before)


def test_one_bad_address_costs_nobody_else_anything(pair: Pair) -> None:
    lost, kept = secrets.token_bytes(16), secrets.token_bytes(16)
    prompt = prompt_of(2)
    (bad,) = pair.order(lost, prompt).fetches
    soon = time.monotonic() + 1
    nowhere = replace(bad, peer="zmq+ipc:///no/such/folder/ship", deadline=soon)
    pair.working.before_forward(Orders(fetches=[nowhere]))
    pair.working.before_forward(pair.order(kept, prompt))
    pair.shipper.open(kept, prompt, time.monotonic() + 10)
    pair.shipper.supply(kept, {(0, 0): 0, (0, 1): 1})
    assert pair.until_ended() == ({kept.hex()}, set())
    assert pair.until_ended() == ({lost.hex()}, {lost.hex()})


def test_a_wrong_prompt_gets_nothing(pair: Pair) -> None:
    transfer, prompt = secrets.token_bytes(16), prompt_of(3)
    before = pair.target.clone()
    pair.shipper.open(transfer, prompt, time.monotonic() + 10)
    pair.shipper.supply(transfer, {(0, 0): 0, (0, 1): 1, (0, 2): 2})
    pair.working.before_forward(pair.order(transfer, prompt_of(3)))
    assert pair.until_ended() == ({transfer.hex()}, {transfer.hex()})
    assert torch.equal(pair.target, before)
    assert until(pair.gate.reports)[0].reason == "not-authentic"


def test_a_sender_that_dies_is_noticed_at_once(pair: Pair) -> None:
    transfer, prompt = secrets.token_bytes(16), prompt_of(3)
    pair.working.before_forward(pair.order(transfer, prompt))
    pair.shipper.open(transfer, prompt, time.monotonic() + 10)
    pair.shipper.supply(transfer, {(0, 0): 0})
    until(lambda: torch.equal(pair.target[:, 40], pair.source[:, 0]))
    begun = time.monotonic()
    pair.shipper.stop()
    assert pair.until_ended() == ({transfer.hex()}, {transfer.hex()})
    assert time.monotonic() - begun < 8
    assert until(pair.gate.reports)[0].reason == "peer-lost"


def test_the_gate_can_abandon(pair: Pair) -> None:
    from kvstore.messages import Abandon

    transfer, prompt = secrets.token_bytes(16), prompt_of(3)
    pair.working.before_forward(pair.order(transfer, prompt))
    assert until(lambda: pair.gate.send(Abandon(transfer)))
    assert pair.until_ended() == ({transfer.hex()}, {transfer.hex()})
    assert until(pair.gate.reports)[0].reason == "abandoned"


def test_a_requests_beginning_is_told_after_its_transfers_end(pair: Pair) -> None:
    transfer, prompt = secrets.token_bytes(16), prompt_of(3)
    orders = pair.order(transfer, prompt, first=3)
    begun = Begun(transfer, 1.0, 2.0)
    pair.working.before_forward(Orders(fetches=orders.fetches, begun=[begun]))
    told: list[GateReport] = []

    def both_told() -> bool:
        told.extend(pair.gate.reports())
        return len(told) == 2

    until(both_told)
    assert isinstance(told[0], Outcome)
    assert told[1] == begun
    assert 0 <= told[0].wait_ms < 5000


def test_what_is_declined_settles_the_sender_and_reports_nothing(pair: Pair) -> None:
    transfer, prompt = secrets.token_bytes(16), prompt_of(3)
    pair.shipper.open(transfer, prompt, time.monotonic() + 10)
    pair.working.before_forward(pair.order(transfer, prompt, first=3))
    assert until(pair.shipper.take_settled) == [transfer]
    assert pair.working.reports().loaded == set()
    assert until(pair.gate.reports)[0].received_tokens == 0


def test_an_abort_stops_the_bytes(pair: Pair) -> None:
    transfer, prompt = secrets.token_bytes(16), prompt_of(3)
    pair.working.before_forward(pair.order(transfer, prompt))
    pair.shipper.open(transfer, prompt, time.monotonic() + 10)
    pair.working.before_forward(Orders(aborts=[transfer]))
    before = pair.target.clone()
    pair.shipper.supply(transfer, {(0, 0): 0, (0, 1): 1, (0, 2): 2})
    assert pair.until_ended() == ({transfer.hex()}, {transfer.hex()})
    assert until(pair.shipper.take_settled) == [transfer]
    assert torch.equal(pair.target, before)
