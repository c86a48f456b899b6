"""One HTTP call as the application behind a gate sees it, until the gate ends it.

vLLM aborts a request when its caller goes, and knows no other way. So a call is ended by letting
the application believe that, while the caller is still there and is answered by the gate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

GRACE_SECONDS = 1.0
"""How long the application may take to believe it; then its task is cancelled."""

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Exchange:
    """``receive`` and ``send`` of a call, as ASGI's, for the application."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._ended = asyncio.Event()
        self.answered = False
        """Whether the application's answer has begun."""

    def end(self) -> None:
        """The caller seems to have gone; nothing of the application's is sent any more."""
        self._ended.set()

    async def wait_ended(self) -> None:
        """Returns when it has been ended."""
        await self._ended.wait()

    async def receive(self) -> Event:
        """As ASGI's."""
        receiving = asyncio.ensure_future(self._receive())
        ended = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait({receiving, ended}, return_when=asyncio.FIRST_COMPLETED)
            return receiving.result() if receiving.done() else {"type": "http.disconnect"}
        finally:
            receiving.cancel()
            ended.cancel()

    async def send(self, event: Event) -> None:
        """As ASGI's."""
        if not self._ended.is_set():
            self.answered = True
            await self._send(event)


async def finish(serving: asyncio.Future[None]) -> None:
    """Awaits the application's end; after ``GRACE_SECONDS`` it is cancelled."""
    await asyncio.wait({serving}, timeout=GRACE_SECONDS)
    serving.cancel()
    await asyncio.wait({serving})
    if not serving.cancelled():
        serving.exception()  # is nobody's: the call has been ended
