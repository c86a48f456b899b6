"""Requests that share much with others or nothing, as whole HTTP requests.

The text is the Python manual's, as the standard library carries it: prose, tables and code.
"""

from __future__ import annotations

import pydoc_data.topics
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import msgspec

PATH = "/v1/chat/completions"

Kind = Literal["1k", "220k"]
KINDS: tuple[Kind, Kind] = ("1k", "220k")
SHARED: dict[Kind, float] = {"1k": 0.5, "220k": 0.9}
"""The part of a prompt that its tenant's others have as well."""


@dataclass(frozen=True)
class Asked:
    """A request but for whom it goes to. ``new``: the text in it that nobody has asked before.

    Its body is ``before``, ``new`` as JSON, ``after``: put together when it is sent, since many of
    them are kept.
    """

    key: str
    before: bytes
    new: str
    after: bytes

    def body(self) -> bytes:
        """JSON."""
        return b"".join(self._parts())

    def request(self, host: str) -> bytes:
        """As it is sent to ``host``."""
        parts = self._parts()
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {self.key}\r\n"
            f"content-type: application/json\r\ncontent-length: {sum(map(len, parts))}\r\n\r\n"
        )
        return b"".join((head.encode(), *parts))

    def _parts(self) -> tuple[bytes, bytes, bytes]:
        return self.before, msgspec.json.encode(self.new), self.after


class Prompts:
    """Makes requests for one ``model``, by turns of the tenants with ``keys``.

    ``sizes``: bytes of a prompt of each kind; ``tokens``: of the answer.
    """

    def __init__(
        self, model: str, keys: Sequence[str], sizes: dict[Kind, int], tokens: int, seed: int
    ) -> None:
        self._model = model
        # A tenant that asks for novel prompts alone.
        *self._keys, self._newcomer = keys
        self._sizes = sizes
        self._tokens = tokens
        self._source = random.Random(seed)
        self._shared: dict[tuple[str, Kind], tuple[bytes, bytes]] = {}
        self._next = 0

    def shared(self, kind: Kind, count: int) -> list[Asked]:
        """Prompts whose first ``SHARED`` part is the same for all of a tenant's."""
        return [self._one(kind) for _ in range(count)]

    def novel(self, kind: Kind, count: int) -> list[Asked]:
        """Prompts that begin as no other one."""
        before, after = self._around([])
        return [
            Asked(self._newcomer, before, self._text(self._sizes[kind]), after)
            for _ in range(count)
        ]

    def _one(self, kind: Kind) -> Asked:
        key = self._keys[self._next % len(self._keys)]
        self._next += 1
        length = round(self._sizes[kind] * SHARED[kind])
        if (key, kind) not in self._shared:
            common = {"role": "system", "content": self._text(length)}
            self._shared[key, kind] = self._around([common])
        before, after = self._shared[key, kind]
        return Asked(key, before, self._text(self._sizes[kind] - length), after)

    def _around(self, messages: Sequence[dict[str, str]]) -> tuple[bytes, bytes]:
        """What comes before and after the new text, behind ``messages``."""
        body = {
            "model": self._model,
            "messages": [*messages, {"role": "user", "content": _HERE}],
            "max_tokens": self._tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        before, _, after = msgspec.json.encode(body).partition(msgspec.json.encode(_HERE))
        return before, after

    def _text(self, size: int) -> str:
        return prose(self._source, size)


def prose(source: random.Random, size: int) -> str:
    """So many characters: lines in random order, after a number that no other text begins with."""
    text = f"{source.getrandbits(64):020d}"
    while len(text) < size:
        lines = source.choices(_manual(), k=1 + (size - len(text)) // _USUAL_LINE)
        text = "\n".join([text, *lines])
    return text[:size]


_HERE = "\x00here"
_USUAL_LINE = 40
"""Characters, roughly."""


@lru_cache(maxsize=1)
def _manual() -> Sequence[str]:
    text = "\n".join(pydoc_data.topics.topics.values())
    return [line for line in text.encode("ascii", "ignore").decode().splitlines() if line]
