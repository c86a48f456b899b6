"""Which models there are, under every name that a client may ask for. Pure.

An adapter is asked for by its name, or by name and revision, which is what workers know it by.
Workers may serve one name in several revisions while an adapter is exchanged: the name then stands
for one of them, and whoever serves another has no part in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kvstore.blockhash import Lora
from kvstore.messages import Announce, ServedAdapter
from kvstore.salts import Scope


@dataclass(frozen=True)
class Served:
    """A model of workers: the ``base`` itself, or an ``adapter`` of it."""

    base: str
    adapter: ServedAdapter | None = None

    @property
    def model(self) -> str:
        """What workers are asked for."""
        return self.base if self.adapter is None else self.adapter.model

    @property
    def name(self) -> str:
        """What it is listed as."""
        return self.base if self.adapter is None else self.adapter.name

    @property
    def parent(self) -> str | None:
        """Of what it is an adapter."""
        return None if self.adapter is None else self.base

    @property
    def lora(self) -> Lora | None:
        """What engines put into its blocks' names beside the salt."""
        return None if self.adapter is None else (self.adapter.model, self.adapter.path)

    def within(self, scope: Scope) -> Scope:
        """``scope``, narrowed to it."""
        if self.adapter is None:
            return scope
        name, revision = self.adapter.name, self.adapter.revision
        return replace(scope, adapter=name, adapter_revision=revision)

    def by(self, worker: Announce) -> bool:
        """Whether ``worker`` serves it."""
        if worker.model != self.base:
            return False
        return self.adapter is None or self.adapter in worker.adapters


def catalogue(prefill: Sequence[Announce], decode: Sequence[Announce]) -> Mapping[str, Served]:
    """What workers in any state serve, by what it may be asked for as; bases come first.

    An adapter's name stands for what most ready decode workers serve under it, and of equals for
    what sorts first. A base's name is never an adapter's.
    """
    workers = [*prefill, *decode]
    ready = Counter(
        Served(one.model, adapter)
        for one in decode
        if one.state == "ready"
        for adapter in one.adapters
    )
    found = {Served(one.model, adapter) for one in workers for adapter in one.adapters}
    ordered = sorted(found, key=lambda one: (-ready[one], one.base, one.model, _path(one)))
    named = {base: Served(base) for base in sorted({one.model for one in workers})}
    for one in ordered:
        named.setdefault(one.name, one)
        named.setdefault(one.model, one)
    return named


def _path(served: Served) -> str:
    return "" if served.adapter is None else served.adapter.path
