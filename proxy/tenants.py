"""Who may call, as the cluster file and flushes say it while the proxy runs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import msgspec

from kvstore import salts
from kvstore.cluster import Tenant
from kvstore.messages import Standing
from proxy import faults
from proxy.identity import Keyring

End = Callable[[], None]
"""Ends a request, whose tenant has been flushed."""

Forget = Callable[[str], None]
"""Drops what this process remembers of a tenant, by tag."""

log = logging.getLogger("kvferry.proxy")


class Workers(Protocol):
    """To whom what holds for tenants is said (``kvstore.feed``)."""

    def say(self, standings: Iterable[Standing]) -> None:
        """These hold from now on."""
        ...


class Tenants:
    """Belongs to one event loop. An epoch is the highest that the file, a flush or a worker told.

    ``keyring`` is replaced whenever anything changes. ``forget`` is told the tag of who is flushed.
    """

    def __init__(
        self,
        tenants: Sequence[Tenant],
        token: str,
        salt_key: bytes,
        workers: Workers,
        forget: Forget = lambda _tag: None,
    ) -> None:
        self._token = token
        self._salt_key = salt_key
        self._workers = workers
        self._forget = forget
        self._epochs: dict[str, int] = {}
        self._filed: dict[str, int] = {}
        self._tenants: dict[str, Tenant] = {}
        self._names: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._running: dict[str, set[End]] = {}
        self.keyring = Keyring((), token)
        self.apply(tenants)

    @property
    def known(self) -> Sequence[Tenant]:
        """All of them as they are now."""
        return tuple(self._tenants.values())

    @property
    def running(self) -> Counter[str]:
        """Requests under way, by tenant."""
        return Counter({name: len(ends) for name, ends in self._running.items()})

    def tag(self, name: str) -> str:
        """What workers know a tenant of the file's by."""
        return self._tags[name]

    def named(self, tag: str) -> str | None:
        """The name of the tenant of that tag; None where it is none of the file's."""
        return self._names.get(tag)

    def apply(self, tenants: Sequence[Tenant]) -> None:
        """The file's tenants from now on. Who is not among them calls no more; what runs ends."""
        before = {name: tenant.epoch for name, tenant in self._tenants.items()}
        self._tags = {tenant.name: salts.tag(self._salt_key, tenant.name) for tenant in tenants}
        self._names = {tag: name for name, tag in self._tags.items()}
        self._tenants = {tenant.name: tenant for tenant in tenants}
        for tenant in tenants:
            self._file(tenant)
        self._renew()
        self._workers.say(self._standing(tenant) for tenant in self._tenants.values())
        for name, epoch in before.items():
            now = self._tenants.get(name)
            if now is None or now.epoch != epoch:
                self._end(name)

    def flush(self, name: str) -> Standing | None:
        """Nothing kept for that tenant so far is used any more; None where there is no such one."""
        tenant = self._tenants.get(name)
        if tenant is None:
            return None
        raised = msgspec.structs.replace(self._standing(tenant), epoch=tenant.epoch + 1)
        self.raised(raised.tag, raised.epoch)
        self._workers.say([raised])
        return raised

    def raised(self, tag: str, epoch: int) -> None:
        """Somebody has flushed the tenant of that tag."""
        if epoch <= self._epochs.get(tag, 0):
            return
        self._epochs[tag] = epoch
        name = self._names.get(tag)
        if name is not None:
            self._renew()
            self._end(name)

    @contextmanager
    def one(self, tenant: Tenant, end: End) -> Iterator[None]:
        """A request of ``tenant`` is under way while entered; ``end`` is called if it has to end.

        Raises ApiError where that is one too many, or the tenant has changed meanwhile.
        """
        now = self._tenants.get(tenant.name)
        if now is None or now.epoch != tenant.epoch:
            raise faults.flushed()
        mine = self._running.setdefault(tenant.name, set())
        if 0 < now.max_requests <= len(mine):
            raise faults.too_many(now.max_requests)
        mine.add(end)
        try:
            yield
        finally:
            mine.discard(end)
            if not mine and self._running.get(tenant.name) is mine:
                del self._running[tenant.name]

    def _file(self, tenant: Tenant) -> None:
        """Takes its epoch; warns where that was to flush and does not, since flushes came first."""
        tag = self.tag(tenant.name)
        known, before = self._epochs.get(tag, 0), self._filed.get(tag, tenant.epoch)
        if before < tenant.epoch <= known:
            log.warning(
                "tenant %s: nothing is flushed by epoch %d in the file, since flushes have raised "
                "it to %d; use kvferry flush %s",
                *(tenant.name, tenant.epoch, known, tenant.name),
            )
        self._filed[tag] = tenant.epoch
        self._epochs[tag] = max(known, tenant.epoch)

    def _renew(self) -> None:
        self._tenants = {
            name: msgspec.structs.replace(tenant, epoch=self._epochs[self.tag(name)])
            for name, tenant in self._tenants.items()
        }
        self.keyring = Keyring(tuple(self._tenants.values()), self._token)

    def _standing(self, tenant: Tenant) -> Standing:
        tag = self.tag(tenant.name)
        return Standing(tag, tenant.epoch, tenant.cache_floor, tenant.cache_limit)

    def _end(self, name: str) -> None:
        for end in tuple(self._running.get(name, ())):
            end()
        self._forget(salts.tag(self._salt_key, name))
