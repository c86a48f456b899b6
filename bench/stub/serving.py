"""Serves completions: who waits, how long each part takes, what is written when."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any

from bench.stub import wire
from bench.stub.cache import PrefixCache
from bench.stub.config import StubConfig
from bench.stub.requests import Asked


class Service:
    """What all connections of a stub share: its cache, its queue and its counts."""

    def __init__(self, config: StubConfig) -> None:
        self.config = config
        self.cache = PrefixCache(config.cache_blocks, config.block_words)
        self.frames = {chat: wire.Frames(chat, config.model) for chat in (False, True)}
        self.queries = 0
        self.hits = 0
        self._numbers = count(1)
        self._busy = 0
        self._waiting: deque[Serving] = deque()

    def admit(self, serving: Serving) -> None:
        """Start it, now or when its turn comes."""
        if self.config.slots and self._busy >= self.config.slots:
            self._waiting.append(serving)
        else:
            self._busy += 1
            serving.start()

    def leave(self) -> None:
        """One that had started is over: the next one's turn."""
        if self._waiting:
            self._waiting.popleft().start()
        else:
            self._busy -= 1

    def give_up(self, serving: Serving) -> None:
        """One that waits will not be wanted any more."""
        self._waiting.remove(serving)

    def number(self) -> int:
        """The next completion's, from 1."""
        return next(self._numbers)

    def metrics(self) -> bytes:
        """The counters, named as vLLM names them."""
        told = [
            ("counter", "prefix_cache_queries_total", self.queries),
            ("counter", "prefix_cache_hits_total", self.hits),
            ("gauge", "num_requests_running", self._busy),
            ("gauge", "num_requests_waiting", len(self._waiting)),
        ]
        labels = f'{{engine="0",model_name="{self.config.model}"}}'
        lines = [
            f"# TYPE vllm:{name} {kind}\nvllm:{name}{labels} {float(value)}\n"
            for kind, name, value in told
        ]
        return "".join(lines).encode()


class Serving:
    """One completion, from its arrival to the last byte of its answer.

    ``ended`` is called when all is written, with False when the connection is to be cut instead.
    """

    def __init__(
        self,
        service: Service,
        asked: Asked,
        transport: asyncio.Transport,
        dropped: bool,
        ended: Callable[[bool], None],
    ) -> None:
        self._received = time.monotonic()
        self._service = service
        self._asked = asked
        self._transport = transport
        self._ended = ended
        self._frames = service.frames[asked.chat]
        self._chain = service.cache.chain(asked.scope, asked.words)
        self._cached = 0
        self._factors = factors(service.config, asked)
        self._cut_at = (asked.output_tokens + 1) // 2 if dropped else None
        self._written = 0
        self._first = 0.0
        self._due = 0.0
        self._started = False
        self._timer: asyncio.Handle | None = None

    def start(self) -> None:
        """Its turn has come: the prefill begins."""
        service, config, words = self._service, self._service.config, len(self._asked.words)
        self._started = True
        self._cached = service.cache.find(self._chain, words)
        service.queries += words
        service.hits += self._cached
        seconds = config.ttft_ms / 1e3 + (words - self._cached) * config.prefill_us / 1e6
        self._due = time.monotonic()
        self._after(seconds, self._prefilled)

    def stop(self) -> None:
        """The client has gone before the end; nothing more is written."""
        if not self._started:
            self._service.give_up(self)
            return
        if self._timer is not None:
            self._timer.cancel()
        self._service.leave()

    def _after(self, seconds: float, step: Callable[[], None]) -> None:
        # Counted from when the step before was due, so that late timers do not add up.
        self._due += seconds * next(self._factors)
        left = self._due - time.monotonic()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(left, step) if left > 0 else loop.call_soon(step)

    def _prefilled(self) -> None:
        self._service.cache.keep(self._chain)
        if self._asked.stream:
            self._transport.write(wire.STREAM_HEAD + self._frames.opening)
        self._first = time.monotonic()
        if self._service.config.itl_ms == 0 and self._cut_at is None:
            if self._asked.stream:
                self._end(self._frames.run(self._asked.output_tokens))
            else:
                self._end(b"")
        else:
            self._token()

    def _token(self) -> None:
        index = self._written
        self._written += 1
        last = self._written == self._asked.output_tokens
        frame = self._frames.token(index, last) if self._asked.stream else b""
        if self._written == self._cut_at:
            self._transport.write(frame)
            self._leave(False)
        elif last:
            self._end(frame)
        else:
            if frame:
                self._transport.write(frame)
            self._after(self._service.config.itl_ms / 1e3, self._token)

    def _end(self, frames: bytes) -> None:
        asked = self._asked
        now = time.monotonic()
        told = {"received": self._received, "first_token": self._first, "last": now}
        if asked.stream:
            usage = self._usage() if asked.include_usage else None
            self._transport.write(frames + self._frames.ending(usage, told))
        else:
            self._transport.write(self._frames.answer(asked.output_tokens, self._usage(), told))
        self._leave(True)

    def _leave(self, whole: bool) -> None:
        self._ended(whole)
        self._service.leave()

    def _usage(self) -> Mapping[str, Any]:
        words, output = len(self._asked.words), self._asked.output_tokens
        return {
            "prompt_tokens": words,
            "completion_tokens": output,
            "total_tokens": words + output,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }


def factors(config: StubConfig, asked: Asked) -> Iterator[float]:
    """What each delay of a completion is multiplied with: of its content, not of the moment."""
    if not config.jitter:
        while True:
            yield 1.0
    source = random.Random(config.seed ^ asked.seed())
    while True:
        yield source.lognormvariate(0.0, config.jitter)
