"""What of a host is refused, under which profile, and that nothing is found where nothing is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from deploy.volatile import host_checks
from deploy.volatile.findings import Profile, State
from deploy.volatile.host import Host
from deploy.volatile.host_checks import Check

QUIET = Host(environment={})
PROFILES: tuple[Profile, ...] = ("laptop", "strict")


@pytest.mark.parametrize("check", host_checks.CHECKS)
def test_a_quiet_host_has_nothing_to_find(check: Check) -> None:
    for profile in PROFILES:
        finding = check(QUIET, profile)
        assert (finding.state, finding.fix) == ("ok", "")


@pytest.mark.parametrize(
    ("check", "seen", "laptop"),
    [
        (host_checks.swap, {"disk_swaps": ("/dev/sda2",)}, "warning"),
        (
            host_checks.hibernation,
            {"can_hibernate": True, "disk_swaps": ("/dev/sda2",), "swap_barred": True},
            "warning",
        ),
        (host_checks.core_dumps, {"core_pattern": "|/lib/systemd/systemd-coredump %P"}, "warning"),
        (
            host_checks.core_dumps,
            {"core_pattern": "|/usr/bin/keep", "core_limit_settable": False},
            "refused",
        ),
        (host_checks.core_dumps, {"core_pattern": "@/run/coredump.socket"}, "refused"),
        (host_checks.core_dumps, {"core_pattern": "@@/run/coredump.socket"}, "refused"),
        (host_checks.kernel_dumps, {"kernel_dumps": True}, "warning"),
        (host_checks.shared_memory, {"shared_memory": "ext4"}, "refused"),
        (host_checks.shared_memory, {"shared_memory": ""}, "refused"),
        (host_checks.tracing, {"ptrace_scope": 0}, "warning"),
        (host_checks.tracing, {"ptrace_scope": None}, "warning"),
        (host_checks.other_people, {"others": ("bob",)}, "warning"),
    ],
)
def test_what_is_there_is_found(check: Check, seen: dict[str, Any], laptop: State) -> None:
    host = replace(QUIET, **seen)
    on_laptop, strict = check(host, "laptop"), check(host, "strict")
    assert on_laptop.state == laptop
    assert strict.state == "refused"
    assert strict.fix
    assert (strict.name, strict.found) == (on_laptop.name, on_laptop.found)


@pytest.mark.parametrize(
    ("check", "seen"),
    [
        (host_checks.swap, {"disk_swaps": ("/dev/sda2",), "swap_barred": True}),
        (host_checks.hibernation, {"can_hibernate": True}),
        (host_checks.core_dumps, {"core_pattern": "/var/cores/%p", "core_limit_settable": False}),
        (host_checks.core_dumps, {"core_pattern": ""}),
        (host_checks.shared_memory, {"shared_memory": "ramfs"}),
        (host_checks.tracing, {"ptrace_scope": 3}),
    ],
)
def test_what_cannot_write_is_fine(check: Check, seen: dict[str, Any]) -> None:
    assert check(replace(QUIET, **seen), "strict").state == "ok"


def test_many_people_are_counted() -> None:
    host = replace(QUIET, others=("ann", "bob", "cyd", "dan", "eve"))
    assert "ann, bob, cyd and 2 more" in host_checks.other_people(host, "strict").found
