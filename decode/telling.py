"""What this worker's HTTP gate is told of fetches and first steps, and what it calls off.

Told by the fetching thread as it happens, not with the engine's next step.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from kvstore.gate_link import ConnectorLink
from kvstore.messages import Begun, Outcome
from kvstore.receiving import Ended


@dataclass(frozen=True)
class Asked:
    """What a fetch was for.

    The request joined the engine's queue at ``arrived``. ``local_tokens`` of the prompt were cached
    here. A block holds ``block_tokens``, and has ``block_bytes`` in each KV group.
    """

    arrived: float
    local_tokens: int
    prompt_tokens: int
    block_tokens: int
    block_bytes: int

    def outcome(self, end: Ended) -> Outcome:
        """What became of it."""
        through = min(end.through * self.block_tokens, self.prompt_tokens)
        return Outcome(
            transfer=end.transfer,
            shipped=end.reason is None,
            local_tokens=self.local_tokens,
            received_tokens=max(0, through - self.local_tokens),
            received_bytes=end.received_blocks * self.block_bytes,
            wait_ms=max(0.0, end.at - self.arrived) * 1000,
            reason=end.reason,
        )


class Teller:
    """The fetcher's audience. ``expect`` and ``begun`` are the engine's thread's to call."""

    def __init__(self, link: ConnectorLink) -> None:
        self._link = link
        self._asked: dict[bytes, Asked] = {}
        self._begun: list[Begun] = []
        self._lock = threading.Lock()

    def expect(self, transfer: bytes, asked: Asked) -> None:
        """A fetch is about to begin."""
        with self._lock:
            self._asked[transfer] = asked

    def begun(self, begun: Begun) -> None:
        """A request's first step is scheduled; the gate learns it after its fetch's end."""
        with self._lock:
            self._begun.append(begun)

    def ended(self, ends: list[Ended]) -> None:
        """See Audience."""
        with self._lock:
            begun, self._begun = self._begun, []
            outcomes = [self._asked.pop(end.transfer).outcome(end) for end in ends]
        for outcome in outcomes:
            self._link.report(outcome)
        for told in begun:  # what they may have fetched has ended: in this turn or an earlier one
            self._link.report(told)

    def abandoned(self) -> list[bytes]:
        """See Audience."""
        return self._link.abandoned()

    def close(self) -> None:
        """See Audience."""
        self._link.close()
