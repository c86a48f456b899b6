"""What is there is found, in every form and wherever it lies; what is not there is not."""

from __future__ import annotations

import base64
import itertools
import json
import os
import random
import struct
from pathlib import Path

import pytest

from bench.audit.volatile import canary, places, searching
from bench.audit.volatile.canary import Form
from bench.audit.volatile.places import Mount, Walk
from bench.audit.volatile.planting import planted
from bench.audit.volatile.searching import Searcher

MARKER = "00112233445566778899aabbccddeeff"
WANTED = [
    *canary.text_forms(MARKER),
    *canary.token_forms(list(range(7, 23))),
    *canary.kv_forms([bytes(range(64))]),
]


def searcher(most: int = 1 << 30, control: list[Form] | None = None) -> Searcher:
    return Searcher(WANTED, control or [], most, until=10.0, clock=lambda: 0.0)


def found(content: bytes, folder: Path) -> list[str]:
    file = folder / "file"
    file.write_bytes(content)
    return sorted(searcher().file(str(file)).found)


WRITTEN = {
    "log": (f"INFO prompt={canary.text_of(MARKER)}".encode(), "text (UTF-8, JSON)"),
    "json": (json.dumps({"p": f'"é\n{MARKER}\\'}).encode(), "text (UTF-8, JSON)"),
    "utf-16": (f"é{MARKER}".encode("utf-16-le"), "text (UTF-16 LE)"),
    "utf-16 be": (f"é{MARKER}".encode("utf-16-be"), "text (UTF-16 BE)"),
    "int32": (struct.pack("<20i", *range(5, 25)), "tokens (int32)"),
    "int64": (struct.pack("<20q", *range(5, 25)), "tokens (int64)"),
    "list": (str(list(range(5, 25))).encode(), "tokens (text)"),
    "compact": (
        json.dumps(list(range(5, 25)), separators=(",", ":")).encode(),
        "tokens (compact text)",
    ),
    "kv": (b"x" * 77 + bytes(range(64)) + b"y", "KV"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_every_form_is_found(tmp_path: Path, name: str) -> None:
    content, form = WRITTEN[name]
    assert form in found(content, tmp_path)


@pytest.mark.parametrize("before", range(7))
def test_base64_is_found_wherever_it_begins(tmp_path: Path, before: int) -> None:
    content = base64.b64encode(b"q" * before + MARKER.encode() + b"zz")
    assert found(content, tmp_path) == [f"text (base64, {before % 3})"]


def test_nothing_is_found_in_anything_else(tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(1 << 20)
    assert found(noise + MARKER[:-1].encode(), tmp_path) == []


def test_what_lies_across_pieces_is_found_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "PIECE", 256)
    pattern = canary.token_forms(list(range(7, 23)))[1].pattern
    for at in itertools.chain(range(256 - len(pattern) - 2, 260), (0, 511, 1000)):
        content = bytearray(b"." * 1400)
        content[at : at + len(pattern)] = pattern
        file = tmp_path / "file"
        file.write_bytes(content)
        result = searcher().file(str(file))
        assert result.found == {"tokens (int64)": 1}, at
        assert result.where == [f"tokens (int64) in {file} at {at}"]
        assert result.bytes == 1400


@pytest.mark.parametrize("at", [0, 65500, 65536, 200_000, 262_100, 299_900])
def test_what_lies_among_zeros_is_found(tmp_path: Path, at: int) -> None:
    content = bytearray(300_000)
    pattern = WANTED[0].pattern
    content[at : at + len(pattern)] = pattern
    assert found(bytes(content), tmp_path) == ["text (UTF-8, JSON)"]


def test_only_what_is_written_is_looked_at() -> None:
    size = searching.WINDOW
    held = bytearray(10 * size + 5)
    held[2 * size] = held[5 * size - 1] = held[7 * size] = 1
    spans = searching.written(bytes(held), 10)
    assert spans == [
        (2 * size - 10, 3 * size + 10),
        (4 * size - 10, 5 * size + 10),
        (7 * size - 10, 8 * size + 10),
        (10 * size - 10, 10 * size + 5),
    ]
    assert searching.written(b"", 10) == []


def test_every_copy_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"-".join([MARKER.encode()] * 5))
    assert searcher().file(str(file)).found["text (UTF-8, JSON)"] == 5


def test_bounds_leave_something_and_say_so(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1000))
    short = searcher(most=500)
    assert short.file(str(file)).left == 1
    assert short.spent
    assert short.file(str(file)).left == 1
    late = Searcher(WANTED, [], 1 << 30, until=10.0, clock=lambda: 11.0)
    assert late.file(str(file)).left == 1


