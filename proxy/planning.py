"""From a request to who serves it: what is known now, what follows from it, and the wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvstore.clock import Clock
from kvstore.handoff import whole_blocks
from kvstore.index import Directory, Residency
from kvstore.messages import ROLES, Announce
from proxy import steering
from proxy.catalogue import Served, catalogue
from proxy.chains import Chains
from proxy.flight import Flight
from proxy.jobs import Job
from proxy.loads import Loads
from proxy.pace import Prediction
from proxy.placement import Counts
from proxy.prompts import Candidate, Expected, Layout, Prompt
from proxy.steering import DecodeOnly, Disaggregated, Fleet, Reject, Staff
from proxy.turns import Turns
from proxy.usage import Path

STALE_SECONDS = 0.25
"""Who waited longer is looked up anew: what decode workers hold has changed meanwhile."""

Plan = Disaggregated | DecodeOnly | Reject


@dataclass(frozen=True)
class Considered:
    """What is known of a request, and the ``plan`` that follows.

    ``asked`` is None where its tokens are not known, ``expected`` where prefill is not to have it
    whatever it costs.
    """

    plan: Layout | DecodeOnly | Reject
    fleet: Fleet
    asked: Prompt | None = None
    residency: Residency | None = None
    expected: Expected | None = None


@dataclass(frozen=True)
class Decided:
    """Who serves a request, and what it will find and take there; None where its tokens are not
    known, or nobody serves it.
    """

    plan: Plan
    predicted: Prediction | None = None


class Planner:
    """Belongs to one event loop."""

    def __init__(self, directory: Directory, loads: Loads, turns: Turns, clock: Clock) -> None:
        self._directory = directory
        self._loads = loads
        self._turns = turns
        self._clock = clock
        self._chains = Chains()
        self._models: Mapping[str, Served] = {}
        self._staffs: dict[str, Staff] = {}
        self._membership = -1

    def models(self) -> Mapping[str, Served]:
        """Served by workers in any state, by what they may be asked for as; bases come first."""
        self._update_staffs()
        return self._models

    def spare(self, model: str, lost: str) -> Announce | None:
        """Another decode worker than the one that was ``lost``."""
        fleet = self._fleet(model)
        at = steering.best(fleet, but=lost)
        return None if at is None else fleet.staff.decode[at]

    def idlest(self, model: str) -> Sequence[Announce]:
        """Decode workers, those with the fewest requests first."""
        fleet = self._fleet(model)
        return [fleet.staff.decode[at] for at in np.argsort(fleet.load, kind="stable")]

    def forget_tenant(self, tag: str) -> None:
        """No names of a tenant's blocks are remembered any more."""
        self._chains.forget_tenant(tag)

    def consider(self, job: Job) -> Considered:
        """What would be done with ``job`` now."""
        fleet = self._fleet(job.model, job.hint)
        decode = fleet.staff.decode
        size = decode[0].block_size if decode else 0
        if job.tokens is None or not size:
            return Considered(steering.plan(0, job.alone, fleet), fleet)
        # Nobody can hold, or will ever ask for, a block of what is not kept.
        kept, lora = job.request.kept, job.served.lora
        names = self._chains.names(job.tokens, size, job.salt, lora) if kept else []
        residency = self._directory.held(names)
        fleet = replace(fleet, held=self._held(residency, fleet.staff))
        tenant, adapter = job.call.tenant.name, job.served.adapter
        asked = Prompt(tenant, len(job.tokens), names, job.hint, adapter)
        plan = steering.plan(len(job.tokens) // size, job.alone, fleet)
        expected = None
        if isinstance(plan, Layout):
            expected = self._turns.expected(plan, asked, residency)
            if expected is not None:
                plan = steering.alone_sooner(asked.tokens, plan, expected, fleet) or plan
        return Considered(plan, fleet, asked, residency, expected)

    def candidates(self, considered: Considered) -> list[Candidate]:
        """The prefill workers as the request would find them, the one it is meant for first."""
        decode, asked = considered.fleet.staff.decode, considered.asked
        if not decode or asked is None:
            return []
        layout = considered.plan if isinstance(considered.plan, Layout) else Layout.of(decode[0])
        return self._turns.candidates(layout, asked)

    async def plan(self, job: Job, flight: Flight, until: float) -> Decided:
        """Who serves ``job``; returns when it is its turn. Raises ApiError as ``Turns.take``."""
        began, considered = self._clock(), self.consider(job)
        layout, asked = considered.plan, considered.asked
        if not isinstance(layout, Layout):
            return Decided(layout, self._predicted(job, layout, considered.fleet))
        assert asked is not None, "prefill was to have a prompt that is not known"
        flight.note_routed()
        found = None if considered.expected is None else considered.expected.found
        given = await self._turns.take(layout, asked, until, found)
        if given is not None:
            flight.occupy(lambda: self._turns.ended(given, computed=False))
        now = self._fleet(job.model, job.hint)
        fresh = self._clock() - began <= STALE_SECONDS
        if fresh and now.staff is considered.fleet.staff:
            held = considered.fleet.held
        else:
            held = self._held(self._directory.held(asked.names), now.staff)
        fleet = replace(now, held=held)
        plan = steering.pair(given, layout, fleet)
        if given is not None and not isinstance(plan, Disaggregated):
            self._turns.ended(given, computed=False)
        return Decided(plan, self._predicted(job, plan, fleet))

    def learn(
        self, decode: Announce, made: Prediction, path: Path, stages: Mapping[str, float], had: int
    ) -> None:
        """How a stream went that ``decode`` answered; see :meth:`Pace.learn`."""
        self._turns.pace(Layout.of(decode)).learn(made, path, stages, had)

    def _predicted(self, job: Job, plan: Plan, fleet: Fleet) -> Prediction | None:
        if isinstance(plan, Reject) or job.tokens is None:
            return None
        decode, waited = plan.decode, self._clock() - job.call.arrived
        at, tokens = fleet.staff.position[decode.worker], len(job.tokens)
        whole = whole_blocks(tokens, decode.block_size)
        held = min(int(fleet.held[at]) * decode.block_size, whole)
        pace, busy = self._turns.pace(Layout.of(decode)), bool(fleet.load[at])
        if isinstance(plan, DecodeOnly):
            return pace.alone(tokens, held, waited, busy=busy)
        return pace.paired(plan.given, tokens, held, waited, busy=busy)

    def _held(self, residency: Residency, staff: Staff) -> Counts:
        """Blocks in the memory of each decode worker's engine."""
        held: Counts = residency.by_slot()[self._directory.slots(staff.decode), 0]
        return held

    def _fleet(self, model: str, hint: int | None = None) -> Fleet:
        """As it is now, for a prompt with that ``hint`` of which nobody holds anything."""
        self._update_staffs()
        staff = self._staffs.get(model, _NOBODY)
        load: Counts = np.zeros(len(staff.decode), dtype=np.int64)
        for worker, count in self._loads.counts.items():  # the busy ones, of perhaps many more
            at = staff.position.get(worker)
            if at is not None:
                load[at] += count
        for (worker, generation), count in self._loads.elsewhere():
            at = staff.position.get(worker)
            if at is not None and staff.decode[at].generation == generation:
                load[at] += count
        return Fleet(staff, load, np.zeros_like(load), hint)

    def _update_staffs(self) -> None:
        if self._directory.membership == self._membership:
            return
        workers = [self._directory.workers(role) for role in ROLES]
        self._models = catalogue(*workers)
        self._staffs = {
            served.model: Staff.of(*([one for one in known if served.by(one)] for known in workers))
            for served in self._models.values()
        }
        self._membership = self._directory.membership


_NOBODY = Staff.of([], [])
