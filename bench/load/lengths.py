"""How long prompts and answers are: a distribution written in one word.

``512`` always 512; ``200-1200`` uniform, both ends included; ``normal:512:64`` mean and standard
deviation; ``lognormal:512:0.8`` median and sigma. Draws are whole tokens, one at least.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from typing import Literal

from bench.load.errors import BadLoad

LONGEST = 1 << 20
WIDEST_SIGMA = 10.0

_ADVICE = "a length is 512, 200-1200, normal:MEAN:DEVIATION or lognormal:MEDIAN:SIGMA"
_NUMBER = r"(\d{1,9}(?:\.\d{1,9})?)"
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
_NAMED = re.compile(rf"(normal|lognormal):{_NUMBER}:{_NUMBER}")


@dataclass(frozen=True)
class Lengths:
    """``kind`` and its two numbers: both ends, mean and deviation, or median and sigma."""

    kind: Literal["uniform", "normal", "lognormal"]
    first: float
    second: float

    def draw(self, source: random.Random) -> int:
        """A number of tokens, from 1 to ``LONGEST``."""
        if self.kind == "uniform":
            return source.randint(int(self.first), int(self.second))
        if self.kind == "normal":
            drawn = source.gauss(self.first, self.second)
        else:
            drawn = source.lognormvariate(math.log(self.first), self.second)
        return min(LONGEST, max(1, round(drawn)))


def parse(text: str) -> Lengths:
    """The distribution ``text`` names. Raises BadLoad."""
    if match := _RANGE.fullmatch(text):
        low = int(match[1])
        high = int(match[2] or low)
        if not 1 <= low <= high <= LONGEST:
            raise BadLoad(f"{text!r}: lengths go from 1 to {LONGEST}, the smaller one first")
        return Lengths("uniform", low, high)
    if match := _NAMED.fullmatch(text):
        first, second = float(match[2]), float(match[3])
        if not 1 <= first <= LONGEST:
            raise BadLoad(f"{text!r}: lengths go from 1 to {LONGEST}")
        if match[1] == "normal":
            return Lengths("normal", first, second)
        if second > WIDEST_SIGMA:
            raise BadLoad(f"{text!r}: a sigma is {WIDEST_SIGMA:g} at most")
        return Lengths("lognormal", first, second)
    raise BadLoad(f"{text!r}: {_ADVICE}")
