"""vLLM's own disaggregation: a prefill and a decode engine with the NIXL connector.

The protocol is its proxy's: the prefill leg runs to its end with ``max_tokens`` 1, then the
``kv_transfer_params`` of its answer go with the request to the decode engine, which pulls the KV.
This client does so itself, so the pair is measured without the cost of a proxy between.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.client import Body, Client, Timeline, failed
from bench.counters import CacheCounters
from bench.errors import RequestFailed
from bench.launchers.engine import Engine, start_all
from bench.launchers.system import Setting
from bench.processes import Child

ADVICE = "NIXL, which this benchmark compares with, is not installed: run `make peers`"

_CONNECTOR = {
    "kv_connector": "NixlConnector",
    "kv_role": "kv_both",
    "kv_buffer_device": "cpu",
}
_ASK_PREFILL = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


def installed() -> bool:
    """Whether the NIXL package is there."""
    return importlib.util.find_spec("nixl") is not None


class NixlPair:
    """Prefill on core 0, decode on core 1. ``lane`` is of no meaning: there is one of each."""

    name = "nixl"

    def __init__(self, setting: Setting, client: Client) -> None:
        self._client = client
        self._side_port = setting.first_port + 50
        self._prefill = Engine("nixl-prefill", 0, setting, client)
        self._decode = Engine("nixl-decode", 1, setting, client)

    async def start(self) -> None:
        """See System."""
        await start_all(
            {
                engine: (_CONNECTOR, {"VLLM_NIXL_SIDE_CHANNEL_PORT": str(self._side_port + index)})
                for index, engine in enumerate((self._prefill, self._decode))
            }
        )

    async def stop(self) -> None:
        """See System."""
        await self._decode.stop()
        await self._prefill.stop()

    async def stream(self, body: Body, intended: float, lane: int = 0) -> Timeline:
        """See System. Cached tokens are the prefill engine's: decode's count what it pulled."""
        try:
            answer = await self._prefilled(body)
        except RequestFailed as error:
            return failed(intended, str(error))
        passed = {**body, "kv_transfer_params": answer["kv_transfer_params"]}
        timeline = await self._client.stream(self._decode.endpoint, passed, intended)
        details = answer["usage"].get("prompt_tokens_details") or {}
        return replace(timeline, cached_tokens=details.get("cached_tokens") or 0)

    async def complete(self, body: Body, lane: int = 0) -> Mapping[str, Any]:
        """See System."""
        prefilled = await self._prefilled(body)
        passed = {**body, "kv_transfer_params": prefilled["kv_transfer_params"]}
        return await self._client.post(self._decode.endpoint, "/v1/completions", passed)

    async def forget(self) -> None:
        """See System."""
        await self._decode.reset()

    async def counters(self) -> Mapping[str, CacheCounters]:
        """See System."""
        return {
            "prefill": await self._prefill.counters(),
            "decode": await self._decode.counters(),
        }

    def children(self) -> Sequence[Child]:
        """See System."""
        return [self._prefill.child, self._decode.child]

    async def _prefilled(self, body: Body) -> Mapping[str, Any]:
        leg = {
            **body,
            "max_tokens": 1,
            "kv_transfer_params": _ASK_PREFILL,
        }
        answer = await self._client.post(self._prefill.endpoint, "/v1/completions", leg)
        if not answer.get("kv_transfer_params"):
            raise RequestFailed(f"the prefill leg gave no kv_transfer_params: {answer}"[:300])
        return answer
