"""NIXL with UCX: the sender writes into the receiver's registered memory.

Descriptors of all pages are prepared once, as vLLM's connector does; only what depends on the
request is part of a transfer.
"""

from __future__ import annotations

import base64
import importlib.metadata
import time
from typing import Any

from nixl._api import nixl_agent, nixl_agent_config

from bench.transport.case import BLOCK_BYTES, Case
from bench.transport.content import Pages
from bench.transport.ends.end import MOVE_SECONDS, Bystander, Room, TransportFailed
from bench.transport.frames import Moved


class NixlReceiver(Bystander):
    """Registers its pages and offers where they are; the sender tells when they are full."""

    def __init__(self, room: Room) -> None:
        self._agent = _agent("receiver", room.pages)
        metadata = base64.b64encode(self._agent.get_agent_metadata()).decode()
        self.offer = f"{metadata} {room.pages.ctypes.data}"


class NixlSender(Bystander):
    """Writes page by page, contiguous or not: NIXL merges neighbours itself."""

    def __init__(self, room: Room) -> None:
        self._agent = _agent("sender", room.pages)
        self._held = len(room.pages)
        self._here = self._agent.prep_xfer_dlist(
            "", _pages(room.pages.ctypes.data, self._held), "DRAM"
        )
        self._there: Any = None

    def meet(self, offer: str) -> None:
        """See End."""
        metadata, _, address = offer.partition(" ")
        name = self._agent.add_remote_agent(base64.b64decode(metadata))
        known = name.decode() if isinstance(name, bytes) else name
        self._there = self._agent.prep_xfer_dlist(known, _pages(int(address), self._held), "DRAM")

    def move(self, case: Case) -> Moved:
        """See End."""
        here, there = case.pages("sender", self._held), case.pages("receiver", self._held)
        deadline = time.monotonic() + MOVE_SECONDS
        began = time.monotonic()
        handle = self._agent.make_prepped_xfer("WRITE", self._here, here, self._there, there)
        state = self._agent.transfer(handle)
        while state == "PROC" and time.monotonic() < deadline:
            state = self._agent.check_xfer_state(handle)
        ended = time.monotonic()
        if state != "DONE":
            raise TransportFailed(f"NIXL's transfer is {state}")
        self._agent.release_xfer_handle(handle)
        return Moved(began, ended)


def version() -> str:
    """Of the installed package."""
    return importlib.metadata.version("nixl")


def _agent(name: str, pages: Pages) -> Any:  # noqa: ANN401 - an untyped package
    agent = nixl_agent(name, nixl_agent_config(backends=["UCX"]))
    memory = [(pages.ctypes.data, pages.nbytes, 0, "")]
    agent.register_memory(agent.get_reg_descs(memory, "DRAM"))
    return agent


def _pages(address: int, count: int) -> Any:  # noqa: ANN401 - an untyped package
    return [(address + page * BLOCK_BYTES, BLOCK_BYTES, 0) for page in range(count)]
