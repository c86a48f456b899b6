"""The proxy's own steering in the simulation: its directory, its scheduler and real feeds.

What engines do goes through a worker's relay core, as messages, to the proxies' directories, each a
moment later; some may be lost on the way. What one proxy has a worker busy with goes the same way
to the others.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from bench.load.traces import MOONCAKE_BLOCK
from bench.simulation.prompts import Prompt
from bench.simulation.world import World
from kvstore.engagements import Engagements
from kvstore.engine_events import Removed, Stored
from kvstore.index import Directory
from kvstore.messages import PROTOCOL_VERSION, Announce, Engaged, Subscribe
from kvstore.relay_core import RelayCore, Told
from proxy import prompts
from proxy.pace import Pace
from proxy.prompts import Layout
from proxy.scheduler import Scheduler
from proxy.weights import Weights
from proxy.workload import Given

FEED_SECONDS = 0.02
"""From an event in an engine to the proxy's knowing."""

TELL_SECONDS = 0.002
"""From what one proxy gives to another's knowing."""

_ROUND_SECONDS = 1.0
_LEASE_SECONDS = 3.0
_MODEL = "model"


class _Proxy:
    """What one of them knows. ``peer``: what relays know it by."""

    def __init__(self, number: int, world: World, weights: Weights | None) -> None:
        self.name = f"proxy-{number}"
        self.peer = self.name.encode()
        blocks = world.settings.workers * world.settings.blocks
        self.directory = Directory(_LEASE_SECONDS, max_blocks=blocks * 2)
        self.engagements = Engagements()
        layout = Layout.of(_announced(0))
        pace = Pace(world.settings.curve)
        self.scheduler = Scheduler(self.directory, layout, pace, weights, self.engagements)
        self.given: dict[int, Given] = {}
        self.prompts: dict[int, Prompt] = {}
        self.wakes = -1.0

    def wish(self, worker: int) -> Subscribe:
        generation, seq = self.directory.wants(str(worker))
        return Subscribe(PROTOCOL_VERSION, self.name, generation, seq)


