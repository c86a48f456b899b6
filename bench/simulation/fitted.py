"""An engine's curve as ``kvferry bench calibrate`` found it and its result holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.load.errors import BadLoad
from bench.statistics import median
from kvstore.curves import PrefillCurve, Sample, fit, spread


@dataclass(frozen=True)
class Fitted:
    """``spread``: of single prefills around the curve, as the standard deviation of the logarithm.
    ``median_error``: of the curve, relative.
    """

    curve: PrefillCurve
    spread: float
    median_error: float

    @property
    def start_ms(self) -> float:
        """Of each prompt."""
        return self.curve.start * 1e3

    @property
    def token_us(self) -> float:
        """Of each token computed."""
        return self.curve.token * 1e6

    @property
    def pair_ns(self) -> float:
        """Of each pair of a token computed and one before it."""
        return self.curve.pair * 1e9

    def metrics(self) -> dict[str, float]:
        """As a result holds them."""
        return {
            "start_ms": self.start_ms,
            "token_us": self.token_us,
            "pair_ns": self.pair_ns,
            "spread": self.spread,
            "median_error": self.median_error,
        }


def fitted(samples: Sequence[Sample]) -> Fitted:
    """The curve through what was measured."""
    curve = fit(samples)
    errors = [
        abs(curve.seconds(float(one.new), float(one.held)) / one.seconds - 1) for one in samples
    ]
    return Fitted(curve, spread(curve, samples), median(errors))


ASSUMED = Fitted(PrefillCurve(start=0.01, token=1 / 20_000, pair=0.0), spread=0.1, median_error=0.0)
"""About what a model of some ten billion parameters reaches on one large GPU; not measured."""


class _Result(msgspec.Struct):
    command: str
    metrics: Mapping[str, float]


def read(path: Path) -> Fitted:
    """Of a result of ``calibrate``. Raises BadLoad."""
    try:
        result = msgspec.json.decode(path.read_bytes(), type=_Result)
        told = result.metrics
        if result.command != "calibrate" or min(told.values()) < 0 or not any(told.values()):
            raise BadLoad(f"{path} is no result of `kvferry bench calibrate`")
        curve = PrefillCurve(told["start_ms"] / 1e3, told["token_us"] / 1e6, told["pair_ns"] / 1e9)
        return Fitted(curve, told["spread"], told["median_error"])
    except OSError as error:
        raise BadLoad(f"{path}: {error.strerror}") from None
    except (msgspec.MsgspecError, KeyError) as error:
        raise BadLoad(f"{path} is no result of `kvferry bench calibrate`: {error}") from None
