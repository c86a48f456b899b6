"""What ``kvferry bench transport`` makes of its words."""

from __future__ import annotations

import argparse

import pytest

from bench.cli import main
from bench.commands import transport
from bench.transport.contender import SCHEMES
from bench.transport.plan import Plan


def planned(*words: str) -> Plan:
    parser = argparse.ArgumentParser()
    transport.add(parser)
    return transport.plan_of(parser.parse_args(words))


def test_without_a_word_everything_is_measured_up_to_a_gibibyte() -> None:
    plan = planned()
    assert plan == Plan(schemes=SCHEMES, rounds=12, largest=1 << 30, seed=0, bound=False)


def test_transports_are_chosen_in_an_order_that_is_always_the_same() -> None:
    words = ("--transport", "zmq+tcp", "--transport", "shm")
    assert planned(*words).schemes == ("shm", "zmq+tcp")


def test_every_word_is_heeded() -> None:
    plan = planned("--max-bytes", "64MiB", "--rounds", "3", "--seed", "7", "--bind")
    assert (plan.largest, plan.rounds, plan.seed, plan.bound) == (64 << 20, 3, 7, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--max-bytes", "plenty"), "a size such as 64MiB, not plenty"),
        (("--max-bytes", "1KiB"), "one block of 64 KiB at least"),
        (("--rounds", "0"), "--rounds is 1 at least"),
        (("--out", "/proc/x"), "cannot hold the result"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["transport", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
