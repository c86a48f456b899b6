"""The transport benchmark in real processes, with small sizes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from bench.cli import main
from bench.transport import measuring
from bench.transport.case import Case
from bench.transport.contender import (
    Contender,
    Gather,
    Kvferry,
    Memcpy,
    Mooncake,
    Nixl,
    PingPong,
    RawSocket,
)
from bench.transport.ends.end import ADVICE, TransportFailed
from bench.transport.goals import Figure
from bench.transport.measuring import measure
from bench.transport.pair import Pair, PairSettings
from bench.transport.plan import Plan

HELD = 16


def with_pair(folder: Path, work: Callable[[Pair], Awaitable[None]]) -> Pair:
    """The pair that ``work`` was done with; it is stopped again."""

    async def done() -> Pair:
        async with Pair(PairSettings("pair", Path(sys.executable), HELD), folder) as pair:
            await work(pair)
        return pair

    return asyncio.run(done())


MOVES: list[tuple[Contender, Case]] = [
    (Kvferry("shm"), Case(HELD)),
    (Kvferry("shm", digests=True), Case(8, "random")),
    (Kvferry("zmq+ipc"), Case(8, "random", 4)),
    (Kvferry("zmq+tcp"), Case(8, "random")),
    (Kvferry("zmq+tcp", digests=True), Case(8, "random", 2)),
    (Kvferry("zmq+tcp", digests=True, curve=True), Case(8, "random")),
    (Memcpy(), Case(HELD)),
    (Gather(), Case(8, "gathered")),
    (RawSocket("tcp"), Case(HELD)),
    (RawSocket("unix"), Case(HELD)),
    (PingPong("tcp"), Case(1)),
    (PingPong("ipc"), Case(1)),
]


def test_every_contender_moves_every_byte_again_and_again(tmp_path: Path) -> None:
    async def often(pair: Pair) -> None:
        for contender, case in MOVES:
            await pair.open(contender)
            await pair.check(contender, case)
            for _ in range(3):
                assert 0 < await pair.move(contender, case) < 10, contender.name

    with_pair(tmp_path, often)


@pytest.mark.parametrize("bound", [False, True])
def test_processes_are_bound_to_a_core_each_or_not_at_all(tmp_path: Path, bound: bool) -> None:
    allowed = sorted(os.sched_getaffinity(0))

    async def cores() -> list[list[int]]:
        settings = PairSettings("pair", Path(sys.executable), HELD, bound)
        async with Pair(settings, tmp_path) as pair:
            return [child.family()[0].cpu_affinity() for child in pair.children]

    expected = [allowed[:1], allowed[-1:]] if bound else [allowed, allowed]
    assert asyncio.run(cores()) == expected


def test_what_is_not_moved_is_found(tmp_path: Path) -> None:
    async def too_much(pair: Pair) -> None:
        await pair.open(RawSocket("unix"))
        await pair.check(RawSocket("unix"), Case(4))  # what is right already does not count
        await pair.open(PingPong("ipc"))  # which moves one block, whatever the case says
        with pytest.raises(TransportFailed, match="3 of 4 blocks are not what was sent"):
            await pair.check(PingPong("ipc"), Case(4))

    with_pair(tmp_path, too_much)


def test_a_process_that_ends_is_told_and_none_is_left(tmp_path: Path) -> None:
    async def killed(pair: Pair) -> None:
        await pair.open(RawSocket("tcp"))
        pair.children[0].running.kill()
        with pytest.raises(TransportFailed, match="pair: the sender ended"):
            await pair.move(RawSocket("tcp"), Case(1))

    pair = with_pair(tmp_path, killed)
    assert [psutil.pid_exists(child.running.pid) for child in pair.children] == [False, False]


def test_an_end_that_breaks_tells_why(tmp_path: Path) -> None:
    async def broken(pair: Pair) -> None:
        with pytest.raises(TransportFailed, match="pair: the receiver ended: KeyError: Memcpy"):
            await pair.check(Memcpy(), Case(1))  # which has not been opened

    with_pair(tmp_path, broken)


def test_an_interpreter_that_cannot_run_it_is_told(tmp_path: Path) -> None:
    async def started() -> None:
        settings = PairSettings("pair", Path("/bin/false"), HELD)
        async with Pair(settings, tmp_path):
            pass

    with pytest.raises(TransportFailed, match="did not start"):
        asyncio.run(started())


def test_a_run_without_peers_says_so_and_measures_the_rest(tmp_path: Path) -> None:
    plan = Plan(schemes=(), rounds=2, largest=1 << 18)
    said: list[str] = []
    taken = asyncio.run(measure(plan, said.append, peers=tmp_path / "python"))
    assert taken.missing == {
        peer: f"{peer.name} is not installed: {ADVICE}" for peer in (Mooncake(), Nixl())
    }
    assert set(taken.seconds) == {
        Figure(Memcpy(), Case(1)),
        Figure(Memcpy(), Case(4)),
        Figure(Gather(), Case(4, "gathered")),
    }
    for figure, rounds in taken.seconds.items():
        assert [len(moves) for moves in rounds] == [figure.case.repeats] * 2
        assert all(seconds > 0 for moves in rounds for seconds in moves)
    assert said[-1] == f"without NIXL: NIXL is not installed: {ADVICE}"


def test_an_interpreter_without_the_packages_leaves_peers_out() -> None:
    plan = Plan(schemes=(), rounds=1, largest=1 << 16)
    bare = Path(sys.executable).resolve()
    taken = asyncio.run(measure(plan, lambda line: None, peers=bare))
    assert set(taken.missing) == {Mooncake(), Nixl()}


def test_a_package_that_does_not_load_is_told_with_advice(tmp_path: Path) -> None:
    for package in ("mooncake", "nixl"):
        broken = tmp_path / package
        broken.mkdir()
        (broken / "__init__.py").write_text("raise ImportError('no libibverbs.so.1')\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}:$PYTHONPATH exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    plan = Plan(schemes=(), rounds=1, largest=1 << 16)
    taken = asyncio.run(measure(plan, lambda line: None, peers=python))
    for peer in (Mooncake(), Nixl()):
        told = f"{peer.name} cannot be loaded (no libibverbs.so.1): {ADVICE}"
        assert taken.missing[peer].endswith(told)


def test_the_command_writes_its_table_its_page_and_its_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "peer_interpreter", lambda: tmp_path / "python")
    file, folder = tmp_path / "transport.json", tmp_path / "out"
    words = ["transport", "--transport", "shm", "--max-bytes", "256KiB", "--rounds", "1"]
    # One round gives no interval, so nothing is judged and the exit code says so.
    assert main([*words, "--out", str(folder), "--json", str(file)]) == 1
    told = json.loads(file.read_text())
    assert set(told["metrics"]) == {"one_block_us", "one_block_vs_pingpong"}
    assert all(value > 0 for value in told["metrics"].values())
    assert told["settings"]["schemes"] == ["shm"]
    blocks = [one for one in told["detail"]["figures"] if one["contender"] == "shm, digests"]
    assert [(one["bytes"], len(one["rounds_s"])) for one in blocks] == [(1 << 16, 1)]
    text = capsys.readouterr().out
    for word in ("RATIOS", "not judged", "hundred_vs_one", "was not in this run", ADVICE):
        assert word in text
    page = (folder / "report.html").read_text()
    assert "Throughput over size" in page
    assert "http:" not in page.replace("http://www.w3.org", "")
