"""The cluster file may change while a proxy runs: workers, tenants, adapters, and nothing else."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from kvstore import cluster
from kvstore.cluster import Tenant
from kvstore.errors import ConfigError
from kvstore.messages import Role
from proxy.following import ClusterFile, changed, feeds

RUN_DIR = Path("/run/k")
BEFORE = "[prefill]\ncount = 2\n[proxy]\nport = 9000\n"


class Feed:
    def __init__(self) -> None:
        self.followed: list[list[str]] = []
        self.refuses = False

    def follow(self, uris: Mapping[str, Role]) -> None:
        if self.refuses:
            raise ConfigError("cannot dial")
        self.followed.append(sorted(uri.rpartition("/")[2] for uri in uris))


class World:
    """A file, and who follows it; every writing of it has a time of its own."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cluster.toml"
        self.feed = Feed()
        self.callers: list[Sequence[Tenant]] = []
        self._now = 1_000_000
        self.write(BEFORE)
        config = cluster.parse(BEFORE)
        self.file = ClusterFile(self.path, config, RUN_DIR, self.feed, self)

    def apply(self, tenants: Sequence[Tenant]) -> None:
        self.callers.append(tenants)

    def write(self, text: str) -> None:
        self.path.write_text(text)
        self._now += 1
        os.utime(self.path, (self._now, self._now))

    def look(self) -> bool:
        found = self.file.look()
        if found is not None:
            self.file.apply(found)
        return found is not None


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_worker_more_and_one_less_are_followed(world: World) -> None:
    assert not world.look()
    world.write(BEFORE.replace("2", "3"))
    assert not world.look()  # it may not be whole yet
    assert world.look()
    assert not world.look()
    world.write(BEFORE.replace("2", "1"))
    world.look()
    world.look()
    assert world.feed.followed == [
        ["decode-0.feed", "prefill-0.feed", "prefill-1.feed", "prefill-2.feed"],
        ["decode-0.feed", "prefill-0.feed"],
    ]


def test_adapters_may_differ(world: World) -> None:
    """Which ones are served workers tell: nothing else of the file is held up by them."""
    more = BEFORE.replace("2", "3")
    world.write(f'{more}[[adapters]]\nname = "poet"\npath = "/poet"\n')
    world.look()
    world.look()
    assert len(world.feed.followed[0]) == 4


def test_tenants_come_and_go(world: World) -> None:
    alice = f'[[tenants]]\nname = "alice"\nkeys_sha256 = ["{"0" * 64}"]\n'
    for text in (BEFORE + alice, BEFORE):
        world.write(text)
        world.look()
        world.look()
    named = [[tenant.name for tenant in tenants] for tenants in world.callers]
    assert named == [["alice"], []]


def test_what_one_role_was_changed_to_stays_when_another_changes(world: World) -> None:
    for text in (BEFORE.replace("2", "3"), BEFORE.replace("2", "3") + "[decode]\ncount = 2\n"):
        world.write(text)
        world.look()
        world.look()
    assert [len(uris) for uris in world.feed.followed] == [4, 5]


def test_what_was_changed_can_be_changed_back(world: World) -> None:
    for count in "32":
        world.write(BEFORE.replace("2", count))
        world.look()
        world.look()
    assert [len(uris) for uris in world.feed.followed] == [4, 3]


def test_a_file_that_is_still_written_is_not_read(world: World) -> None:
    for text in ("[prefill]\n", "[prefill]\ncount = 3\n", BEFORE.replace("2", "3")):
        world.write(text)
        assert not world.look()
    assert world.look()
    assert len(world.feed.followed) == 1


