"""The deployment under audit: its configuration, its secrets, and the tenants who ask.

An audit is an operator's: it reads the cluster's keys, so that it can show the operator's token and
forge what only a member of the cluster could send.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.audit.errors import CannotAudit
from bench.client import Client, Endpoint
from bench.errors import RequestFailed
from kvstore import credentials
from kvstore.cluster import (
    Addresses,
    ClusterConfig,
    addresses,
    admin_address,
    load,
    worker_name,
)
from kvstore.credentials import TOKEN_HEADER, Credentials
from kvstore.errors import ConfigError
from kvstore.messages import ROLES, Role

_ANY = ("0.0.0.0", "::", "")  # noqa: S104 - compared with, not bound
_HOW = (
    "make them with `kvferry keygen red` and `kvferry keygen blue`, put both sections into the "
    "cluster file, start kvferry with it and give --key twice"
)


@dataclass(frozen=True)
class TestTenant:
    """One of those that the audit asks as. ``endpoint`` shows its key and the operator's token."""

    name: str
    endpoint: Endpoint

    __test__ = False  # no test of pytest's


@dataclass(frozen=True)
class Worker:
    """One worker of the cluster file, by its addresses."""

    name: str
    role: Role
    at: Addresses

    @property
    def endpoint(self) -> Endpoint:
        """Its HTTP, without any token."""
        return Endpoint.at(self.at.http, {})

    def shown(self, token: str) -> Endpoint:
        """Likewise, as asked by who knows the cluster's ``token``."""
        return replace(self.endpoint, headers={TOKEN_HEADER: token})


@dataclass(frozen=True)
class Deployment:
    """``config`` has nothing left open. The first tenant owns what the others must not find."""

    config: ClusterConfig
    credentials: Credentials
    tenants: Sequence[TestTenant]

    @property
    def token(self) -> str:
        """The operator's."""
        return self.credentials.http_token()

    @property
    def base(self) -> str:
        """Where the proxy listens, as seen from here."""
        return base_url(self.config)

    @property
    def operator(self) -> Endpoint:
        """Where operators are let in, with their token."""
        return Endpoint.at(admin_address(self.config, self.run_dir), {TOKEN_HEADER: self.token})

    @property
    def owner(self) -> TestTenant:
        """Whose prompts others look for."""
        return self.tenants[0]

    @property
    def stranger(self) -> TestTenant:
        """Who looks for them."""
        return self.tenants[1]

    @property
    def run_dir(self) -> Path:
        """The sockets' folder on this host."""
        return Path(self.config.run_dir)

    @property
    def workers(self) -> list[Worker]:
        """All of the file's."""
        return [
            Worker(worker_name(role, at), role, addresses(self.config, self.run_dir, role, at))
            for role in ROLES
            for at in range(self.config.workers(role).count)
        ]

    def groups(self) -> dict[str, Path]:
        """Where this host's workers have written down their engines' process groups, by name."""
        found = {one.name: self.run_dir / f"{one.name}.group" for one in self.workers}
        return {name: file for name, file in found.items() if file.exists()}

    @property
    def local(self) -> bool:
        """All of its workers run on this host."""
        return len(self.groups()) == len(self.workers)


def base_url(config: ClusterConfig) -> str:
    """Where the proxy of ``config`` is reached from its own host."""
    host = "127.0.0.1" if config.proxy.host in _ANY else config.proxy.host
    return f"http://{f'[{host}]' if ':' in host else host}:{config.proxy.port}"


def opened(file: Path, keys: Sequence[str]) -> Deployment:
    """The deployment that ``file`` describes, asked with the tenants' API ``keys``.

    Raises CannotAudit, one line.
    """
    try:
        config = load(file)
        _require_resolved(config, file)
        names = [_tenant_of(config, key) for key in keys]
        if len(set(names)) < 2:
            told = f"all keys are {names[0]}'s" if names else "there are none"
            raise CannotAudit(f"an audit needs API keys of two tenants, and {told}: {_HOW}")
        secrets = credentials.load(Path(config.state_dir))
    except ConfigError as error:
        raise CannotAudit(str(error)) from None
    base, token = base_url(config), secrets.http_token()
    first = dict(zip(reversed(names), reversed(keys), strict=True))  # one key for each tenant
    tenants = [
        TestTenant(
            name, Endpoint(base, {"authorization": f"Bearer {first[name]}", TOKEN_HEADER: token})
        )
        for name in dict.fromkeys(names)
    ]
    return Deployment(config, secrets, tenants)


async def ready(deployment: Deployment, client: Client) -> None:
    """Raises CannotAudit unless requests are served: nothing is told apart where nobody is in."""
    try:
        status = (await client.ask(Endpoint(deployment.base), "GET", "/ready", b"")).status
    except RequestFailed:
        status = 0
    if status != 200:
        why = f"/ready says {status}" if status else "nobody answers"
        raise CannotAudit(f"no worker is ready at {deployment.base} ({why}): wait until one is")


def _require_resolved(config: ClusterConfig, file: Path) -> None:
    if not (config.run_dir and config.state_dir and config.proxy.port and config.model.block_size):
        raise CannotAudit(
            f"{file} leaves open what kvferry chose when it started: give the cluster.toml in the "
            "run folder, or use `kvferry audit`, which finds it"
        )


def _tenant_of(config: ClusterConfig, key: str) -> str:
    digest = hashlib.sha256(key.encode()).hexdigest()
    for tenant in config.tenants:
        if digest in tenant.keys_sha256:
            return tenant.name
    raise CannotAudit(f"a key that was given is no tenant's of this cluster: {_HOW}")
