"""Every exception kvferry raises, named by what the one who catches it can do.

::

    KvferryError
    ├── ConfigError            stop: fix the configuration (command line: one line, exit code 2)
    ├── WireError              drop the message: malformed, oversized or of another protocol
    │   ├── LayoutMismatch     refuse the peer: the two ends disagree about a block's bytes
    │   └── PeerGone           end its transfers: there is no way to that peer any more
    ├── TransferError          recompute: this transfer will not complete
    │   └── CommunicatorLost   build another: this lane's communicator is of no use any more
    ├── TierDown               go on without the DRAM tier until it is back
    ├── WorkerLost             try another worker, or answer that none is left
    └── ApiError               answer the client with this status, in OpenAI's error shape
"""

from __future__ import annotations


class KvferryError(Exception):
    """Root of the tree; never raised itself."""


class ConfigError(KvferryError):
    """A setting is wrong; the message says which and what to write instead."""


class WireError(KvferryError):
    """Bytes from another process are not a message we accept."""


class LayoutMismatch(WireError):
    """Two workers lay out a block differently; the message names both layouts."""


class PeerGone(WireError):
    """There is no connection to that peer, or no carriage shared with it, any more."""


class TransferError(KvferryError):
    """A KV transfer failed; the receiver recomputes."""


class CommunicatorLost(TransferError):
    """A lane's communicator failed, was aborted or took too long."""


class TierDown(KvferryError):
    """The DRAM tier cannot be reached."""


class WorkerLost(KvferryError):
    """The HTTP connection to a worker failed; ``connected`` says whether it ever stood."""

    def __init__(self, message: str, *, connected: bool) -> None:
        super().__init__(message)
        self.connected = connected


class ApiError(KvferryError):
    """A request that is answered with an error.

    ``status`` is the HTTP status; ``kind``, ``code`` and ``param`` fill OpenAI's error object;
    ``retry_after`` (seconds) becomes the header of that name.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after = retry_after
