"""One connection to LMCache's server, and a worker's place in its shared memory.

Everything here may take up to the time it is given and then raises TierDown; it runs on the
tiers' own threads only. We speak LMCache's own typed RPC client and leave out its adapters: they
block for minutes, keep one future per request, and copy after a caller has given up. Its pickle
path is never taken: a server without shared memory is a tier that is down.
"""

from __future__ import annotations

import itertools
import mmap
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import zmq
from lmcache.v1.multiprocess.custom_types import (
    IPCCacheServerKey,
    RegisterEngineDrivenContextPayload,
)
from lmcache.v1.multiprocess.protocols.server_module import ServerModuleCallRequest
from lmcache.v1.multiprocess.transport.factory import RequestClientFactory

from kvstore.codec import encode
from kvstore.errors import TierDown
from kvstore.messages import Filed, TierMessage
from kvstore.tier_seal import SEAL_BYTES, Bytes

ChunksKey: TypeAlias = Any
"""LMCache's name for a token range of a prompt (its own types are not checked here)."""
Pending: TypeAlias = Any
"""LMCache's future of an answer."""
Answer: TypeAlias = Any

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 -- where POSIX shared memory has its names

TELL = "kvferry.tell"
"""The one method of our own that the server has (``kvstore.lmcache_server_module``)."""

_SEGMENT_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_PAGE = 4096
MOMENT_SECONDS = 0.25


@dataclass(frozen=True)
class Naming:
    """How this engine's chunks are named in LMCache."""

    namespace: str
    ranks: int

    def of_windows(self) -> Naming:
        """How the same engine's windows are named: their objects have another size."""
        return Naming(f"{self.namespace}-window", self.ranks)

    def key(
        self,
        tokens: tuple[int, ...],
        salt: str,
        span: tuple[int, int],
        session: str,
        rank: int | None,
    ) -> ChunksKey:
        """LMCache's key of tokens ``[span)``; ``rank`` None stands for all of them."""
        return IPCCacheServerKey(
            model_name=self.namespace,
            world_size=self.ranks,
            worker_id=rank,
            token_ids=tokens,
            start=span[0],
            end=span[1],
            request_id=session,
            cache_salt=salt,
            num_kv_readers=1,
        )


class Link:
    """A connection; ``client`` is LMCache's, every method of which returns a future.

    Once ``closing()`` is true an answer is awaited for a moment only, so that a server that hangs
    does not keep us from ending.
    """

    def __init__(self, port: int, closing: Callable[[], bool] = lambda: False) -> None:
        self._port = port
        self._closing = closing
        self._context = zmq.Context()
        # Nothing unsent may keep a process from ending: the server may be gone.
        self._context.setsockopt(zmq.LINGER, 0)
        self.client = RequestClientFactory.create(f"tcp://127.0.0.1:{port}", context=self._context)

    def call(self, future: Pending, seconds: float) -> Answer:
        """The answer. Raises TierDown when there is none in time (LMCache answers no failure)."""
        until = time.monotonic() + seconds
        while not future.wait(timeout=max(0.0, min(MOMENT_SECONDS, until - time.monotonic()))):
            if time.monotonic() < until and not self._closing():
                continue
            raise TierDown(f"no answer from LMCache on port {self._port} in {seconds:.2f} s")
        if future.exception_ is not None:
            raise TierDown(f"LMCache's client failed: {type(future.exception_).__name__}")
        return future.result_

    def ping(self, seconds: float) -> None:
        """Raise TierDown unless the server is there."""
        self.call(self.client.ping(None), seconds)

    def require_chunk(self, chunk_tokens: int, seconds: float) -> None:
        """Raise TierDown unless the server is there and has chunks of that size."""
        theirs = self.call(self.client.get_chunk_size(), seconds)
        if theirs != chunk_tokens:
            raise TierDown(f"LMCache has chunks of {theirs} tokens, not {chunk_tokens}")

    def tell(self, message: TierMessage, seconds: float) -> None:
        """Tell our own module in the server. Raise TierDown when it does not take it."""
        request = ServerModuleCallRequest(TELL, encode(message))
        answer = self.call(self.client.server_module_call(request), seconds)
        if not answer.success:
            # Why is in the server's own log; it might quote what ours must not.
            raise TierDown(f"LMCache's server refuses our {type(message).__name__}")

    def close(self) -> None:
        """Give the connection up, with everything unsent or unanswered on it."""
        self.client.close()
        self._context.term()


