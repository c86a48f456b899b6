"""How long a worker takes, as curves that are fitted to what was measured. Pure.

A prefill of ``new`` tokens after ``held`` ones that need no computing takes a time that grows with
the tokens (projections, experts) and with the pairs of tokens that attend to each other: the model
of Narayanan et al. 2021 (Efficient Large-Scale Language Model Training, section 3) with its terms
measured instead of counted.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Amount = TypeVar("Amount", float, npt.NDArray[np.float64])

FEWEST_SAMPLES = 4
RECENT_SAMPLES = 256
_REFIT_AFTER = 8
_REFIT_PART = 8
"""A curve is fitted anew after so many samples, or this part of those that it is fitted to."""
_SCARCE = 2.0
"""What took less than this part of the usual, is taken for no better than that."""
_LENGTHS = (64, 1024, 16384)


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


def fit(samples: Sequence[Sample], weights: Sequence[float] | None = None) -> PrefillCurve:
    """The curve with the least squares of relative errors and no negative term.

    ``weights``: of each sample's square, if they are not all alike. Raises ValueError for fewer
    samples than ``FEWEST_SAMPLES``.
    """
    if len(samples) < FEWEST_SAMPLES:
        raise ValueError(f"{len(samples)} samples are too few for a curve")
    new = np.array([sample.new for sample in samples], dtype=np.float64)
    held = np.array([sample.held for sample in samples], dtype=np.float64)
    seconds = np.array([sample.seconds for sample in samples], dtype=np.float64)
    roots = np.sqrt(np.ones_like(new) if weights is None else np.asarray(weights))
    terms = np.stack([np.ones_like(new), new, new * (held + new / 2)], axis=1)
    terms *= (roots / seconds)[:, None]
    # What is left of the samples after a QR decomposition has the same errors, and is small.
    _, reduced = np.linalg.qr(np.column_stack([terms, roots]))
    terms, roots = reduced[:, :3], reduced[:, 3]
    best, least = np.zeros(3), np.inf
    # Few terms: the best non-negative solution is the plain one of the best subset of them.
    for chosen in itertools.chain.from_iterable(
        itertools.combinations(range(3), count) for count in (1, 2, 3)
    ):
        found = np.linalg.lstsq(terms[:, chosen], roots, rcond=None)[0]
        error = float(np.sum((terms[:, chosen] @ found - roots) ** 2))
        if (found >= 0).all() and error < least:
            best, least = np.zeros(3), error
            best[list(chosen)] = found
    return PrefillCurve(*best.tolist())


def spread(curve: PrefillCurve, samples: Sequence[Sample]) -> float:
    """Standard deviation of the logarithm of measured over predicted seconds."""
    logs = [np.log(one.seconds / curve.seconds(one.new, one.held)) for one in samples]
    return float(np.std(logs))


class RecentCurve:
    """The curve of what was measured lately; the first guess's shape, scaled, where that is little.

    Prompts of one length tell nothing about others: so the guess counts a little, too, and less the
    more was measured.
    """

    def __init__(self, guess: PrefillCurve) -> None:
        self.curve = guess
        self._guess = guess
        self._samples: deque[Sample] = deque(maxlen=RECENT_SAMPLES)
        self._added = 0

    @property
    def measured(self) -> bool:
        """Not only guessed."""
        return self._added > 0

    def add(self, sample: Sample) -> None:
        """One more, of at least one new token and some time."""
        self._samples.append(sample)
        self._added += 1
        every = max(_REFIT_AFTER, len(self._samples) // _REFIT_PART)
        if self._added <= _REFIT_AFTER or self._added % every == 0:
            ratios = [one.seconds / self._guess.seconds(one.new, one.held) for one in self._samples]
            scale = float(np.median(ratios))
            guessed = [Sample(new, 0, scale * self._guess.seconds(new, 0)) for new in _LENGTHS]
            # Errors are relative to what was measured: one that took next to nothing would rule.
            least = [ratio * _SCARCE / scale for ratio in ratios]
            weights = [min(1.0, part) ** 2 for part in least]
            weights += [1 / len(self._samples)] * len(guessed)
            self.curve = fit([*self._samples, *guessed], weights)
