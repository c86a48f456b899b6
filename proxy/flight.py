"""What one request holds while it is served, and gives back in one place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

from kvstore.clock import Clock
from kvstore.messages import Announce
from proxy.loads import Loads
from proxy.upstream import Reply
from proxy.usage import PrefillEnd


class Flight:
    """The legs of one request. ``release`` aborts what is unfinished; it is idempotent.

    ``decode`` is the worker that has the decode leg. ``settled``: it has answered, so a failing
    prefill leg no longer concerns it. ``routed``, ``prefill_ended`` and ``answered`` say when it
    began to wait for a worker or was sent to one, the prefill leg ended and the decode leg's answer
    began to come.
    """

    def __init__(self, loads: Loads, clock: Clock) -> None:
        self._loads = loads
        self._clock = clock
        self._decode_counted = ExitStack()
        self._occupied = ExitStack()
        self._reply: Reply | None = None
        self.decode: Announce | None = None
        self.prefill: asyncio.Task[PrefillEnd] | None = None
        self.routed: float | None = None
        self.prefill_ended: float | None = None
        self.answered: float | None = None
        self.settled = asyncio.Event()

    def occupy(self, leave: Callable[[], None]) -> None:
        """A prefill worker's time is taken; ``leave`` gives back what is left of it."""
        self._occupied.callback(leave)

    def counted(self, worker: Announce) -> AbstractContextManager[None]:
        """Counts one request on ``worker`` while entered."""
        return self._loads.counted(worker)

    def to_decode(self, worker: Announce) -> None:
        """The decode leg is about to be sent to ``worker``, or anew to another one."""
        self._decode_counted.close()
        self._decode_counted.enter_context(self.counted(worker))
        self.decode = worker
        self.note_routed()

    def to_prefill(self, leg: asyncio.Task[PrefillEnd]) -> None:
        """The prefill leg is under way; when it ends is noted."""
        self.prefill = leg
        leg.add_done_callback(self._note_prefill_end)

    def hold(self, reply: Reply) -> None:
        """The decode leg's reply is being read."""
        self._reply = reply
        self.answered = self._clock()

    async def prefill_end(self, seconds: float) -> PrefillEnd | None:
        """How the prefill leg ended; None if there was none. Waits for ``seconds`` at most."""
        if self.prefill is None:
            return None
        await asyncio.wait({self.prefill}, timeout=seconds)
        if not self.prefill.done() or self.prefill.cancelled():
            return PrefillEnd(connected=True)
        return self.prefill.result()

    def prefill_result(self) -> PrefillEnd | None:
        """How the prefill leg ended; None if there was none, or it is still under way."""
        if self.prefill is None or self.prefill_ended is None or self.prefill.cancelled():
            return None
        return self.prefill.result()

    def note_routed(self) -> None:
        """It is known who is to serve it, or what kind of worker it waits for."""
        if self.routed is None:
            self.routed = self._clock()

    def _note_prefill_end(self, _leg: asyncio.Task[PrefillEnd]) -> None:
        self.prefill_ended = self._clock()

    async def drop_prefill(self) -> None:
        """Aborts the prefill leg if it still runs, and leaves its worker."""
        self._occupied.close()
        if self.prefill is not None and not self.prefill.done():
            self.prefill.cancel()
            await asyncio.wait({self.prefill})

    async def release(self) -> None:
        """Gives back everything; aborts both legs where they are unfinished.

        All of it is set off before anything is awaited, so being cancelled here loses nothing.
        """
        self.settled.set()
        self._decode_counted.close()
        if self._reply is not None:
            self._reply.close()
        await self.drop_prefill()