def test_what_cannot_be_read_is_counted(tmp_path: Path) -> None:
    assert searcher().file(str(tmp_path / "none")).unreadable == 1
    assert searcher().file(str(tmp_path)).unreadable == 1


def test_the_control_is_found_where_it_was_planted_and_is_gone_afterwards(tmp_path: Path) -> None:
    control = canary.control_forms()
    search = Searcher(WANTED, control, 1 << 20, until=10.0, clock=lambda: 0.0)
    with planted([str(tmp_path), str(tmp_path / "none"), str(tmp_path)], control) as files:
        assert list(files) == [str(tmp_path)]
        (file,) = tmp_path.iterdir()
        assert file.stat().st_mode & 0o777 == 0o600
        result = search.file(files[str(tmp_path)])
        assert result.found == {form.name: 1 for form in control}
        assert not result.where  # it is nobody's prompt
    assert not list(tmp_path.iterdir())


def test_controls_have_all_forms_and_none_of_the_canarys() -> None:
    control = canary.control_forms()
    assert {form.name for form in control} == {f"control: {form.name}" for form in WANTED}
    content = canary.planted(control)
    assert not any(form.pattern in content for form in WANTED)


MOUNTS = """\
proc /proc proc rw,relatime 0 0
overlay / overlay rw,relatime 0 0
tmpfs /dev/shm tmpfs rw 0 0
/dev/sda1 /a\\040b ext4 ro,noatime 0 0
tmpfs /a\\040b tmpfs rw,size=1k 0 0
server:/x /mnt/x nfs4 rw 0 0
cgroup2 /sys/fs/cgroup cgroup2 rw 0 0
"""


def test_mounts_that_hold_files() -> None:
    found = places.mounts(MOUNTS)
    assert [mount.path for mount in found] == [
        *("/proc", "/", "/dev/shm", "/a b", "/mnt/x", "/sys/fs/cgroup")
    ]
    assert [mount for mount in found if mount.searched] == [
        Mount("/", "overlay", writable=True),
        Mount("/dev/shm", "tmpfs", writable=True),
        Mount("/a b", "tmpfs", writable=True),
        Mount("/mnt/x", "nfs4", writable=True),
    ]


def test_swap() -> None:
    assert places.swaps("Filename\t\t\t\tType\n/dev/sdb1 partition 1 0 -2\n") == ["/dev/sdb1"]
    assert places.swaps("Filename Type Size Used Priority\n") == []


def test_cores() -> None:
    assert places.core_folder("core.%p", Path("/srv/x")) == Path("/srv/x")
    assert places.core_folder("/var/cores/%e", Path("/srv/x")) == Path("/var/cores")
    assert places.core_folder("|/usr/lib/systemd/systemd-coredump %P", Path("/")) is None


def test_a_walk_finds_what_changed_and_enters_no_other_mount(tmp_path: Path) -> None:
    for name in ("old", "new", "deep/new", "other/new"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "new")
    os.mkfifo(tmp_path / "pipe")
    since = (tmp_path / "new").stat().st_ctime + 100
    walk = Walk([str(tmp_path / "other")], since)
    assert list(walk.changed(str(tmp_path))) == []
    os.utime(tmp_path / "deep/new", (since, since + 1))
    assert list(walk.changed(str(tmp_path))) == [str(tmp_path / "deep/new")]
    everything = Walk([str(tmp_path / "other")], 0)
    names = sorted(Path(path).name for path in everything.changed(str(tmp_path)))
    assert names == ["new", "new", "old"]
    assert list(everything.changed(str(tmp_path / "old"))) == [str(tmp_path / "old")]
