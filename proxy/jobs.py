"""What a client asked for, on its way to being planned and sent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import msgspec

from kvstore.cluster import Tenant
from kvstore.salts import owner
from proxy.catalogue import Served
from proxy.requests import NOTHING_ASIDE, Asides, ClientRequest, Route


@dataclass(frozen=True)
class Call:
    """A client's call, authenticated, its body read; it ``arrived`` before both.

    ``explained``: an operator wants to be told why it is served as it is.
    """

    route: Route
    tenant: Tenant
    body: bytes
    request_id: str
    arrived: float
    explained: bool = False
    asides: Asides = NOTHING_ASIDE


@dataclass(frozen=True)
class Job:
    """One request, ready to be planned and sent. ``tokens``: its prompt, where it is known.

    ``alone`` says why the decode worker has to serve it by itself, None if it need not. ``hint``:
    see ``proxy.hints``.
    """

    call: Call
    request: ClientRequest
    served: Served
    salt: str
    tokens: list[int] | None
    alone: str | None
    hint: int | None = None

    @property
    def model(self) -> str:
        """What workers are asked for."""
        return self.served.model

    @cached_property
    def claim(self) -> str:
        """Whose request it is, as its legs say."""
        whose = owner(self.salt)
        assert whose is not None
        return whose.claim

    @cached_property
    def prompt(self) -> msgspec.Raw | None:
        """``tokens`` as JSON, which both legs carry."""
        return None if self.tokens is None else msgspec.Raw(msgspec.json.encode(self.tokens))
