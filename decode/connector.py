"""What vLLM calls on a decode worker. Only forwards: see ``scheduling`` and ``working``.

vLLM makes one instance in its scheduler and one in each worker; on a GPU with one rank both live
in one process, so nothing here is shared through the module.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.distributed.device_communicators import shm_broadcast
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)

from decode.fetching import Receiver, SliceFetching
from decode.orders import Orders
from decode.scheduling import DecodeScheduling
from decode.telling import Teller
from decode.working import DecodeWorking
from kvstore.credentials import load_or_create
from kvstore.engine_facts import (
    CACHE_ORDER,
    block_bytes_of,
    groups_of,
    heads_of,
    layout_of,
    slices_of,
    worker_settings,
)
from kvstore.engine_pool import CarriedOut, adopt, new_blocks
from kvstore.engine_tenants import EngineTenants
from kvstore.engine_waits import nap_between_looks
from kvstore.gate_link import ConnectorLink, ReportLink
from kvstore.handoff import to_params
from kvstore.pages import KVPages, open_pages
from kvstore.slices import slice_address
from kvstore.transport.opening import Setting, open_fetcher
from kvstore.wiping import Wiping

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

    from kvstore.layout import KVLayout
    from kvstore.slices import HeadSlice


class DecodeMetadata(KVConnectorMetadata):
    """A step's orders, as vLLM carries them to the worker."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders

    def anon_repr(self) -> str:
        """What vLLM logs of it when an engine fails: never a prompt or a salt."""
        return f"{type(self).__name__}()"


class DecodeConnector(KVConnectorBase_V1, SupportsHMA):
    """The consumer's connector."""

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if vllm_config.device_config.device_type == "cpu":
            nap_between_looks(shm_broadcast)
        self._config = vllm_config
        self._settings = worker_settings(vllm_config.kv_transfer_config.kv_connector_extra_config)
        self._groups = groups_of(kv_cache_config)
        self._slices = slices_of(vllm_config, self._settings.slices)
        self._block_bytes = block_bytes_of(vllm_config, kv_cache_config)
        self._working: DecodeWorking | None = None
        self._links: list[ReportLink] = []
        if role == KVConnectorRole.SCHEDULER:
            block_size = vllm_config.cache_config.block_size
            self._scheduling = DecodeScheduling(self._groups, block_size, time.monotonic)
            self._relay = ReportLink(self._settings.addresses.tenants)
            self._links = [self._relay]

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: VllmConfig) -> str:
        return CACHE_ORDER

    # -- scheduler

    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        """vLLM has made its scheduler's parts, and takes requests next."""
        pool, worker = adopt(gpu_block_pool), self._settings.worker
        self._tenants = EngineTenants(pool, worker, self._block_bytes, time.monotonic)

    def on_new_request(self, request: Request) -> None:
        if not self._tenants.added(request):
            self._scheduling.added(request)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        external = self._scheduling.matched(request.request_id, num_computed_tokens)
        return external, bool(external)

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        tables = blocks.get_block_ids()
        self._tenants.allocated(request.request_id, tables)
        self._scheduling.allocated(request.request_id, tables, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> DecodeMetadata:
        idle = scheduler_output.total_num_scheduled_tokens == 0
        scheduled = scheduler_output.num_scheduled_tokens
        orders = self._scheduling.step(scheduled, idle)
        orders.wipes = self._tenants.step(new_blocks(scheduler_output), idle)
        self._tell_relay()
        return DecodeMetadata(orders)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        self._scheduling.fetched(connector_output.finished_recving or ())
        if isinstance(done := connector_output.kv_connector_worker_meta, CarriedOut):
            self._tenants.wiped(done.number)
            self._tell_relay()

    def has_pending_push_work(self) -> bool:
        return self._tenants.restless()

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        errand = self._tenants.finished(request.request_id)
        self._scheduling.finished(request.request_id)
        return False, to_params(errand) if errand else None

    def _tell_relay(self) -> None:
        for told in self._tenants.take_told():
            self._relay.report(told)

    # -- worker

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        caches = list(kv_caches.values())
        settings = self._settings
        whole = open_pages(caches)
        layout = layout_of(self._config, settings.model_name, self._groups, caches, whole)
        fetching = []
        for part in self._slices:
            pages = whole if part.count == 1 else open_pages(heads_of(caches, part))
            fetching.append(self._fetching(pages, layout, part))
        self._wiping = Wiping(whole)
        self._working = DecodeWorking(fetching, self._wiping)
        for slice_fetching in fetching:
            slice_fetching.start()

    def _fetching(self, pages: KVPages, layout: KVLayout, part: HeadSlice) -> SliceFetching:
        settings = self._settings
        credentials = load_or_create(Path(settings.state_dir))
        abandon = slice_address(settings.addresses.abandon, part.number)
        link = ConnectorLink(gate=settings.addresses.gate, abandon=abandon)
        teller = Teller(link)
        setting = Setting(settings.ship, credentials, time.monotonic)
        sliced = layout.of_slice(part, pages.page_bytes)
        fetcher = open_fetcher(pages, sliced, setting, teller, link.socket)
        key = credentials.transport_key()
        receiver = Receiver(settings.worker, settings.generation, key, time.monotonic)
        return SliceFetching(fetcher, teller, sliced, receiver)

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        if self._working and isinstance(kv_connector_metadata, DecodeMetadata):
            self._working.before_forward(kv_connector_metadata.orders)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        return

    def wait_for_layer_load(self, layer_name: str) -> None:
        return

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        return

    def wait_for_save(self) -> None:
        return

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        if self._working is None:
            return KVConnectorTransferResults(set(), set(), set())
        reports = self._working.reports()
        return KVConnectorTransferResults(set(), reports.loaded, reports.failed)

    def build_connector_worker_meta(self) -> CarriedOut | None:
        done = self._wiping.take_done() if self._working else 0
        return CarriedOut(done) if done else None

    def shutdown(self) -> None:
        if self._working:
            self._working.stop()
        for link in self._links:
            link.close()
