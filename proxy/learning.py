"""Learning, beside all requests, how workers turn text into tokens, and whether the proxy can.

Every decode worker that comes up is asked once for its text rules. Before they are used, the
samples (``proxy.samples``) are rendered here and there; where one token differs, or nothing could
be compared, that route stays with the worker.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from kvstore.errors import ApiError, WireError, WorkerLost
from kvstore.messages import Announce
from kvstore.text_rules import MAX_TEXT_RULES_BYTES, TEXT_RULES_PATH, text_rules
from proxy import asking
from proxy.plain import plain
from proxy.rendering import Content, Rendering
from proxy.requests import ClientRequest, Route, parse
from proxy.samples import SAMPLES
from proxy.upstream import Upstream

LOOK_SECONDS = 1.0
"""Between looks at who is there."""

LEARN_SECONDS = 60.0
"""For all that is asked of one worker."""

MOST_LOADED = 8
"""Different tokenizers loaded at a time; a worker with another one beside these renders itself."""

_REQUEST = "learning"

log = logging.getLogger("kvferry.proxy")

_Key = tuple[str, str]


@dataclass
class Known:
    """What is known of one worker. ``contents``: how its routes' prompts are made here.

    A route that is not among them is left to the worker, for the reason in ``why``.
    """

    rendering: Rendering | None = None
    contents: dict[Route, Content] = field(default_factory=dict)
    why: dict[Route, str] = field(default_factory=dict)


class Learner:
    """Knows the text rules of live decode workers. ``live`` names those that are ready now.

    ``forget`` is told the number of a rendering that is of no use any more.
    """

    def __init__(
        self,
        upstream: Upstream,
        live: Callable[[], Sequence[Announce]],
        forget: Callable[[int], None],
    ) -> None:
        self._upstream = upstream
        self._live = live
        self._forget = forget
        self._known: dict[_Key, Known] = {}
        self._looks: dict[_Key, int] = {}
        self._loaded: dict[bytes, Rendering] = {}

    def known(self, worker: Announce) -> Known | None:
        """What is known of ``worker`` as it runs now."""
        return self._known.get(_key(worker))

    async def run(self) -> None:
        """Learns until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Learns of all workers that are new, one after the other, and forgets who is gone.

        What they told stays loaded: they mostly come back with the same.
        """
        live = {_key(worker): worker for worker in self._live()}
        self._known = {key: known for key, known in self._known.items() if key in live}
        self._looks = {key: self._looks.get(key, 0) + 1 for key in live}
        for key, worker in live.items():
            # One that did not answer is asked again at its 2nd, 4th, 8th, … look.
            if key not in self._known and self._looks[key].bit_count() == 1:
                await self._try(key, worker)

    async def _try(self, key: _Key, worker: Announce) -> None:
        try:
            async with asyncio.timeout(LEARN_SECONDS):
                self._known[key] = await self._learn(worker)
        except (TimeoutError, WorkerLost) as error:
            log.warning("%s tells no text rules: %s", worker.worker, type(error).__name__)

    async def _learn(self, worker: Announce) -> Known:
        reply = await self._upstream.get(worker.http, TEXT_RULES_PATH)
        try:
            raw = await reply.body(MAX_TEXT_RULES_BYTES)
        finally:
            reply.close()
        try:
            rendering = await self._load(raw) if reply.status == 200 else None
        except WireError as error:
            log.warning("%s: its text rules are of no use: %s", worker.worker, error)
            rendering = None
        known = Known(rendering)
        for route in SAMPLES:
            content: Content | str = "untold"
            if rendering is not None and rendering.covers(route):
                content = await self._compared(worker, route, rendering)
            if isinstance(content, Content):
                known.contents[route] = content
                log.info("%s: the proxy renders %s itself", worker.worker, route)
            else:
                known.why[route] = content
                log.warning("%s renders %s, the proxy cannot: %s", worker.worker, route, content)
        return known

    async def _load(self, raw: bytes) -> Rendering:
        digest = await asyncio.to_thread(lambda: hashlib.sha256(raw).digest())
        if digest not in self._loaded:
            # The library holds all of Python up while it loads (0.2 s for a vocabulary of 49,152,
            # 2 s for one of 262,144): once in a proxy's life, and before its first request.
            self._make_room()
            self._loaded[digest] = await asyncio.to_thread(lambda: Rendering(text_rules(raw)))
        return self._loaded[digest]

    def _make_room(self) -> None:
        """Drops a rendering that is in no use, where there are as many as may be."""
        if len(self._loaded) < MOST_LOADED:
            return
        used = {known.rendering for known in self._known.values()}
        unused = [digest for digest, one in self._loaded.items() if one not in used]
        if not unused:
            raise WireError("as many tokenizers as may be loaded are in use")
        self._forget(self._loaded.pop(unused[0]).number)

    async def _compared(
        self, worker: Announce, route: Route, rendering: Rendering
    ) -> Content | str:
        """How ``route``'s prompts are made here; what is in the way where they are not."""
        bodies = ({"model": worker.model, **body} for body in SAMPLES[route])
        samples = [parse(route, msgspec.json.encode(body)) for body in bodies]
        theirs = [await self._asked(worker, sample) for sample in samples]
        for content in Content:
            ours = await asyncio.to_thread(_made, rendering, worker, samples, content)
            made = [pair for pair in zip(ours, theirs, strict=True) if pair[0] is not None]
            if not made:
                return "refused"
            if all(mine == told for mine, told in made):
                return content
        return "differs"

    async def _asked(self, worker: Announce, sample: ClientRequest) -> list[int] | None:
        """The worker's tokens; None where it refuses. Raises WorkerLost."""
        try:
            return (await asking.ask(self._upstream, worker, sample, _REQUEST)).tokens
        except ApiError as error:
            if 400 <= error.status < 500:
                return None
            raise WorkerLost("a worker failed to render", connected=True) from None


def _made(
    rendering: Rendering, worker: Announce, samples: Sequence[ClientRequest], content: Content
) -> list[list[int] | None]:
    made: list[list[int] | None] = []
    for sample in samples:
        prompt = plain(sample)
        assert prompt is not None
        tokens = rendering.tokens(prompt, content)
        # What does not fit is left to the worker later as well.
        made.append(tokens if tokens and prompt.fits(len(tokens), worker.max_model_len) else None)
    return made


def _key(worker: Announce) -> _Key:
    return worker.worker, worker.generation