def test_one_that_another_takes_the_place_of_is_noticed(world: World, tmp_path: Path) -> None:
    """As where a volume's link is set to another folder: even with the same times and size."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder, count in zip(folders, "12", strict=True):
        folder.mkdir()
        (folder / "cluster.toml").write_text(f"[prefill]\ncount = {count}\n")
        os.utime(folder / "cluster.toml", (1, 1))
    (tmp_path / "data").symlink_to(folders[0])
    path = tmp_path / "data" / "cluster.toml"
    file = ClusterFile(path, cluster.load(path), RUN_DIR, world.feed, world)
    (tmp_path / "data").unlink()
    (tmp_path / "data").symlink_to(folders[1])
    assert file.look() is None
    found = file.look()
    assert found is not None
    assert found.prefill.count == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[prefill", "TOML"),
        (BEFORE.replace("count", "cuont"), "cuont"),
        ("[prefill]\ncount = 3\n", "proxy differs"),
        (BEFORE.replace("2", "3") + "[ship]\nwindow_mib = 1\n", "ship differs"),
        (BEFORE.replace("2", "3\nranks = 2"), "ranks differs"),
        (BEFORE.replace("2", "1" * 5000), "TOML"),
        (BEFORE + "x = " + "[" * 5000, "TOML"),
        (BEFORE.replace("2", "1000000000"), "count"),
        (BEFORE + "[decode]\nhosts = []\n", "hosts"),
    ],
)
def test_anything_else_is_refused_in_one_line_and_what_was_stays(
    world: World, caplog: pytest.LogCaptureFixture, text: str, why: str
) -> None:
    caplog.set_level(logging.INFO)
    world.write(text)
    for _ in range(4):
        world.look()
    assert world.feed.followed == []
    (line,) = caplog.messages
    assert "is not followed" in line
    assert why in line
    world.write(BEFORE.replace("2", "3"))
    world.look()
    assert world.look()
    assert len(world.feed.followed) == 1


def test_a_file_that_is_gone_is_refused_until_it_is_back(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.path.unlink()
    world.look()
    world.look()
    assert "cannot read" in caplog.text
    assert world.feed.followed == []


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_unread(
    world: World, caplog: pytest.LogCaptureFixture, make: Callable[[Path], None]
) -> None:
    world.path.unlink()
    make(world.path)
    for _ in range(3):
        assert not world.look()
    (line,) = caplog.messages
    assert "cannot read" in line


def test_what_is_written_while_it_is_read_is_read_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of it may well be a cluster's file, with fewer workers."""
    load = cluster.load

    def part(path: Path) -> cluster.ClusterConfig:
        whole = path.read_text()
        path.write_text("[proxy]\nport = 9000\n")
        found = load(path)
        world.write(whole)
        monkeypatch.setattr(cluster, "load", load)
        return found

    world.write(BEFORE.replace("2", "3"))
    monkeypatch.setattr(cluster, "load", part)
    for _ in range(4):
        world.look()
    assert [len(uris) for uris in world.feed.followed] == [4]


def test_what_cannot_be_dialled_is_not_in_force(world: World) -> None:
    world.feed.refuses = True
    world.write(BEFORE.replace("2", "3") + "[decode]\ncount = 2\n")
    world.look()
    world.look()
    world.feed.refuses = False
    world.write(BEFORE.replace("2", "4"))
    world.look()
    world.look()
    assert len(world.feed.followed[0]) == 5  # of decode one, as before


def test_a_role_that_does_not_change_stays_as_the_command_line_made_it() -> None:
    config = cluster.parse("[prefill]\ncount = 4\n[decode]\ncount = 4")
    before, now = cluster.parse("[decode]\ncount = 1"), cluster.parse("[decode]\ncount = 2")
    found = changed(config, before, now)
    assert (found.prefill.count, found.decode.count) == (4, 2)


def test_every_relay_has_its_address() -> None:
    config = cluster.parse(
        "[network]\nkind = 'tcp'\n[prefill]\ncount = 3\nhosts = ['a', 'b']\n[decode]\nranks = 2"
    )
    assert feeds(config, RUN_DIR) == {
        "zmq+tcp://a:7102": "prefill",
        "zmq+tcp://b:7110": "prefill",
        "zmq+tcp://a:7118": "prefill",
        "zmq+tcp://127.0.0.1:7202": "decode",
    }
