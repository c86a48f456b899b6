"""What of the host could write memory to a disk, or show it to others."""

from __future__ import annotations

from collections.abc import Callable

from deploy.volatile.findings import Finding, Profile, flaw, ok
from deploy.volatile.host import Host

Check = Callable[[Host, Profile], Finding]

_NAMED = 3
"""How many people are named; the others are counted."""


def swap(host: Host, profile: Profile) -> Finding:
    """Swap areas on disks, unless our control group may not use them."""
    name = "swap"
    if not host.disk_swaps:
        return ok(name, "none on a disk")
    if host.swap_barred:
        return ok(name, "there, and barred to this control group")
    found = f"on {', '.join(host.disk_swaps)}: memory is written there"
    fix = "swapoff -a, or a control group with memory.swap.max = 0 (systemd: MemorySwapMax=0)"
    return flaw(name, profile, "host", found, fix)


def hibernation(host: Host, profile: Profile) -> Finding:
    """Suspending to disk writes all memory to a swap area, whatever control groups say."""
    name = "hibernation"
    if not (host.can_hibernate and host.disk_swaps):
        return ok(name, "not possible")
    found = f"possible: all memory would be written to {host.disk_swaps[0]}"
    return flaw(name, profile, "host", found, "swapoff -a, or boot with nohibernate")


def core_dumps(host: Host, profile: Profile) -> Finding:
    """Where a crashed process's memory goes.

    Children of ours have RLIMIT_CORE 1: too little for a file, and to the kernel a sign that no
    program is to be started either (core(5)). A socket is not bound by it, and where the hard
    limit is 0 already it cannot be set: 0 stops files only.
    """
    name, fix = "core dumps", "sysctl -w kernel.core_pattern=core"
    if host.core_pattern.startswith("@"):
        return flaw(name, profile, "leak", "sent to a socket, which no limit prevents", fix)
    if not host.core_pattern.startswith("|"):
        return ok(name, "to files, which the limit on ours prevents (RLIMIT_CORE)")
    if not host.core_limit_settable:
        found = "piped to a program, and the hard limit of 0 keeps us from preventing it"
        return flaw(name, profile, "leak", found, f"start it with ulimit -Hc 1, or {fix}")
    found = "piped to a program; only the limit on ours (RLIMIT_CORE 1) prevents it"
    return flaw(name, profile, "host", found, fix)


def kernel_dumps(host: Host, profile: Profile) -> Finding:
    """A second kernel that waits to write all memory to a disk when the first one crashes."""
    name = "kernel dumps"
    if not host.kernel_dumps:
        return ok(name, "none would be written")
    found = "a crashing kernel would write all memory to a disk"
    return flaw(name, profile, "host", found, "systemctl disable --now kdump, or kexec -p -u")


def shared_memory(host: Host, profile: Profile) -> Finding:
    """What /dev/shm is: the DRAM tier and the engines' queues are files in it."""
    name = "/dev/shm"  # noqa: S108 - a name, not a place to write to
    if host.shared_memory in ("tmpfs", "ramfs"):
        return ok(name, f"a {host.shared_memory}")
    found = f"{host.shared_memory or 'an unknown file system'}: KV would be written to it"
    return flaw(name, profile, "leak", found, "mount -t tmpfs tmpfs /dev/shm")


def tracing(host: Host, profile: Profile) -> Finding:
    """Whether programs of the same user may read each other's memory (Yama's ptrace_scope).

    Workers of one host read each other's KV that way, and allow it for themselves.
    """
    name = "ptrace"
    if host.ptrace_scope:
        return ok(name, f"restricted (ptrace_scope {host.ptrace_scope})")
    found = "any program of this user may read the proxy's memory"
    if host.ptrace_scope is None:
        return flaw(name, profile, "host", found, "boot a kernel with Yama (CONFIG_SECURITY_YAMA)")
    return flaw(name, profile, "host", found, "sysctl -w kernel.yama.ptrace_scope=1")


def other_people(host: Host, profile: Profile) -> Finding:
    """Who else is here: loopback ports, LMCache's among them, are open to everyone on a host."""
    name = "other users"
    if not host.others:
        return ok(name, "none")
    more = len(host.others) - _NAMED
    named = ", ".join(host.others[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    found = f"{named}: LMCache's port on this host asks nobody for a key"
    fix = "a host, or a container with processes and network of its own, for kvferry alone"
    return flaw(name, profile, "host", found, fix)


CHECKS: tuple[Check, ...] = (
    swap,
    hibernation,
    core_dumps,
    kernel_dumps,
    shared_memory,
    tracing,
    other_people,
)
