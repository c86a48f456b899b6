"""The watch over who computes."""

import pytest

from bench.noise import foreign


def test_what_neither_system_nor_client_computed_was_others() -> None:
    # 15 core-seconds in 10 s; pid 1 took 3 of them, pid 2 is new and took 2.
    assert foreign(10.0, 15.0, {1: 4.0}, {1: 7.0, 2: 2.0}) == pytest.approx(1.0)


def test_coarse_clocks_make_nobody_compute_less_than_nothing() -> None:
    assert foreign(10.0, 1.0, {}, {1: 1.01}) == 0.0
