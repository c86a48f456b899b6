"""What can go wrong with a request.

RequestFailed           a request that had to succeed did not; the message says how
├── Unreachable         no connection: nobody listens, no such name, refused by TLS
├── Cut                 the connection ended before the answer did
├── Overdue             no whole answer within the time the request had
└── Malformed           what came, or what was to be sent, is against the protocol or the bounds
"""

from __future__ import annotations


class RequestFailed(Exception):
    """A request that had to succeed did not; the message says how."""


class Unreachable(RequestFailed):
    """There is no connection to the server."""


class Cut(RequestFailed):
    """The connection ended before the answer did. ``answered``: whether a byte of it had come."""

    def __init__(self, message: str, answered: bool) -> None:
        super().__init__(message)
        self.answered = answered


class Overdue(RequestFailed):
    """The answer was not whole when the request's time was over."""


class Malformed(RequestFailed):
    """Not HTTP, not an event stream, or larger than what is taken."""
