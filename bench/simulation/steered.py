"""The proxy's own steering in the simulation: its directory, its scheduler and real feeds.

What engines do goes through a worker's relay core, as messages, to the proxy's directory, each a
moment later; some may be lost on the way.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from bench.load.traces import MOONCAKE_BLOCK
from bench.simulation.prompts import Prompt
from bench.simulation.world import World
from kvstore.engine_events import Removed, Stored
from kvstore.index import Directory
from kvstore.messages import PROTOCOL_VERSION, Announce, Subscribe
from kvstore.relay_core import RelayCore, Told
from proxy import scheduler
from proxy.scheduler import Given, Scheduler, Weights

FEED_SECONDS = 0.02
"""From an event in an engine to the proxy's knowing."""

_ROUND_SECONDS = 1.0
_LEASE_SECONDS = 3.0
_PEER = b"proxy"
_MODEL = "model"


class Steered:
    """See :class:`bench.simulation.world.Steering`. ``lost``: the part of feed messages that is."""

    def __init__(self, world: World, lost: float = 0.0, weights: Weights | None = None) -> None:
        self._world = world
        self._lost = lost
        self._chance = random.Random(world.settings.seed)
        self.directory = Directory(
            _LEASE_SECONDS, max_blocks=world.settings.workers * world.settings.blocks * 2
        )
        self.scheduler = Scheduler(self.directory, _MODEL, world.settings.curve, weights)
        self._relays = [RelayCore(_announced(worker)) for worker in range(world.settings.workers)]
        self._given: dict[int, Given] = {}
        self._since: dict[int, float] = {}
        self._wakes = -1.0
        self._prompts: dict[int, Prompt] = {}
        for worker in range(world.settings.workers):
            self._deliver(self._relays[worker].subscribe(_PEER, self._wish(worker), 0.0))
        self._every_round()

    def arrived(self, prompt: Prompt) -> None:
        """See Steering."""
        self._since[prompt.number] = self._world.now
        self._enter(prompt)

    def forgot(self, worker: int, evicted: Sequence[bytes]) -> None:
        """See Steering."""
        self._told(worker, self._relays[worker].apply("gpu", [Removed(tuple(evicted))]))

    def stored(self, worker: int, new: Sequence[bytes]) -> None:
        """See Steering."""
        self._told(worker, self._relays[worker].apply("gpu", [Stored(tuple(new))]))

    def answered(self, worker: int, prompt: Prompt) -> None:
        """See Steering."""
        given = self._given.pop(prompt.number)
        self.scheduler.ended(given, self._world.now, computed=True)
        self._decide()

    def failed(self, worker: int, prompt: Prompt) -> None:
        """See Steering. It keeps its place in the queue."""
        given = self._given.pop(prompt.number)
        self.scheduler.ended(given, self._world.now, computed=False)
        self._enter(prompt)

    def went(self, worker: int) -> None:
        """See Steering."""
        relay = self._relays[worker]
        relay.set_state("starting")
        self._told(worker, relay.restart(f"{relay.announce.generation}+"))

    def returned(self, worker: int) -> None:
        """See Steering."""
        self._told(worker, [self._relays[worker].set_state("ready")])

    def _enter(self, prompt: Prompt) -> None:
        asked = scheduler.Prompt(prompt.tokens, MOONCAKE_BLOCK, prompt.whole)
        since = self._since[prompt.number]
        waiting = self.scheduler.enter(asked, self._world.now, since)
        self._prompts[waiting.key] = prompt
        self._decide()

    def _decide(self) -> None:
        for waiting, given in self.scheduler.decide(self._world.now):
            prompt = self._prompts.pop(waiting.key)
            self._given[prompt.number] = given
            self._world.send(prompt, int(given.worker.worker))
        at = self.scheduler.wakes(self._world.now)
        if at is not None and not self._world.now < self._wakes <= at:
            self._wakes = at
            self._world.later(at - self._world.now, self._decide)

    def _told(self, worker: int, messages: Iterable[Told]) -> None:
        arriving = [one for one in messages if self._chance.random() >= self._lost]
        if arriving:
            delay = FEED_SECONDS if self._world.settings.stretch is not None else 0.0
            self._world.later(delay, lambda: self._hear(worker, arriving))

    def _hear(self, worker: int, messages: Sequence[Told]) -> None:
        warm = bool(self.directory.wants(str(worker))[0])
        self._deliver(messages)
        if warm and not self.directory.wants(str(worker))[0]:
            self._subscribe(worker)
        self._decide()

    def _deliver(self, messages: Sequence[Told]) -> None:
        self.directory.apply_all(messages, self._world.now)

    def _subscribe(self, worker: int) -> None:
        told = self._relays[worker].subscribe(_PEER, self._wish(worker), self._world.now)
        self._told(worker, told)

    def _every_round(self) -> None:
        self.directory.expire(self._world.now)
        for worker, relay in enumerate(self._relays):
            self._told(worker, [relay.announce])
            self._subscribe(worker)
        self._world.later(_ROUND_SECONDS, self._every_round)

    def _wish(self, worker: int) -> Subscribe:
        generation, seq = self.directory.wants(str(worker))
        return Subscribe(PROTOCOL_VERSION, "proxy", generation, seq)


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
