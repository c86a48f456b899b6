"""Another process's pages, read by two threads part by part: what is wrong is found and wiped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from kvstore.errors import PeerGone
from kvstore.pages import Vector
from kvstore.receiving import Placement
from kvstore.transport.cargo import RemotePages
from kvstore.transport.digests import Xxh3
from kvstore.transport.neighbour import Neighbour, Readable
from tests.support.transfers import Noise, layout_of

BLOCKS, FIRST, GROUP = 30, 5, 2
THERE = tuple(range(BLOCKS))
HERE = tuple(range(2, BLOCKS + 2))[::-1]
TRANSFER = b"t" * 16


@dataclass(frozen=True)
class Scene:
    """Blocks of 1 MiB: several parts, the last of them shorter."""

    source: Noise
    target: Noise
    memory: Readable
    neighbour: Neighbour

    def place(self, wrong: tuple[int, ...] = ()) -> int | None:
        """Every block, of which those at ``wrong`` are not what was told."""
        pieces = map(self.source.pages.pieces, THERE)
        told = list(Xxh3().of((TRANSFER, GROUP, FIRST), pieces))
        for index in wrong:
            told[index] = bytes(16)
        cargo = RemotePages(self.neighbour, THERE, BLOCKS << 20, Xxh3())
        placement = Placement(TRANSFER, GROUP, FIRST, HERE, tuple(told))
        return cargo.place(self.target.pages, placement)

    def arrived(self) -> bool:
        return all(
            self.source.of(there) == self.target.of(here)
            for there, here in zip(THERE, HERE, strict=True)
        )

    def wiped(self) -> bool:
        return not self.target.bytes[:, list(HERE)].any()


@pytest.fixture
def scene() -> Iterator[Scene]:
    layout = layout_of(2, 512 << 10, 1)
    source, target = Noise(layout, BLOCKS + 2, 1), Noise(layout, BLOCKS + 2, 2)
    memory = Readable(source.pages)
    with ThreadPoolExecutor(1) as second:
        yield Scene(source, target, memory, Neighbour(memory.message, target.pages, second))


def test_every_block_lands_in_its_place(scene: Scene) -> None:
    assert scene.place() is None
    assert scene.arrived()


@pytest.mark.parametrize("wrong", [0, 3, 4, 17, BLOCKS - 1])
def test_a_wrong_block_is_found_in_whatever_part(scene: Scene, wrong: int) -> None:
    for _ in range(5):
        assert scene.place((wrong,)) == wrong
        assert scene.wiped()


@pytest.mark.parametrize("wrong", [4, BLOCKS - 1])
def test_what_the_second_thread_read_is_checked(
    scene: Scene, wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the first part, which this thread is kept busy with."""
    others = _copies_of_others(scene, monkeypatch)
    assert scene.place((wrong,)) == wrong
    assert scene.wiped()
    assert others


def test_what_the_second_thread_read_arrives(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    others = _copies_of_others(scene, monkeypatch)
    assert scene.place() is None
    assert scene.arrived()
    assert others


def test_trouble_of_the_second_thread_is_ours(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, failed, copy = threading.get_ident(), threading.Event(), scene.neighbour._copy

    def failing(remote: Vector, local: Vector) -> None:
        if threading.get_ident() != here:
            failed.set()
            raise PeerGone("its process is gone")
        assert failed.wait(20)
        copy(remote, local)

    monkeypatch.setattr(scene.neighbour, "_copy", failing)
    with pytest.raises(PeerGone):
        scene.place()
    assert scene.wiped()


def _copies_of_others(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """This thread's first copy ends when the second thread has made all the others."""
    here, copy, rows = threading.get_ident(), scene.neighbour._copy, 4
    done, others = threading.Event(), list[int]()

    def slow(remote: Vector, local: Vector) -> None:
        if threading.get_ident() == here:
            assert done.wait(20)
        copy(remote, local)
        if threading.get_ident() != here:
            others.append(len(remote))
            if sum(others) >= BLOCKS - rows:
                done.set()

    monkeypatch.setattr(scene.neighbour, "_copy", slow)
    return others
