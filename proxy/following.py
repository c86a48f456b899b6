"""The cluster file while the proxy runs: workers, tenants and adapters may come and go in it, and
nothing else may change. Which adapters are served workers tell.
"""

from __future__ import annotations

import asyncio
import logging
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from kvstore import cluster
from kvstore.cluster import ClusterConfig, Tenant
from kvstore.errors import ConfigError
from kvstore.messages import ROLES, Role

LOOK_SECONDS = 1.0

_MAY_CHANGE = (*ROLES, "tenants", "adapters")

_Stamp = tuple[int, int, int] | None

log = logging.getLogger("kvferry.proxy")


class Feed(Protocol):
    """What follows workers' relays (``kvstore.feed``)."""

    def follow(self, uris: Mapping[str, Role]) -> None:
        """From now on these. Raises ConfigError, and changes nothing, if one cannot be dialled."""
        ...


def feeds(config: ClusterConfig, run_dir: Path) -> dict[str, Role]:
    """Where the relays of all workers are, by address the role of the worker."""
    return {
        cluster.addresses(config, run_dir, role, index).feed: role
        for role in ROLES
        for index in range(config.workers(role).count)
    }


def changed(config: ClusterConfig, before: ClusterConfig, now: ClusterConfig) -> ClusterConfig:
    """``config``, which ``before`` was the file of, with what the file says ``now`` of workers,
    tenants and adapters.

    Of what the file says the same as before ``config`` stays as it is. Raises ConfigError where
    anything else differs: that takes a restart.
    """
    for section in ClusterConfig.__struct_fields__:
        if section not in _MAY_CHANGE and getattr(now, section) != getattr(before, section):
            may = "workers, tenants and adapters"
            raise ConfigError(f"{section} differs: while a proxy runs only {may} may")
    for role in ROLES:
        if now.workers(role).ranks != before.workers(role).ranks:
            raise ConfigError(f"{role}.ranks differs: all workers of a role have as many")
    differ = {
        section: getattr(now, section)
        for section in _MAY_CHANGE
        if getattr(now, section) != getattr(before, section)
    }
    return msgspec.structs.replace(config, **differ)


class Callers(Protocol):
    """Who may call (``proxy.tenants``)."""

    def apply(self, tenants: Sequence[Tenant]) -> None:
        """From now on these."""
        ...


class ClusterFile:
    """Follows the file at ``path``, by looking, as all kinds of volumes allow that.

    Only the file of a moment when it had not changed for ``LOOK_SECONDS`` is read: another one may
    not be whole yet. One that cannot be used is complained of once, and what it was before stays.
    """

    def __init__(
        self, path: Path, config: ClusterConfig, run_dir: Path, feed: Feed, callers: Callers
    ) -> None:
        """``config``: in force, and read from this file or made of it. Raises ConfigError."""
        self._path = path
        self._config = config
        self._run_dir = run_dir
        self._feed = feed
        self._callers = callers
        self._seen = self._stamp()
        self._read = self._seen
        self._known = cluster.load(path)

    async def run(self) -> None:
        """Looks until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            # In a thread: where the file's system hangs, requests go on.
            now = await asyncio.to_thread(self.look)
            if now is not None:
                self.apply(now)

    def look(self) -> ClusterConfig | None:
        """The file, if it is another one, and is as it was at the last look."""
        before, self._seen = self._seen, self._stamp()
        if self._seen != before or self._seen == self._read:
            return None
        self._read = self._seen
        if self._seen is None:  # reading a pipe might never end
            _refuse(f"cannot read {self._path}: there is no such file")
            return None
        try:
            found = cluster.load(self._path)
        except ConfigError as error:
            _refuse(str(error))
            return None
        if self._stamp() != self._seen:  # written meanwhile: what was read may be a part of it
            self._read = None
            return None
        return found

    def apply(self, now: ClusterConfig) -> None:
        """Its workers are followed from now on, and its tenants let in, or it is refused."""
        try:
            config = changed(self._config, self._known, now)
            self._feed.follow(feeds(config, self._run_dir))
        except ConfigError as error:
            _refuse(f"{self._path}: {error}")
            return
        if config.tenants != self._config.tenants:
            self._callers.apply(config.tenants)
            log.info("tenants in %s: %d", self._path, len(config.tenants))
        self._config, self._known = config, now
        log.info("workers in %s: %d prefill, %d decode", self._path, *_counts(config))

    def _stamp(self) -> _Stamp:
        """What tells one state of the file from another; None where there is no regular one."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def _refuse(why: str) -> None:
    log.error("the cluster file is not followed, all stays as it was: %s", why)


def _counts(config: ClusterConfig) -> list[int]:
    return [config.workers(role).count for role in ROLES]
