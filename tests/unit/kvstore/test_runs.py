"""Device pages and lanes: copies, digests and the choice of NCCL, with a CPU for a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from kvstore.cluster import Ship
from kvstore.device_digest import block_digests
from kvstore.device_pages import DevicePages, LayerPages
from kvstore.errors import ConfigError
from kvstore.messages import PROTOCOL_VERSION, Welcome
from kvstore.receiving import Placement
from kvstore.sending import Batch
from kvstore.transport.lanes_receiving import ReceivingLanes
from kvstore.transport.runs import LIMITS, MOST_BLOCKS, SLOT_BYTES, DeviceRuns, runs_of
from kvstore.transport.zeromq_sending import _runs_for
from tests.support.transfers import Noise, layout_of

LAYERS, BLOCKS, PAGE = 3, 12, 64
TRANSFER = b"t" * 16
OURS, THEIRS = "GPU-ours", "GPU-theirs"


class OnCpu(DevicePages):
    """Device pages without a stream."""

    def __init__(self, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        shape = (LAYERS, BLOCKS, PAGE)
        self.bytes = torch.randint(-128, 128, shape, dtype=torch.int8, generator=random)
        self._pages = LayerPages(list(self.bytes))
        self.block_bytes, self.device = self._pages.block_bytes, torch.device("cpu")

    def gather_device(self, blocks: Sequence[int], run: torch.Tensor) -> None:
        self._pages.gather_device(blocks, run)

    def scatter_device(self, blocks: Sequence[int], run: torch.Tensor) -> None:
        self._pages.scatter_device(blocks, run)


@pytest.fixture(autouse=True)
def cpu_for_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(uuid=OURS)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())


def batch(*blocks: int) -> Batch:
    return Batch(TRANSFER, b"peer", "lane", b"", 0, 5, blocks)


def placement(digests: tuple[bytes, ...], *blocks: int) -> Placement:
    return Placement(TRANSFER, 0, 5, blocks, digests)


def test_blocks_go_from_device_to_device_with_digests_made_there() -> None:
    source, target = OnCpu(1), OnCpu(2)
    run = torch.empty(3 * source.block_bytes, dtype=torch.int8)
    digests = DeviceRuns(source, "xxh3-128").load(batch(7, 0, 4), run)
    assert digests == block_digests(run, source.block_bytes)
    assert DeviceRuns(target, "xxh3-128").place(placement(digests, 1, 2, 3), run) is None
    assert torch.equal(target.bytes[:, [1, 2, 3]], source.bytes[:, [7, 0, 4]])


def test_of_a_damaged_run_nothing_is_written() -> None:
    source, target = OnCpu(1), OnCpu(2)
    before = target.bytes.clone()
    run = torch.empty(3 * source.block_bytes, dtype=torch.int8)
    digests = DeviceRuns(source, "xxh3-128").load(batch(7, 0, 4), run)
    run[source.block_bytes + 9] ^= 1
    assert DeviceRuns(target, "xxh3-128").place(placement(digests, 1, 2, 3), run) == 1
    assert torch.equal(target.bytes, before)
    told = DeviceRuns(source, "none").load(batch(7, 0, 4), run)
    run[9] ^= 1
    assert DeviceRuns(target, "none").place(placement(told, 1, 2, 3), run) is None


def test_a_slot_holds_what_a_shipment_may_carry() -> None:
    bed = DeviceRuns(OnCpu(1), "none").bed("")
    assert bed.slot_blocks == MOST_BLOCKS, "small blocks: as many as a message names"
    large = Noise(layout_of(2, SLOT_BYTES, 1), 1, 1).pages
    assert runs_of(large, "none").bed("127.0.0.1").slot_blocks == 1
    assert bed.limits == LIMITS


@pytest.mark.parametrize(
    ("uri", "bulk", "kind"),
    [
        ("auto:///run/ship", "encrypted", "nccl"),
        ("auto://host:1", "encrypted", None),
        ("auto://host:1", "authenticated", "nccl"),
        ("nccl://host:1", "encrypted", "nccl"),
        ("zmq+ipc:///run/ship", "authenticated", None),
        ("shm:///run/ship", "encrypted", None),
    ],
)
def test_auto_offers_a_lane_only_where_kv_may_go_in_the_clear(
    uri: str, bulk: str, kind: str | None
) -> None:
    ship = Ship(bulk="authenticated" if bulk == "authenticated" else "encrypted")
    runs = _runs_for(uri, OnCpu(1), ship)
    assert (runs and runs.kind) == kind


def test_host_memory_is_offered_by_gloo_alone() -> None:
    pages = Noise(layout_of(1, 64, 1), 2, 1).pages
    assert _runs_for("auto:///run/ship", pages, Ship()) is None
    with pytest.raises(ConfigError, match="by gloo, not by nccl"):
        _runs_for("nccl:///run/ship", pages, Ship())
    with pytest.raises(ConfigError, match="by nccl, not by gloo"):
        _runs_for("gloo:///run/ship", OnCpu(1), Ship())


def test_a_gpu_is_not_joined_with_itself_nor_with_host_memory() -> None:
    lanes = ReceivingLanes(DeviceRuns(OnCpu(1), "none"), wake=lambda: None)
    assert lanes.shares(Welcome(PROTOCOL_VERSION, lane="nccl", device=THEIRS))
    assert not lanes.shares(Welcome(PROTOCOL_VERSION, lane="nccl", device=OURS))
    assert not lanes.shares(Welcome(PROTOCOL_VERSION, lane="gloo"))
    assert not lanes.shares(Welcome(PROTOCOL_VERSION))
