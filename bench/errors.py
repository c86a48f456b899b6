"""What can go wrong in a benchmark; every message is one line that says what to do or what failed.

BenchError
├── RequestFailed           a request that had to succeed did not; the message says how
│   ├── Unreachable         no connection: nobody listens, no such name, refused by TLS
│   ├── Cut                 the connection ended before the answer did
│   ├── Overdue             no whole answer within the time the request had
│   └── Malformed           what came, or was to be sent, is against the protocol or the bounds
├── load.errors.BadLoad     a workload, a length or a trace that cannot be
├── driving.fleet.LoadFailed            the load could not be put on
├── reporting.files.BadResult           a folder that holds no run that can be read
├── selftest.settings.SelftestFailed    a part of the audit did not come to its end
├── transport.ends.end.TransportFailed  a contender could not be measured
├── routing.settings.RoutingFailed      a router or its workers did not do what is measured
├── flooding.settings.FloodFailed       the load could not be put on as it is meant
├── isolation.settings.IsolationFailed  what is compared is not there, or not what it is to be
├── audit.errors.CannotAudit            a setting of an audit is wrong, or nothing is there to audit
├── processes.StartFailed               a system did not come up
├── headline.part.MeasureFailed         a figure would not mean what it is to mean
├── headline.amounts.BadSetting         ``--set`` names no setting, or no number
├── headline.measuring.CannotMeasure    something that is compared with is missing
└── publishing.page.CannotPublish       no README with the marks, or no such result
"""

from __future__ import annotations


class BenchError(Exception):
    """The root of the tree."""


class RequestFailed(BenchError):
    """A request that had to succeed did not; the message says how."""


class Unreachable(RequestFailed):
    """There is no connection to the server."""


EXHAUSTED = "the client's own limit"
"""Part of the message where not the server but this host had no connection to give."""


class Cut(RequestFailed):
    """The connection ended before the answer did. ``answered``: whether a byte of it had come."""

    def __init__(self, message: str, answered: bool) -> None:
        super().__init__(message)
        self.answered = answered


class Overdue(RequestFailed):
    """The answer was not whole when the request's time was over."""


class Malformed(RequestFailed):
    """Not HTTP, not an event stream, or larger than what is taken."""
