"""The mixed requests: chats that grow, questions about shared texts, prompts new and asked before.

All of it follows from a seed, but for what a chat's earlier turns were answered.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from bench.load.schedule import Segment

Kind = Literal["chat", "completion", "novel", "again"]

SHORTEST, LONGEST = 50, 2400
"""Tokens of a prompt, roughly: a word is nearly always one, and a chat's template adds some."""

MOST_CHATS = 12
"""Chats that go on at a time."""

_KINDS: tuple[Kind, ...] = ("chat", "completion", "novel", "again")
_SHARES = (0.55, 0.2, 0.15, 0.1)
_SYSTEMS = (60, 150, 400, 700)
_TURNS = 8
_REMEMBERED = 12
"""Prompts of a tenant that may be asked again."""


@dataclass(frozen=True)
class Wanted:
    """One request, ``at`` seconds after the first could have been sent.

    Its own ``words`` come after those of ``system``, which others of its tenant share; ``again``:
    the number of the request that it repeats. A chat's ``turn`` follows the one before it.
    """

    number: int
    at: float
    kind: Kind
    tenant: int
    words: Segment
    output_tokens: int
    system: Segment | None = None
    conversation: int = -1
    turn: int = 0
    again: int = -1


@dataclass
class _Chat:
    number: int
    tenant: int
    system: Segment
    turn: int = 0


class _Deck:
    """Deals one request after the other."""

    def __init__(self, tenants: int, source: random.Random) -> None:
        self._tenants = tenants
        self._source = source
        self._chats: list[_Chat] = []
        self._asked: dict[int, list[Wanted]] = {tenant: [] for tenant in range(tenants)}

    def deal(self, number: int, at: float) -> Wanted:
        (kind,) = self._source.choices(_KINDS, _SHARES)
        make: dict[Kind, Callable[[int, float], Wanted]] = {
            "chat": self._chat,
            "completion": self._completion,
            "novel": self._novel,
            "again": self._again,
        }
        return make[kind](number, at)

    def _system(self, tenant: int) -> Segment:
        words = self._source.choice(_SYSTEMS)
        return Segment(f"system-{tenant}-{words}", words)

    def _output(self) -> int:
        return self._source.randint(2, 24)

    def _chat(self, number: int, at: float) -> Wanted:
        source = self._source
        if (len(self._chats) < MOST_CHATS and source.random() < 0.3) or not self._chats:
            tenant = source.randrange(self._tenants)
            self._chats.append(_Chat(number, tenant, self._system(tenant)))
        chat = source.choice(self._chats)
        words = Segment(f"turn-{number}", _spread(source, 8, 160))
        turn, chat.turn = chat.turn, chat.turn + 1
        if chat.turn == _TURNS:
            self._chats.remove(chat)
        return Wanted(
            number, at, "chat", chat.tenant, words, self._output(), chat.system, chat.number, turn
        )

    def _completion(self, number: int, at: float) -> Wanted:
        tenant = self._source.randrange(self._tenants)
        words = Segment(f"question-{number}", _spread(self._source, 8, 300))
        wanted = Wanted(
            number, at, "completion", tenant, words, self._output(), self._system(tenant)
        )
        return self._remember(wanted)

    def _novel(self, number: int, at: float) -> Wanted:
        tenant = self._source.randrange(self._tenants)
        words = Segment(f"novel-{number}", _spread(self._source, SHORTEST, LONGEST))
        return self._remember(Wanted(number, at, "novel", tenant, words, self._output()))

    def _again(self, number: int, at: float) -> Wanted:
        tenant = self._source.randrange(self._tenants)
        if not self._asked[tenant]:
            return self._novel(number, at)
        old = self._source.choice(self._asked[tenant])
        return Wanted(
            number, at, "again", tenant, old.words, self._output(), old.system, again=old.number
        )

    def _remember(self, wanted: Wanted) -> Wanted:
        asked = self._asked[wanted.tenant]
        asked.append(wanted)
        del asked[:-_REMEMBERED]
        return wanted


def mixed(requests: int, tenants: int, rate: float, seed: int) -> Iterator[Wanted]:
    """So many, ``rate`` of them per second on average (Poisson arrivals)."""
    source = random.Random(f"{seed}/mixed")
    deck, at = _Deck(tenants, source), 0.0
    for number in range(requests):
        yield deck.deal(number, at)
        at += source.expovariate(rate)


def _spread(source: random.Random, least: int, most: int) -> int:
    """A length; each ratio is as likely as any other."""
    return round(math.exp(source.uniform(math.log(least), math.log(most))))
