"""How long a worker takes, as curves that are fitted to what was measured. Pure.

A prefill of ``new`` tokens after ``held`` ones that need no computing takes a time that grows with
the tokens (projections, experts) and with the pairs of tokens that attend to each other: the model
of Narayanan et al. 2021 (Efficient Large-Scale Language Model Training, section 3) with its terms
measured instead of counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Amount = TypeVar("Amount", float, npt.NDArray[np.float64])

FEWEST_SAMPLES = 4


@dataclass(frozen=True)
class PrefillCurve:
    """Seconds: ``start`` for each prompt, ``token`` for each new token, ``pair`` for each pair of a
    new token and one before it.
    """

    start: float
    token: float
    pair: float

    def seconds(self, new: Amount, held: Amount) -> Amount:
        """To compute ``new`` tokens after ``held`` ones."""
        return self.start + new * (self.token + self.pair * (held + new / 2))


@dataclass(frozen=True)
class Sample:
    """One prefill that was measured."""

    new: int
    held: int
    seconds: float


def fit(samples: Sequence[Sample]) -> PrefillCurve:
    """The curve with the least squares of relative errors and no negative term.

    Raises ValueError for fewer than ``FEWEST_SAMPLES``.
    """
    if len(samples) < FEWEST_SAMPLES:
        raise ValueError(f"{len(samples)} samples are too few for a curve")
    new = np.array([sample.new for sample in samples], dtype=np.float64)
    held = np.array([sample.held for sample in samples], dtype=np.float64)
    seconds = np.array([sample.seconds for sample in samples], dtype=np.float64)
    terms = np.stack([np.ones_like(new), new, new * (held + new / 2)], axis=1) / seconds[:, None]
    best, least = np.zeros(3), np.inf
    # Few terms: the best non-negative solution is the plain one of the best subset of them.
    for chosen in itertools.chain.from_iterable(
        itertools.combinations(range(3), count) for count in (1, 2, 3)
    ):
        found = np.linalg.lstsq(terms[:, chosen], np.ones_like(new), rcond=None)[0]
        error = float(np.sum((terms[:, chosen] @ found - 1) ** 2))
        if (found >= 0).all() and error < least:
            best, least = np.zeros(3), error
            best[list(chosen)] = found
    return PrefillCurve(*best.tolist())


def spread(curve: PrefillCurve, samples: Sequence[Sample]) -> float:
    """Standard deviation of the logarithm of measured over predicted seconds."""
    logs = [np.log(one.seconds / curve.seconds(one.new, one.held)) for one in samples]
    return float(np.std(logs))
