"""Conversations of several tenants, each of which is found only where its last turn was computed.

Pure, but for the dice. There are more of them than one worker has room for, they begin as the
tenant's others do and go on as no other does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from bench.routing.prompts import prose
from bench.routing.settings import RestartAmounts

_ANSWER = " w" * 16


@dataclass
class Conversation:
    """``key``: its tenant's. ``left``: turns until another one takes its place."""

    key: str
    messages: list[dict[str, str]]
    left: int


class Conversations:
    """Each is with one client at a time, from :meth:`take` to :meth:`answered`."""

    def __init__(self, model: str, keys: Sequence[str], amounts: RestartAmounts) -> None:
        self._model = model
        self._amounts = amounts
        self._dice = random.Random(amounts.seed)
        self._systems = {key: prose(self._dice, amounts.system) for key in keys}
        # As if they had been going on for some time: of all ages.
        count = amounts.conversations * amounts.workers // 2
        self._idle = [
            self._begun(keys[at % len(keys)], self._dice.randrange(amounts.turns))
            for at in range(count)
        ]

    def __len__(self) -> int:
        return len(self._idle)

    def take(self) -> Conversation:
        """Any that is idle, with its next question. Raises IndexError where there is none."""
        at = self._dice.randrange(len(self._idle))
        taken, self._idle[at] = self._idle[at], self._idle[-1]
        self._idle.pop()
        taken.messages.append({"role": "user", "content": prose(self._dice, self._amounts.turn)})
        return taken

    def answered(self, taken: Conversation) -> None:
        """It goes on, or another one of its tenant's begins."""
        taken.messages.append({"role": "assistant", "content": _ANSWER})
        taken.left -= 1
        self._idle.append(taken if taken.left > 0 else self._begun(taken.key, 0))

    def body(self, taken: Conversation) -> bytes:
        """The request for its next answer, JSON."""
        asked = {
            "model": self._model,
            "messages": taken.messages,
            "max_tokens": 16,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return msgspec.json.encode(asked)

    def _begun(self, key: str, turns: int) -> Conversation:
        """One that has had so many turns."""
        messages = [{"role": "system", "content": self._systems[key]}]
        for _ in range(turns):
            messages.append({"role": "user", "content": prose(self._dice, self._amounts.turn)})
            messages.append({"role": "assistant", "content": _ANSWER})
        return Conversation(key, messages, self._amounts.turns - turns)
