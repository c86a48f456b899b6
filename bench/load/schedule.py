"""A schedule: every request of a run, decided beforehand.

A prompt is a sequence of segments. A segment's text follows from its key and the run's salt, so
two requests that begin with the same segments share a prefix, and nothing else is ever shared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from bench.records import Phase

MOST_REQUESTS = 1_000_000

Pacing = Literal["open", "users", "batch"]
"""``open``: at their own times. ``users``: each user sends when the last answer has come.
``batch``: all wanted at once."""


class Segment(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The first ``tokens`` words of the text that belongs to ``key``."""

    key: str
    tokens: int


class Planned(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request to send.

    ``at``: seconds after the run's begin; None where it waits for something else, the turn before
    it in its ``conversation`` (then ``think`` seconds more) or a user. A turn's ``prompt`` is what
    it adds to the conversation. ``shared_tokens``: how many tokens an unlimited cache would hold.
    """

    number: int
    phase: Phase = "measured"
    tenant: int = 0
    conversation: int
    turn: int = 0
    at: float | None = None
    think: float = 0.0
    prompt: tuple[Segment, ...]
    output_tokens: int
    shared_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens this request adds; for a first turn, its whole prompt."""
        return sum(segment.tokens for segment in self.prompt)


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """``before``: requests sent one after the other before the run's begin (warm, prime).

    ``in_flight``: the most requests at once where ``pacing`` is users or batch.
    """

    pacing: Pacing
    before: tuple[Planned, ...] = ()
    requests: tuple[Planned, ...]
    in_flight: int = 0
    tenants: tuple[str, ...] = ("",)

    def ahead(self) -> Schedule:
        """``before`` as a load of its own: one user's requests."""
        return msgspec.structs.replace(
            self, pacing="users", in_flight=1, before=(), requests=self.before
        )

    def digest(self) -> str:
        """SHA-256 of all that is going to be asked, the salt left out."""
        return hashlib.sha256(msgspec.msgpack.encode(self)).hexdigest()

    def intended_hit_ratio(self, block_size: int = 1, template_tokens: int = 0) -> float:
        """Fraction of measured prompt tokens that an unlimited cache of such blocks would find.

        Servers cache whole blocks, and compute a prompt's last token in any case. A template puts
        ``template_tokens`` before every prompt, which are shared by all.
        """
        prompts = [prompt + template_tokens for prompt in contexts(self.requests)]
        found = sum(
            min(planned.shared_tokens + template_tokens, prompt - 1) // block_size * block_size
            for planned, prompt in zip(self.requests, prompts, strict=True)
        )
        return found / sum(prompts) if prompts else 0.0


def contexts(requests: Sequence[Planned]) -> list[int]:
    """Prompt tokens of every request with its conversation's turns before it."""
    so_far: dict[int, int] = {}
    found = []
    for planned in requests:
        prompt = so_far.get(planned.conversation, 0) + planned.prompt_tokens
        found.append(prompt)
        so_far[planned.conversation] = prompt + planned.output_tokens
    return found


def with_shared(before: Iterable[Planned], requests: Sequence[Planned]) -> tuple[Planned, ...]:
    """``requests`` with what an unlimited cache of each tenant would hold when each one comes.

    A later turn finds its conversation so far, last answer included.
    """
    cache = _UnlimitedCache()
    for planned in before:
        cache.visit(planned)
    told = []
    for planned, prompt in zip(requests, contexts(requests), strict=True):
        shared = prompt - planned.prompt_tokens if planned.turn else cache.visit(planned)
        told.append(msgspec.structs.replace(planned, shared_tokens=shared))
    return tuple(told)


class _UnlimitedCache:
    """A tree of segments for each tenant; a node is known by its parent and its segment.

    Segments of one key have one text, cut to different lengths, so they share the shorter one's.
    """

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, Segment], int] = {}
        self._longest: dict[tuple[int, str], int] = {}

    def visit(self, planned: Planned) -> int:
        """Tokens of the prompt that were there; all of it is afterwards."""
        node = -1 - planned.tenant  # a root of its own
        found = 0
        for segment in planned.prompt:
            held = self._longest.get((node, segment.key), 0)
            # Where less than all of a segment is held, its node is new: nothing is held beyond.
            found += min(held, segment.tokens)
            self._longest[(node, segment.key)] = max(held, segment.tokens)
            node = self._nodes.setdefault((node, segment), len(self._nodes))
        return found
