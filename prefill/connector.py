"""What vLLM calls on a prefill worker. Only forwards: see ``scheduling`` and ``working``.

vLLM makes one instance in its scheduler and one in each worker; on a GPU with one rank both live
in one process, so nothing here is shared through the module.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
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
from kvstore.gate_link import ReportLink
from kvstore.handoff import to_params
from kvstore.lmcache_tier import open_copy, open_lookup
from kvstore.pages import open_pages
from kvstore.slices import slice_address
from kvstore.transport.opening import Setting, open_shipper
from kvstore.wiping import Wiping
from prefill.orders import Orders
from prefill.scheduling import PrefillScheduling, Scheduled
from prefill.working import PrefillWorking

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


class PrefillMetadata(KVConnectorMetadata):
    """A step's orders, as vLLM carries them to the worker."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders

    def anon_repr(self) -> str:
        """What vLLM logs of it when an engine fails: never a prompt or a salt."""
        return f"{type(self).__name__}()"


class PrefillConnector(KVConnectorBase_V1, SupportsHMA):
    """The producer's connector."""

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
        self._working: PrefillWorking | None = None
        self._links: list[ReportLink] = []
        if role == KVConnectorRole.SCHEDULER:
            self._lookup = open_lookup(self._settings, vllm_config, self._groups)
            self._gate = ReportLink(self._settings.addresses.gate)
            self._relay = ReportLink(self._settings.addresses.tenants)
            self._links = [self._gate, self._relay]

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: VllmConfig) -> str:
        return CACHE_ORDER

    # -- scheduler

    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        """vLLM has made its scheduler's parts, and takes requests next."""
        pool, settings = adopt(gpu_block_pool), self._settings
        self._tenants = EngineTenants(pool, settings.worker, self._block_bytes, time.monotonic)
        self._scheduling = PrefillScheduling(
            self._lookup,
            self._groups,
            self._config.cache_config.block_size,
            settings.ship.lease_seconds,
            pool,
            time.monotonic,
        )

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

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> PrefillMetadata:
        self._scheduling.preempted(scheduler_output.preempted_req_ids or ())
        self._scheduling.flush(self._tenants.flushing())
        idle = scheduler_output.total_num_scheduled_tokens == 0
        orders = self._scheduling.step(_scheduled(scheduler_output), idle)
        orders.wipes = self._tenants.step(new_blocks(scheduler_output), idle)
        for held in self._scheduling.take_told():
            self._gate.report(held)  # told again while nothing comes of it
        self._tell_relay()
        return PrefillMetadata(orders)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        self._scheduling.loaded(connector_output.finished_recving or ())
        self._scheduling.sent(connector_output.finished_sending or ())
        if isinstance(done := connector_output.kv_connector_worker_meta, CarriedOut):
            self._tenants.wiped(done.number)
            self._tell_relay()

    def has_pending_push_work(self) -> bool:
        return self._tenants.restless()

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        errand = self._tenants.finished(request.request_id)
        report = errand or self._scheduling.report(request.request_id)
        waits = self._scheduling.finished(request.request_id)
        return waits, to_params(report) if report else None

    def _tell_relay(self) -> None:
        for told in self._tenants.take_told():
            self._relay.report(told)

    # -- worker

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        caches = list(kv_caches.values())
        settings = self._settings
        whole = open_pages(caches)
        layout = layout_of(self._config, settings.model_name, self._groups, caches, whole)
        credentials = load_or_create(Path(settings.state_dir))
        setting = Setting(settings.ship, credentials, time.monotonic)
        shippers = []
        for part in self._slices:
            pages = whole if part.count == 1 else open_pages(heads_of(caches, part))
            shippers.append(
                open_shipper(
                    slice_address(settings.addresses.ship, part.number),
                    pages,
                    layout.of_slice(part, pages.page_bytes),
                    settings.generation,
                    setting,
                )
            )
        tier = open_copy(settings, self._config, layout)
        tier.attach(kv_caches)
        self._wiping = Wiping(whole)
        self._working = PrefillWorking(shippers, tier, self._wiping)
        for shipper in shippers:
            shipper.start()

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        if self._working and isinstance(kv_connector_metadata, PrefillMetadata):
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
        metadata = self._get_connector_metadata()
        if self._working and isinstance(metadata, PrefillMetadata):
            self._working.after_forward(metadata.orders)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        if self._working is None:
            return KVConnectorTransferResults(set(), set(), set())
        reports = self._working.reports()
        return KVConnectorTransferResults(reports.sent, reports.loaded, reports.failed)

    def build_connector_worker_meta(self) -> CarriedOut | None:
        done = self._wiping.take_done() if self._working else 0
        return CarriedOut(done) if done else None

    def shutdown(self) -> None:
        if self._working:
            self._working.stop()
        for link in self._links:
            link.close()


def _scheduled(output: SchedulerOutput) -> Iterator[Scheduled]:
    """Every request in this step, with its block tables."""
    state = output.kv_connector_block_state
    cached = output.scheduled_cached_reqs
    computed = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
    computed |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    for request, count in computed.items():
        tables = state.get_block_ids(request)
        if tables is not None:
            yield Scheduled(request, count, output.num_scheduled_tokens[request], tables)
