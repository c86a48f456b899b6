"""Workers of different numbers of ranks: every head arrives in the rank that computes with it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from decode.fetching import Receiver, SliceFetching
from decode.orders import FetchOrder, Orders
from decode.telling import Teller
from decode.working import DecodeWorking
from kvstore.cluster import Ship
from kvstore.credentials import Credentials, load_or_create
from kvstore.engine_facts import heads_of
from kvstore.gate_link import ConnectorLink
from kvstore.layout import KVLayout
from kvstore.pages import open_pages
from kvstore.slices import slice_address, slices_of_rank
from kvstore.tier import NoCopy
from kvstore.transfer import Prompt
from kvstore.transport.opening import Setting, open_fetcher, open_shipper
from kvstore.wiping import Wiping
from prefill.orders import Opening, Supply
from prefill.orders import Orders as PrefillOrders
from prefill.working import PrefillWorking

HEADS, LAYERS, BLOCKS, BLOCK_SIZE, HEAD_SIZE = 4, 3, 16, 32, 16
POSITIONS = 6
TRANSFER = bytes(15) + b"\x07"


def layout(rank: int, ranks: int) -> KVLayout:
    page = HEADS // ranks * BLOCK_SIZE * 2 * HEAD_SIZE * 2
    return KVLayout(
        "m", "e", "bfloat16", "auto", "LBHNC", "cpu", BLOCK_SIZE, LAYERS, page, rank, ranks
    )


def rank_memory(ranks: int, seed: int) -> list[list[torch.Tensor]]:
    """For each rank its layers, as vLLM lays them out on a CPU."""
    generator = torch.Generator().manual_seed(seed)
    shape = (LAYERS, BLOCKS, HEADS // ranks, BLOCK_SIZE, 2 * HEAD_SIZE)
    return [
        list(torch.randint(-99, 99, shape, generator=generator).to(torch.bfloat16).unbind())
        for _ in range(ranks)
    ]


def heads(memory: list[list[torch.Tensor]], blocks: list[int]) -> torch.Tensor:
    """``[layers, blocks, heads, …]`` of the whole model."""
    ranks = [torch.stack([layer[blocks] for layer in layers]) for layers in memory]
    return torch.cat(ranks, dim=2)


@dataclass
class Cluster:
    """A prefill and a decode worker, without engines."""

    folder: Path
    credentials: Credentials
    slices: int
    open: ExitStack
    source: list[list[torch.Tensor]] = field(default_factory=list)
    target: list[list[torch.Tensor]] = field(default_factory=list)

    @property
    def setting(self) -> Setting:
        return Setting(Ship(), self.credentials, time.monotonic)

    @property
    def address(self) -> str:
        return f"auto://{self.folder}/ship"

    def prefill(self, ranks: int) -> list[PrefillWorking]:
        self.source = rank_memory(ranks, seed=1)
        workers = []
        for rank, caches in enumerate(self.source):
            shippers = []
            for part in slices_of_rank(HEADS, self.slices, rank, ranks):
                pages = open_pages(heads_of(caches, part))
                of_slice = layout(rank, ranks).of_slice(part, pages.page_bytes)
                address = slice_address(self.address, part.number)
                shippers.append(open_shipper(address, pages, of_slice, "gen", self.setting))
                shippers[-1].start()
            workers.append(PrefillWorking(shippers, NoCopy(), Wiping(open_pages(caches))))
            self.open.callback(workers[-1].stop)
        return workers

    def decode(self, ranks: int) -> list[DecodeWorking]:
        self.target = rank_memory(ranks, seed=2)
        key = self.credentials.transport_key()
        receiver = Receiver("decode-0", "gen-d", key, time.monotonic)
        workers = []
        for rank, caches in enumerate(self.target):
            fetching = []
            for part in slices_of_rank(HEADS, self.slices, rank, ranks):
                pages = open_pages(heads_of(caches, part))
                abandon = slice_address(f"ipc://{self.folder}/abandon", part.number)
                link = ConnectorLink(gate=f"ipc://{self.folder}/gate", abandon=abandon)
                teller = Teller(link)
                of_slice = layout(rank, ranks).of_slice(part, pages.page_bytes)
                fetcher = open_fetcher(pages, of_slice, self.setting, teller, link.socket)
                fetching.append(SliceFetching(fetcher, teller, of_slice, receiver))
                fetching[-1].start()
            workers.append(DecodeWorking(fetching, Wiping(open_pages(caches))))
            self.open.callback(workers[-1].stop)
        return workers


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    with ExitStack() as stack:
        yield Cluster(folder, load_or_create(tmp_path / "state"), 1, stack)


def ended(workers: list[DecodeWorking]) -> list[tuple[set[str], set[str]]]:
    """What each rank reports of the one request, within ten seconds."""
    found: dict[int, tuple[set[str], set[str]]] = {}
    deadline = time.monotonic() + 10
    while len(found) < len(workers) and time.monotonic() < deadline:
        for rank, worker in enumerate(workers):
            reports = worker.reports()
            if reports.loaded:
                found[rank] = reports.loaded, reports.failed
        time.sleep(0.005)
    return [found[rank] for rank in range(len(workers))]


@pytest.mark.parametrize(
    ("prefill_ranks", "decode_ranks", "slices"), [(2, 2, 2), (1, 2, 2), (2, 1, 2), (4, 2, 4)]
)
def test_every_head_arrives_where_it_belongs(
    cluster: Cluster, prefill_ranks: int, decode_ranks: int, slices: int
) -> None:
    cluster.slices = slices
    prefill, decode = cluster.prefill(prefill_ranks), cluster.decode(decode_ranks)
    prompt = Prompt("salt", secrets.token_bytes(32), POSITIONS)
    deadline = time.monotonic() + 10
    from_blocks, into = [3, 9, 1, 12, 7, 5], list(range(10, 16))
    order = FetchOrder(
        transfer=TRANSFER,
        request="r",
        peer=cluster.address,
        sender_generation="gen",
        prompt=prompt,
        first=(0,),
        stop=POSITIONS,
        block_ids=(tuple(into),),
        local_tokens=0,
        prompt_tokens=POSITIONS * BLOCK_SIZE,
        arrived=0.0,
        deadline=deadline,
    )
    for fetching in decode:
        fetching.before_forward(Orders(fetches=[order]))
    pages = {(0, at): block for at, block in enumerate(from_blocks)}
    orders = PrefillOrders(
        openings=[Opening(TRANSFER, "p", prompt, deadline, POSITIONS)],
        supplies_before=[Supply(TRANSFER, pages)],
        closings=[TRANSFER],
        released=["p"],
    )
    for shipping in prefill:
        shipping.before_forward(orders)
        shipping.after_forward(orders)
    assert ended(decode) == [({"r"}, set())] * decode_ranks
    assert torch.equal(heads(cluster.target, into), heads(cluster.source, from_blocks))
    untouched = list(range(10))
    before = rank_memory(decode_ranks, seed=2)
    assert torch.equal(heads(cluster.target, untouched), heads(before, untouched))
