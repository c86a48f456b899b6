"""What LMCache's server loads of ours (``--server-module``): its memory gets tenants, and it tells
relays what it holds.

LMCache calls its listeners with the lock held under which an object comes or goes, so all is heard
in the order in which it happened. What a listener does there takes microseconds.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, TypeAlias

from lmcache.v1.distributed.api import ipc_key_to_object_keys
from lmcache.v1.distributed.internal_api import L1ManagerListener
from lmcache.v1.multiprocess.ext_server_module import server_module_handler
from lmcache.v1.multiprocess.token_hasher import TokenHasher

from kvstore.codec import decode
from kvstore.errors import ConfigError, WireError
from kvstore.lmcache_tenants import LMCacheTenants
from kvstore.lmcache_tier_link import TELL
from kvstore.messages import Enrol, Filed
from kvstore.tier_server import TierServer

Keys: TypeAlias = list[Any]
"""LMCache's own keys of objects."""
ServerContext: TypeAlias = Any


class _Listener(L1ManagerListener):
    """Of what L1, LMCache's memory, says of its objects, what decides whether they can be read."""

    def __init__(self, tier: TierServer, tenants: LMCacheTenants) -> None:
        self._tier = tier
        self._tenants = tenants

    def on_l1_keys_reserved_write(self, keys: Keys) -> None:
        self._tier.reserved(keys)

    def on_l1_keys_write_finished(self, keys: Keys) -> None:
        self._tier.stored(keys)
        self._tenants.written(keys)

    def on_l1_keys_finish_write_and_reserve_read(self, keys: Keys) -> None:
        self._tier.stored(keys)
        self._tenants.written(keys)

    def on_l1_keys_deleted_by_manager(self, keys: Keys) -> None:
        self._tier.gone(keys)
        self._tenants.gone(keys)

    def on_l1_keys_reserved_read(self, keys: Keys) -> None:
        return

    def on_l1_keys_read_finished(self, keys: Keys) -> None:
        return

    def on_l1_keys_accessed(self, keys: Keys) -> None:
        self._tenants.touched(keys)


class TierModule:
    """LMCache's ``EngineModule``; ``feed`` is the URI on which relays are told.

    ``operation_seconds``: so long engines may take to fill what they reserve.
    """

    def __init__(self, context: ServerContext, feed: str, operation_seconds: float) -> None:
        self._context = context
        managers = list(context.storage_manager._l1_managers_by_id.values())
        if len(managers) != 1:
            raise ConfigError("the DRAM tier is one memory: give LMCache's server one L1")
        self._tenants = LMCacheTenants(managers[0], operation_seconds, time.monotonic)
        self._tier = TierServer(feed, self._tenants)
        # LMCache offers these to nobody but itself, and its event bus drops what it cannot keep.
        managers[0].register_listener(_Listener(self._tier, self._tenants))
        self._tenants.start()

    @property
    def context(self) -> ServerContext:
        """As LMCache wants it."""
        return self._context

    def report_status(self) -> dict[str, object]:
        """As LMCache wants it, for its ``/status``."""
        return {}

    def close(self) -> None:
        """As LMCache wants it."""
        self._tier.close()
        self._tenants.close()

    @server_module_handler(TELL)
    def tell(self, payload: bytes) -> bytes:
        """What an engine has to say. Raises WireError, which LMCache answers as a failure."""
        message = decode(payload)
        if isinstance(message, Enrol):
            self._tier.enrol(message)
        elif isinstance(message, Filed):
            self._tier.filed(message, self._objects(message))
        else:
            raise WireError("neither enrols nor files")
        return b""

    def _objects(self, filed: Filed) -> Keys:
        """The keys of the objects that ``filed`` speaks of, by the session's tokens."""
        session = self._context.session_manager.get(filed.session)
        if session is None or session.lookup_ipc_key is None:
            raise WireError("filed in no session")
        key = replace(session.lookup_ipc_key, worker_id=filed.rank)
        hashes = [TokenHasher.hash_to_bytes(h) for h in session.get_hashes(filed.start, filed.end)]
        keys: Keys = ipc_key_to_object_keys(key, hashes, [0])[0]
        return keys


def build_server_modules(build: Any) -> TierModule:  # noqa: ANN401 - LMCache's own type
    """What LMCache calls when it starts.

    ``feed`` and ``operation_seconds`` must be in the module's configuration.
    """
    config = build.config
    return TierModule(build.server_context, config["feed"], config["operation_seconds"])
