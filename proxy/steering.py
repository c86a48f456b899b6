"""Who serves a request: pure functions of what is known at that moment.

First whether prefill is to have it at all, and of which layout (``plan``); its worker is found by
:mod:`proxy.scheduler`, perhaps later. Then who decodes (``pair``): of the workers that are not
clearly busier than the rest the one that holds the longest prefix of this prompt for this tenant;
among equals, the least loaded; and where that leaves several, the one where its hint belongs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from kvstore.messages import Announce
from proxy import hints
from proxy.hints import Numbers
from proxy.pace import STEP_TOKENS
from proxy.placement import Counts
from proxy.prompts import Expected, Layout
from proxy.workload import Given

LOAD_SLACK = 8
"""A longer prefix is worth this many more requests in flight; beyond it load decides."""


@dataclass(frozen=True)
class Staff:
    """A model's workers that are ready: the layouts of ``prefill``, the workers of ``decode`` and
    the ``position`` of each by name, and which of them have a layout.
    """

    prefill: frozenset[Layout]
    decode: Sequence[Announce]
    position: Mapping[str, int]
    having: Mapping[Layout, npt.NDArray[np.bool_]]

    @classmethod
    def of(cls, prefill: Sequence[Announce], decode: Sequence[Announce]) -> Staff:
        """Those of these workers that are ready."""
        ready = [one for one in decode if one.state == "ready"]
        position = {one.worker: at for at, one in enumerate(ready)}
        layouts = [Layout.of(one) for one in ready]
        having = {which: np.array([one == which for one in layouts]) for which in set(layouts)}
        able = frozenset(Layout.of(one) for one in prefill if one.state == "ready")
        return cls(able, ready, position, having)

    @cached_property
    def numbers(self) -> Numbers:
        """Of the decode workers, for hints."""
        return hints.numbers(one.worker for one in self.decode)


@dataclass(frozen=True)
class Fleet:
    """What is known of a model's decode workers now, in their order: the requests that each has in
    flight, and how many of the prompt's blocks it ``held`` in its engine's memory. ``hint``: of the
    prompt, if it has one.
    """

    staff: Staff
    load: Counts
    held: Counts
    hint: int | None = None


@dataclass(frozen=True)
class Disaggregated:
    """A prefill worker was ``given`` the prompt: it ships, and ``decode`` generates."""

    given: Given
    decode: Announce


@dataclass(frozen=True)
class DecodeOnly:
    """``decode`` does everything, because of ``reason``."""

    decode: Announce
    reason: str


@dataclass(frozen=True)
class Reject:
    """Nobody can serve this now."""

    reason: str


def plan(blocks: int, alone: str | None, fleet: Fleet) -> Layout | DecodeOnly | Reject:
    """Who serves a prompt; ``alone`` is why disaggregation is out of the question, if it is.

    ``blocks`` of it are full: only these are ever found again. A layout: a prefill worker that has
    it is to compute the prompt.
    """
    at = best(fleet)
    if at is None:
        return Reject("no-decode-worker")
    decode, able = fleet.staff.decode[at], fleet.staff.prefill
    if alone is not None:
        return DecodeOnly(decode, alone)
    if blocks < 1:
        return DecodeOnly(decode, "short")
    if fleet.held[at] >= max(1, blocks - 1):
        return DecodeOnly(decode, "decode-holds")
    if Layout.of(decode) in able:
        return Layout.of(decode)
    return DecodeOnly(decode, "layout-mismatch" if able else "no-prefill-worker")


def alone_sooner(
    tokens: int, layout: Layout, expected: Expected, fleet: Fleet
) -> DecodeOnly | None:
    """Decode computes what it lacks of a prompt of ``tokens`` where its first token is then sooner
    there than by way of prefill.

    Only a worker that holds more of it than prefill, because it wrote that itself: the answers of
    a conversation. Meanwhile all that it decodes stands still, so its time counts once more for
    every request in flight there, and for one that may come; and it is for no longer than a step.
    """
    at = best(fleet, layout)
    if at is None:
        return None
    held = min(int(fleet.held[at]) * layout.block_size, tokens - 1)
    if held <= expected.held or tokens - held > STEP_TOKENS:
        return None
    seconds = expected.curve.seconds(float(tokens - held), float(held))
    if seconds * (2 + int(fleet.load[at])) > expected.seconds + expected.after:
        return None
    return DecodeOnly(fleet.staff.decode[at], "decode-holds")


def pair(given: Given | None, layout: Layout, fleet: Fleet) -> Disaggregated | DecodeOnly | Reject:
    """Who decodes what a prefill worker was given, or was not because there is none any more."""
    if given is not None and (at := best(fleet, layout)) is not None:
        return Disaggregated(given, fleet.staff.decode[at])
    at = best(fleet)
    if at is None:
        return Reject("no-decode-worker")
    reason = "no-prefill-worker" if given is None else "layout-mismatch"
    return DecodeOnly(fleet.staff.decode[at], reason)


def best(fleet: Fleet, layout: Layout | None = None, but: str | None = None) -> int | None:
    """The position of the decode worker with the longest prefix among those not clearly busier.

    Of those that have ``layout``, if one is asked for, and of all ``but`` one.
    """
    staff, load = fleet.staff, fleet.load
    if not staff.decode or (layout is not None and layout not in staff.having):
        return None
    apart = np.ones(len(load), dtype=bool) if layout is None else staff.having[layout]
    if but is not None:
        apart = apart & np.array([one.worker != but for one in staff.decode])
    if not apart.any():
        return None
    apart = apart & (load <= load[apart].min() + LOAD_SLACK)
    worth = fleet.held * (int(load.max()) + 1) - load
    worth = np.where(apart, worth, np.iinfo(np.int64).min)
    if fleet.hint is None:
        return int(np.argmax(worth))
    return hints.meant(fleet.hint, staff.numbers, worth == worth.max())