def map_segment(name: str, size: int) -> Bytes:
    """``size`` bytes of the server's shared memory, all of it present.

    Raises TierDown when it is not there, not ours, or the host has not the memory: a write to
    memory that cannot be provided would kill the process.
    """
    bare = name.lstrip("/")
    if not _SEGMENT_NAME.fullmatch(bare) or size <= 0:
        raise TierDown("LMCache offers no shared memory: start it with --shm-name, not lazily")
    try:
        descriptor = os.open(SHARED_MEMORY / bare, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise TierDown(f"cannot open LMCache's shared memory: {error.strerror}") from None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_size < size:
            raise TierDown("LMCache's shared memory is not what it says")
        os.posix_fallocate(descriptor, 0, size)
        segment = np.frombuffer(mmap.mmap(descriptor, size), dtype=np.uint8)
    except OSError as error:
        raise TierDown(f"LMCache's shared memory is not usable: {error.strerror}") from None
    finally:
        os.close(descriptor)
    segment[::_PAGE].max()  # Faults every page in now, not under somebody's first request.
    return segment


class Registration:
    """A worker's registration with one life of the server, under an id that is used once.

    A server that has restarted does not know the id and answers nothing to it, so memory of an
    earlier life cannot be taken for the present one's.
    """

    def __init__(self, link: Link, naming: Naming, rank: int, object_bytes: int) -> None:
        self._link = link
        self._naming = naming
        self._rank = rank
        self._slot_bytes = object_bytes + SEAL_BYTES
        self._instance = secrets.randbits(63)
        self._segment: Bytes | None = None
        self._reserved: set[str] = set()
        self._numbers = itertools.count()

    def open(self, block_size: int, seconds: float) -> None:
        """Register and map the shared memory. An object is plain bytes."""
        answer = self._call(
            self._link.client.register_kv_cache_engine_driven_context(
                RegisterEngineDrivenContextPayload(
                    instance_id=self._instance,
                    model_name=self._naming.namespace,
                    world_size=self._naming.ranks,
                    block_size=block_size,
                    num_layers=1,
                    hidden_dim_size=self._slot_bytes,
                    dtype_str="uint8",
                    use_mla=True,
                    num_physical_slots=1,
                )
            ),
            seconds,
        )
        self._segment = map_segment(answer.shm_name, answer.pool_size)

    def probe(self, seconds: float) -> None:
        """Raise TierDown unless the server is there and knows us (a restarted one does not)."""
        client = self._link.client
        alive = client.ping(self._instance)
        session = f"probe-{self._instance}"
        known = client.commit_retrieve(
            self._naming.key((), "", (0, 0), session, self._rank), self._instance
        )
        self._call(alive, seconds)
        self._call(known, seconds)

    def reserve(self, key: ChunksKey, seconds: float) -> list[tuple[int, Bytes]]:
        """Memory for those chunks of ``key`` that the server lacks: (position, slot) pairs.

        Empty: it has all of them, or no room. What is neither committed nor given back stays locked
        until LMCache's write locks run out.
        """
        self._reserved.add(key.request_id)
        answer = self._call(self._link.client.prepare_store(key, self._instance), seconds)
        slots, positions = answer.context.get("slots"), answer.context.get("chunk_indices")
        if not isinstance(slots, list) or not isinstance(positions, list):
            raise TierDown("LMCache asks for pickled KV, which is refused")
        if not slots:
            self._reserved.discard(key.request_id)
        return [(at, self._view(slot)) for at, slot in zip(positions, slots, strict=True)]

    def file(self, filed: Filed, seconds: float) -> None:
        """What was reserved has been filled with ``filed``; to be called before ``commit``."""
        self._link.tell(filed, seconds)

    def commit(self, key: ChunksKey, seconds: float) -> bool:
        """What was reserved for ``key`` is complete: make it visible."""
        done = self._call(self._link.client.commit_store(key, self._instance, b""), seconds)
        self._reserved.discard(key.request_id)
        return bool(done)

    def give_back(self, key: ChunksKey, slots: list[tuple[int, Bytes]], seconds: float) -> None:
        """What was reserved for ``key`` will not be filled. Our module drops what has no seal."""
        for _, slot in slots:
            slot[-SEAL_BYTES:] = 0
        if slots:
            self.commit(key, seconds)
        self.forget(key.request_id)

    def read(self, key: ChunksKey, seconds: float) -> list[Bytes] | None:
        """The slots of ``key``, which a lookup has locked; None: not all of them are there."""
        answer = self._call(self._link.client.prepare_retrieve(key, self._instance), seconds)
        slots = answer.context.get("slots")
        if not answer.success or not slots:
            return None
        return [self._view(slot) for slot in slots]

    def unlock(self, key: ChunksKey, seconds: float) -> None:
        """What ``read`` returned is no longer used."""
        self._call(self._link.client.commit_retrieve(key, self._instance), seconds)

    def session(self) -> str:
        """A new name: LMCache keeps hashes by it, so no two prompts may share one."""
        return f"{self._instance:x}-{next(self._numbers)}"

    def forget(self, session: str) -> None:
        """The session is over; nobody waits for the answer."""
        self._link.client.end_session(session)

    def clear(self) -> None:
        """Ask the server to drop everything that is not locked; nobody waits for the answer."""
        self._link.client.clear(False)

    def leftover(self) -> int | None:
        """The id to sign off; None when that would publish a reservation left unfilled.

        LMCache reaps the id by itself, later than its write locks run out.
        """
        return None if self._reserved else self._instance

    def sign_off(self, instance: int, seconds: float) -> None:
        """Unregister ``instance``, this worker's present or former id, with its read locks."""
        client = self._link.client
        self._call(client.unregister_kv_cache_engine_driven_context(instance), seconds)

    def _call(self, future: Pending, seconds: float) -> Answer:
        return self._link.call(future, seconds)

    def _view(self, slot: dict[str, Any]) -> Bytes:
        assert self._segment is not None
        start, length = int(slot.get("offset", -1)), int(slot.get("length", -1))
        if length != self._slot_bytes or start < 0 or start + length > len(self._segment):
            raise TierDown("LMCache holds chunks of another size under this model's name")
        return self._segment[start : start + length]
