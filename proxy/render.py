"""A prompt's exact tokens: made here where that was shown to be exact, else asked of a worker.

::

    a field the proxy does not know, a worker not learned (yet), a template that refuses,
    a prompt that does not fit  ─▶  a worker's rendering, and its own words where it refuses
    all else                    ─▶  template ─▶ pieces ─▶ remembered, or tokenized now

Long texts are tokenized in threads, so that they hold up nobody else.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary

from kvstore.messages import Announce
from kvstore.salts import owner
from proxy import asking
from proxy.asking import Rendered
from proxy.learning import Learner
from proxy.plain import MOST_CHARS, Plain, plain
from proxy.remembered import Remembered
from proxy.render_counts import RenderCounts
from proxy.rendering import Content, Rendering
from proxy.requests import ClientRequest
from proxy.tokenizing import unpack
from proxy.upstream import Upstream

INLINE_CHARS = 4096
"""Texts up to this long (some milliseconds) are not worth a thread."""

TOKEN_CHARS = 16
"""A text of more characters for each token of the model's length hardly fits: workers, which stop
counting in time, are to say so.
"""

THREADS = max(1, min(4, (os.cpu_count() or 1) // 2))

T = TypeVar("T")


class Renderer:
    """Renders for one pipeline. Use as a context; its threads end with it."""

    def __init__(
        self,
        upstream: Upstream,
        learner: Learner,
        remembered: Remembered,
        counts: RenderCounts,
    ) -> None:
        self._upstream = upstream
        self._learner = learner
        self._remembered = remembered
        self._counts = counts
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tokenizing")

    def close(self) -> None:
        """Ends the threads; work under way ends first."""
        self._threads.shutdown()

    def forget_tenant(self, tag: str) -> None:
        """No texts of a tenant are remembered any more."""
        self._remembered.forget_tenant(tag)

    async def tokens(
        self, salt: str, request: ClientRequest, workers: Sequence[Announce], request_id: str
    ) -> Rendered:
        """The prompt of ``request``, as the first of ``workers`` would render it.

        ``salt`` names whose remembered texts may be used. Raises ApiError: a worker's own refusal
        of the request, or 503 if a worker has to be asked and none answers.
        """
        tokens, why = await self._made(salt, request, workers)
        self._counts.rendered("worker" if tokens is None else "proxy", why)
        if tokens is not None:
            return Rendered(tokens)
        return await asking.render(self._upstream, workers, request, request_id)

    async def _made(
        self, salt: str, request: ClientRequest, workers: Sequence[Announce]
    ) -> tuple[list[int] | None, str]:
        """The tokens as made here, or None and the reason."""
        known = self._learner.known(workers[0]) if workers else None
        if known is None:
            return None, "unknown"
        content = known.contents.get(request.route)
        if known.rendering is None or content is None:
            return None, known.why.get(request.route, "unknown")
        prompt = plain(request)
        if prompt is None:
            return None, "fields"
        if prompt.chars > min(MOST_CHARS, TOKEN_CHARS * workers[0].max_model_len):
            return None, "length"
        tokens = await self._rendered(salt, prompt, known.rendering, content)
        if not tokens:
            return None, "refused"
        if not prompt.fits(len(tokens), workers[0].max_model_len):
            return None, "length"
        return tokens, ""

    async def _rendered(
        self, salt: str, prompt: Plain, rendering: Rendering, content: Content
    ) -> list[int] | None:
        if prompt.tokens is not None:
            return rendering.tokens(prompt, content)
        long = prompt.chars > INLINE_CHARS
        text = await self._run(salt, long, lambda: rendering.text(prompt, content))
        around = rendering.around(prompt)
        if text is None or around is None:
            return None
        before, after = around
        return unpack([before, *await self._tokenized(salt, rendering, text), after])

    async def _tokenized(self, salt: str, rendering: Rendering, text: str) -> list[bytes]:
        long = len(text) > INLINE_CHARS
        pieces = await self._run(salt, long, lambda: rendering.tokenizer.pieces(text))
        found = self._remembered.tokens(salt, rendering.number, pieces)
        missing = [piece for piece, tokens in zip(pieces, found, strict=True) if tokens is None]
        new = sum(map(len, missing))
        made = await self._run(
            salt, new > INLINE_CHARS, lambda: rendering.tokenizer.encode(missing)
        )
        self._counts.characters(len(text) - new, new)
        # The last piece ends with the text: one that goes on will not have it.
        whole = len(missing) - (found[-1] is None)
        self._remembered.remember(salt, rendering.number, missing[:whole], made[:whole])
        fresh = iter(made)
        return [next(fresh) if tokens is None else tokens for tokens in found]

    async def _run(self, salt: str, long: bool, work: Callable[[], T]) -> T:
        if not long:
            return work()
        # One at a time of each tenant, whatever its salts, or one could have all threads.
        whose = owner(salt)
        turn = self._turns.setdefault(whose.tag if whose else "", asyncio.Lock())
        async with turn:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
