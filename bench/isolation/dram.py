"""LMCache's memory, with tenants in it and as LMCache has it by itself: an LRU with a watermark."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

import torch
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.config import EvictionConfig, L1ManagerConfig, L1MemoryManagerConfig
from lmcache.v1.distributed.error import L1Error
from lmcache.v1.distributed.internal_api import L1ManagerListener
from lmcache.v1.distributed.l1_manager import L1Manager
from lmcache.v1.distributed.storage_controllers.eviction_controller import L1EvictionController

from bench.isolation.caches import Tier
from bench.simulation.prompts import Prompt
from kvstore.lmcache_tenants import LMCacheTenants
from kvstore.salts import Scope, salt
from kvstore.tier_seal import SEAL_BYTES

_BYTES = 4096
"""Of an object: as few as LMCache gives away, since nobody reads what is in it."""
_LAYOUT = MemoryLayoutDesc(shapes=[torch.Size([1, 1, _BYTES])], dtypes=[torch.uint8])
_SALT = salt(bytes(32), Scope("only", 0))
_WRITER = "bench"


class _Objects:
    """One L1; see Memory."""

    def __init__(self, objects: int) -> None:
        name = f"lmcache_l1_pool_bench-{uuid.uuid4().hex[:12]}"
        memory = L1MemoryManagerConfig(objects * _BYTES, use_lazy=False, shm_name=name)
        self.manager = L1Manager(
            L1ManagerConfig(memory, write_ttl_seconds=600, read_ttl_seconds=600)
        )

    def close(self) -> None:
        """See Memory."""
        self.manager.close()

    def serve(self, prompt: Prompt) -> int:
        """See Memory."""
        self.settle()
        keys = [ObjectKey(name, "model", 0, 0, _SALT) for name in prompt.whole]
        found = self._find(keys)
        self._store(keys[found:])
        self.manager.touch_keys(keys)
        return found

    def settle(self) -> None:
        """What a thread beside would do by now."""

    def _find(self, keys: Sequence[Any]) -> int:
        found = 0
        for key in keys:
            if self.manager.reserve_read([key])[key][1] is None:
                break
            found += 1
        self.manager.finish_read(list(keys[:found]))
        return found

    def _store(self, keys: Sequence[Any]) -> None:
        answers = self.manager.reserve_write(list(keys), [False] * len(keys), _LAYOUT, _WRITER)
        stored = [key for key, (error, _) in answers.items() if error == L1Error.SUCCESS]
        for key in stored:
            answers[key][1].raw_data[_BYTES - SEAL_BYTES : _BYTES] = 1  # or it would not be kept
        self.manager.finish_write(stored, tag=_WRITER)


class Plain(_Objects):
    """As LMCache's server has it with its defaults: it looks whether it has to evict before every
    prompt, and not once a second.
    """

    def __init__(self, objects: int) -> None:
        super().__init__(objects)
        self._config = EvictionConfig("LRU")
        self._evictor = L1EvictionController(self.manager, self._config)

    def settle(self) -> None:
        """See _Objects. LMCache's own loop, once around."""
        used, total = self.manager.get_memory_usage()
        if used / total < self._config.trigger_watermark:
            return
        actions = self._evictor._eviction_policy.get_eviction_actions(
            self._config.eviction_ratio, key_eligible_filter=self.manager.is_key_evictable
        )
        for action in actions:
            self._evictor.execute_eviction_action(action)


class WithTenants(_Objects):
    """As kvferry's server module has it."""

    def __init__(self, objects: int) -> None:
        super().__init__(objects)
        self._tenants = LMCacheTenants(self.manager, 1.0, time.monotonic)
        self.manager.register_listener(_Listener(self._tenants))

    def settle(self) -> None:
        """See _Objects."""
        self._tenants.turn()


class _Listener(L1ManagerListener):
    """Tells the tenants what the server's module does."""

    def __init__(self, tenants: LMCacheTenants) -> None:
        self._tenants = tenants

    def on_l1_keys_reserved_read(self, keys: list[Any]) -> None:
        return

    def on_l1_keys_read_finished(self, keys: list[Any]) -> None:
        return

    def on_l1_keys_reserved_write(self, keys: list[Any]) -> None:
        return

    def on_l1_keys_write_finished(self, keys: list[Any]) -> None:
        self._tenants.written(keys)

    def on_l1_keys_finish_write_and_reserve_read(self, keys: list[Any]) -> None:
        self._tenants.written(keys)

    def on_l1_keys_deleted_by_manager(self, keys: list[Any]) -> None:
        self._tenants.gone(keys)

    def on_l1_keys_accessed(self, keys: list[Any]) -> None:
        self._tenants.touched(keys)


DRAM = Tier("dram", WithTenants, Plain, "lmcache")
