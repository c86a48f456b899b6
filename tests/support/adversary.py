"""Tenants that try to find each other's KV, and what each may find at most.

An oracle that knows nothing of engines: cached tokens can only be of a beginning that the same
scope has sent before, since it was flushed last. Whatever is lost on the way, nobody finds more.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

Scope = tuple[str, str, str]
"""Tenant, isolation key and model."""


@dataclass(frozen=True)
class Attempt:
    """One request: whose, and of which tokens. ``kept`` False: nothing of it may be."""

    tenant: str
    isolation: str
    model: str
    prompt: tuple[int, ...]
    kept: bool = True
    salt: str = ""

    @property
    def scope(self) -> Scope:
        return self.tenant, self.isolation, self.model


@dataclass
class _Node:
    """A beginning that was sent."""

    after: dict[int, _Node] = field(default_factory=dict)


class Oracle:
    """What each scope has sent since its tenant was flushed last."""

    def __init__(self) -> None:
        self._sent: defaultdict[Scope, _Node] = defaultdict(_Node)

    def most(self, attempt: Attempt) -> int:
        """Tokens that it may find cached at most."""
        if not attempt.kept:
            return 0
        node, found = self._sent[attempt.scope], 0
        for token in attempt.prompt:
            following = node.after.get(token)
            if following is None:
                break
            node, found = following, found + 1
        return found

    def sent(self, attempt: Attempt) -> None:
        """It may be found by its own scope from now on."""
        if not attempt.kept:
            return
        node = self._sent[attempt.scope]
        for token in attempt.prompt:
            node = node.after.setdefault(token, _Node())

    def flushed(self, tenant: str) -> None:
        """Nothing of that tenant may be found any more."""
        for scope in [scope for scope in self._sent if scope[0] == tenant]:
            del self._sent[scope]


class Adversary:
    """Makes attempts: everybody sends the same few beginnings, and their own ends of them."""

    def __init__(self, seed: int, tenants: Sequence[str], models: Sequence[str]) -> None:
        self._random = random.Random(seed)
        self._tenants = tenants
        self._models = models
        self._trunks = [self._tokens(400) for _ in range(12)]

    def attempt(self) -> Attempt:
        """The next one."""
        chance = self._random
        trunk = chance.choice(self._trunks)
        prompt = trunk[: chance.choice((33, 64, 100, 256, 288, 300, 400))]
        if chance.random() < 0.3:
            prompt += self._tokens(chance.choice((1, 32, 64)))
        return Attempt(
            tenant=chance.choice(self._tenants),
            isolation=chance.choice(("", "", "", "one", "two")),
            model=chance.choice(self._models),
            prompt=prompt,
            kept=chance.random() > 0.1,
            salt=chance.choice(("", "", "shared", f"{'0' * 16}-0-{'0' * 64}")),
        )

    def turn(self, seed: int) -> None:
        """From now on it does something else; the beginnings stay."""
        self._random.seed(seed)

    def event(self) -> str:
        """What happens before it: "" mostly."""
        events = ("", "flush", "forget", "restart")
        return self._random.choices(events, (0.965, 0.0145, 0.02, 0.0005))[0]

    def _tokens(self, length: int) -> tuple[int, ...]:
        return tuple(self._random.randrange(100, 40_000) for _ in range(length))
