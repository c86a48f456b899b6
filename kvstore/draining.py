"""Has a worker's relay announce that the worker drains, or that it does no more: for an operator.

Proxies then send it nothing new; what it has it finishes.
"""

from __future__ import annotations

import asyncio
import time

import zmq
import zmq.asyncio

from kvstore.codec import MAX_HEADER_BYTES, decode, encode
from kvstore.credentials import Credentials
from kvstore.errors import ConfigError, WireError
from kvstore.messages import Announce, Drain, Role, WorkerState
from kvstore.transport.sockets import SocketOptions, dial

_AGAIN_SECONDS = 0.2
_OPTIONS = SocketOptions(
    max_frame_bytes=MAX_HEADER_BYTES, send_queue=4, receive_queue=16, heartbeats=False
)


async def drain(
    uri: str, role: Role, wish: Drain, credentials: Credentials, seconds: float
) -> WorkerState:
    """What the worker announces from now on. ``uri``: of its feed.

    Raises ConfigError where nobody answers within ``seconds``.
    """
    context = zmq.asyncio.Context()
    socket = dial(context, uri, "proxy", role, credentials, _OPTIONS)
    try:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            state = await _asked(socket, wish)
            if state is not None:
                return state
            await asyncio.sleep(_AGAIN_SECONDS)
    finally:
        socket.close()
        context.term()
    raise ConfigError(f"{wish.worker} does not answer: does it run?")


async def _asked(socket: zmq.asyncio.Socket, wish: Drain) -> WorkerState | None:
    try:
        await socket.send(encode(wish), zmq.NOBLOCK)
    except zmq.Again:
        return None  # not connected
    if not await socket.poll(int(_AGAIN_SECONDS * 1000)):
        return None
    frames: list[bytes] = await socket.recv_multipart()
    try:
        answer = decode(frames[0]) if len(frames) == 1 else None
    except WireError:
        return None
    if not isinstance(answer, Announce) or answer.worker != wish.worker:
        return None
    return answer.state
