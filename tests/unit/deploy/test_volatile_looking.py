"""The picture of a host, taken from made-up /proc, /sys and /etc."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from deploy.volatile.host import Host, Place
from deploy.volatile.looking import look

ME = 5000


class Fake:
    """A root folder with a host's files in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def look(self) -> Host:
        return look({}, ME, (), self.root)


@pytest.fixture
def host(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def test_a_host_that_says_nothing(host: Fake) -> None:
    seen = host.look()
    assert (seen.disk_swaps, seen.swap_barred, seen.can_hibernate) == ((), False, False)
    assert (seen.core_pattern, seen.kernel_dumps, seen.ptrace_scope) == ("", False, None)
    assert (seen.others, seen.listening, seen.shared_memory) == ((), (), "")


def test_swap_in_memory_is_none_on_a_disk(host: Fake) -> None:
    rows = ("/dev/sda2 partition 1 0 -2", "/dev/zram0 partition 1 0 5", "/swap file 1 0 -3")
    host.write("proc/swaps", "\n".join(("Filename Type Size Used Priority", *rows)) + "\n")
    assert host.look().disk_swaps == ("/dev/sda2", "/swap")
    host.write("sys/block/zram0/backing_dev", "none\n")
    assert host.look().disk_swaps == ("/dev/sda2", "/swap")
    host.write("sys/block/zram0/backing_dev", "/dev/loop0\n")
    assert host.look().disk_swaps == ("/dev/sda2", "/dev/zram0", "/swap")


def test_a_group_above_bars_swap(host: Fake) -> None:
    host.write("proc/self/cgroup", "0::/a.slice/b.service\n")
    host.write("sys/fs/cgroup/a.slice/b.service/memory.swap.max", "max\n")
    assert not host.look().swap_barred
    host.write("sys/fs/cgroup/a.slice/memory.swap.max", "0\n")
    assert host.look().swap_barred


def test_a_group_of_version_one_bars_swap_by_its_sum(host: Fake) -> None:
    host.write("proc/self/cgroup", "4:cpu:/\n3:memory,hugetlb:/m\n0::/\n")
    place = "sys/fs/cgroup/memory"
    unlimited = f"{(1 << 63) - 4096}\n"
    for file in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
        host.write(f"{place}/{file}", unlimited)
        host.write(f"{place}/m/{file}", unlimited)
    assert not host.look().swap_barred
    host.write(f"{place}/m/memory.limit_in_bytes", "1000\n")
    assert not host.look().swap_barred
    host.write(f"{place}/m/memory.memsw.limit_in_bytes", "1000\n")
    assert host.look().swap_barred


def test_numbers_and_words_of_the_kernel(host: Fake) -> None:
    host.write("sys/power/state", "freeze mem disk\n")
    host.write("proc/sys/kernel/core_pattern", "|/usr/share/apport/apport %p\n")
    host.write("proc/sys/kernel/yama/ptrace_scope", "2\n")
    host.write("sys/kernel/kexec_crash_loaded", "1\n")
    seen = host.look()
    assert seen.can_hibernate
    assert seen.core_pattern.startswith("|")
    assert seen.ptrace_scope == 2
    assert seen.kernel_dumps


@pytest.mark.parametrize(
    ("mounts", "kind"),
    [
        ("/dev/sda1 / ext4 rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\n", "tmpfs"),
        ("/dev/sda1 / ext4 rw 0 0\nudev /dev devtmpfs rw 0 0\n", "devtmpfs"),
        ("/dev/sda1 / ext4 rw 0 0\nt /dev/shmx tmpfs rw 0 0\n", "ext4"),
        ("tmpfs /dev/shm tmpfs rw 0 0\n/dev/sdb /dev/shm xfs rw 0 0\n", "xfs"),
    ],
)
def test_the_file_system_of_shared_memory(host: Fake, mounts: str, kind: str) -> None:
    host.write("proc/self/mounts", mounts)
    assert host.look().shared_memory == kind


def test_other_people_are_those_who_can_log_in(host: Fake) -> None:
    people = (
        "root:x:0:0:root:/root:/bin/bash",
        "postgres:x:101:101::/var/lib/postgresql:/bin/bash",
        f"me:x:{ME}:{ME}::/home/me:/bin/bash",
        "bob:x:1001:1001::/home/bob:/usr/bin/zsh",
        "robot:x:1002:1002::/:/usr/sbin/nologin",
        "nobody:x:65534:65534::/:/bin/sh",
        "a broken line",
    )
    host.write("etc/passwd", "\n".join(people))
    assert host.look().others == ("bob",)


def test_whoever_has_a_process_is_here(host: Fake) -> None:
    host.write("proc/17/status", "")
    owner = (host.root / "proc/17").stat().st_uid
    expected = () if owner < 1000 else (f"user {owner}",)
    assert host.look().others == expected


def test_listening_sockets(host: Fake) -> None:
    head = "  sl  local_address rem_address   st"
    row = "   0: {}:{:04X} 00000000:0000 {} 00000000:00000000"
    host.write(
        "proc/net/tcp",
        "\n".join(
            (
                head,
                row.format("0100007F", 7090, "0A"),
                row.format("00000000", 7091, "0A"),
                row.format("0100007F", 7092, "01"),
            )
        ),
    )
    mapped = "0000000000000000FFFF00000100007F"
    loopback = "00000000000000000000000001000000"
    host.write(
        "proc/net/tcp6",
        "\n".join((head, row.format(loopback, 1, "0A"), row.format(mapped, 2, "0A"))),
    )
    assert host.look().listening == (
        ("127.0.0.1", 7090),
        ("0.0.0.0", 7091),
        ("::1", 1),
        ("127.0.0.1", 2),
    )


@pytest.mark.parametrize(
    ("hard", "powers", "users", "settable"),
    [
        (resource.RLIM_INFINITY, "0", "0 0 4294967295", True),
        (1, "0", "0 0 4294967295", True),
        (0, "0", "0 0 4294967295", False),
        (0, "000001ffffffffff", "0 0 4294967295", True),
        (0, "000001ffffffffff", "0 1000 1", False),
    ],
)
def test_whether_the_core_limit_can_be_set(
    host: Fake,
    monkeypatch: pytest.MonkeyPatch,
    hard: int,
    powers: str,
    users: str,
    settable: bool,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (0, hard))
    host.write("proc/self/status", f"Name:\tx\nCapEff:\t{powers}\n")
    host.write("proc/self/uid_map", f"  {users}\n")
    assert host.look().core_limit_settable is settable


def test_places_that_exist_are_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o750)
    file = folder / "one"
    file.touch(mode=0o640)
    owner = folder.stat().st_uid
    seen = look({}, ME, (folder, file, tmp_path / "not there"), tmp_path)
    assert seen.places == (
        Place(str(folder), owner, 0o750, True),
        Place(str(file), owner, 0o640, False),
    )