class Steered:
    """See :class:`bench.simulation.world.Steering`. ``lost``: the part of feed messages that is.

    Prompts come to ``proxies`` in turn.
    """

    def __init__(
        self, world: World, lost: float = 0.0, weights: Weights | None = None, proxies: int = 1
    ) -> None:
        self._world = world
        self._lost = lost
        self._chance = random.Random(world.settings.seed)
        self._relays = [RelayCore(_announced(worker)) for worker in range(world.settings.workers)]
        self._proxies = [_Proxy(number, world, weights) for number in range(proxies)]
        self._since: dict[int, float] = {}
        for worker, relay in enumerate(self._relays):
            for proxy in self._proxies:
                told = relay.subscribe(proxy.peer, proxy.wish(worker), 0.0)
                proxy.directory.apply_all(told, 0.0)
        self._every_round()

    def arrived(self, prompt: Prompt) -> None:
        """See Steering."""
        self._since[prompt.number] = self._world.now
        self._enter(prompt)

    def forgot(self, worker: int, evicted: Sequence[bytes]) -> None:
        """See Steering."""
        self._tell(worker, self._relays[worker].apply("gpu", [Removed(tuple(evicted))]))

    def stored(self, worker: int, new: Sequence[bytes]) -> None:
        """See Steering."""
        self._tell(worker, self._relays[worker].apply("gpu", [Stored(tuple(new))]))

    def answered(self, worker: int, prompt: Prompt) -> None:
        """See Steering."""
        proxy = self._end(prompt, computed=True)
        self._decide(proxy)

    def failed(self, worker: int, prompt: Prompt) -> None:
        """See Steering. It keeps its place in the queue."""
        self._end(prompt, computed=False)
        self._enter(prompt)

    def went(self, worker: int) -> None:
        """See Steering."""
        relay = self._relays[worker]
        relay.set_state("starting")
        self._tell(worker, relay.restart(f"{relay.announce.generation}+"))

    def returned(self, worker: int) -> None:
        """See Steering."""
        self._tell(worker, [self._relays[worker].set_state("ready")])

    def _of(self, prompt: Prompt) -> _Proxy:
        return self._proxies[prompt.number % len(self._proxies)]

    def _enter(self, prompt: Prompt) -> None:
        proxy = self._of(prompt)
        asked = prompts.Prompt(prompt.tenant, prompt.tokens, prompt.whole)
        waiting = proxy.scheduler.enter(asked, self._world.now, self._since[prompt.number])
        proxy.prompts[waiting.key] = prompt
        self._decide(proxy)

    def _end(self, prompt: Prompt, *, computed: bool) -> _Proxy:
        proxy = self._of(prompt)
        given = proxy.given.pop(prompt.number)
        proxy.scheduler.ended(given, self._world.now, computed=computed)
        self._engage(proxy, given.worker)
        return proxy

    def _decide(self, proxy: _Proxy) -> None:
        for waiting, given in proxy.scheduler.decide(self._world.now):
            prompt = proxy.prompts.pop(waiting.key)
            proxy.given[prompt.number] = given
            self._world.send(prompt, int(given.worker.worker))
            self._engage(proxy, given.worker)
        at = proxy.scheduler.wakes(self._world.now)
        if at is not None and not self._world.now < proxy.wakes <= at:
            proxy.wakes = at
            self._world.later(at - self._world.now, lambda: self._decide(proxy))

    def _engage(self, proxy: _Proxy, worker: Announce) -> None:
        """Tells the other proxies, through the worker's relay."""
        if len(self._proxies) < 2:
            return
        prompts, seconds = proxy.scheduler.engaged(worker, self._world.now)
        message = Engaged(worker.worker, worker.generation, proxy.name, prompts, seconds)
        peers = self._relays[int(worker.worker)].engage(proxy.peer, message)
        if peers:
            delay = 0.0 if self._world.settings.stretch is None else TELL_SECONDS
            self._world.later(delay, lambda: self._hear_engaged(peers, message))

    def _hear_engaged(self, peers: Sequence[bytes], message: Engaged) -> None:
        for proxy in self._proxies:
            if proxy.peer in peers:
                proxy.engagements.apply(message, self._world.now)
                self._decide(proxy)

    def _tell(self, worker: int, messages: Iterable[Told]) -> None:
        told = list(messages)
        for proxy in self._proxies:
            self._send(proxy, worker, told)

    def _send(self, proxy: _Proxy, worker: int, messages: Iterable[Told]) -> None:
        arriving = [one for one in messages if self._chance.random() >= self._lost]
        if arriving:
            delay = FEED_SECONDS if self._world.settings.stretch is not None else 0.0
            self._world.later(delay, lambda: self._hear(proxy, worker, arriving))

    def _hear(self, proxy: _Proxy, worker: int, messages: Sequence[Told]) -> None:
        warm = bool(proxy.directory.wants(str(worker))[0])
        proxy.directory.apply_all(messages, self._world.now)
        if warm and not proxy.directory.wants(str(worker))[0]:
            self._subscribe(proxy, worker)
        self._decide(proxy)

    def _subscribe(self, proxy: _Proxy, worker: int) -> None:
        relay = self._relays[worker]
        told = relay.subscribe(proxy.peer, proxy.wish(worker), self._world.now)
        self._send(proxy, worker, told)

    def _every_round(self) -> None:
        for proxy in self._proxies:
            proxy.directory.expire(self._world.now)
            for worker, relay in enumerate(self._relays):
                self._send(proxy, worker, [relay.announce])
                self._subscribe(proxy, worker)
        self._world.later(_ROUND_SECONDS, self._every_round)


def _announced(worker: int) -> Announce:
    return Announce(
        version=PROTOCOL_VERSION,
        worker=str(worker),
        role="prefill",
        generation="g",
        state="ready",
        model=_MODEL,
        http="",
        ship="",
        fingerprint="",
        block_size=MOONCAKE_BLOCK,
        max_model_len=0,
        capacity_blocks=0,
        seq=0,
    )
