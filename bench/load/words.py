"""Prompts made of words that nearly every model's tokenizer makes one token of.

So a prompt has the length asked for, but for the tokens a chat template adds, without loading
a tokenizer; what the server counted is compared with what was asked for in the report.
"""

from __future__ import annotations

import random
from functools import lru_cache

from bench.load.schedule import Segment

_TEXT = (
    "time people way year day man thing woman life child world school state family student "
    "group country problem hand part place case week company system program question work "
    "government number night point home water room mother area money story fact month lot "
    "right study book eye job word business issue side kind head house service friend father "
    "power hour game line end member law car city community name president team minute idea "
    "kid body information back parent face level office door health person art war history "
    "party result change morning reason research girl guy moment air teacher force education"
)
WORDS = tuple(_TEXT.split())


class Words:
    """Texts of one run. ``salt`` keeps them apart from every other run's."""

    def __init__(self, salt: str) -> None:
        self._salt = salt
        self._shared = lru_cache(maxsize=4096)(self._drawn)

    def text(self, segment: Segment) -> str:
        """``segment.tokens`` words, each with a space before it."""
        return self._shared(segment)

    def prompt(self, segments: tuple[Segment, ...]) -> str:
        """The segments' texts, one after the other."""
        return "".join(map(self.text, segments)).lstrip()

    def _drawn(self, segment: Segment) -> str:
        source = random.Random(f"{self._salt}/{segment.key}")
        return " " + " ".join(source.choices(WORDS, k=segment.tokens))
