"""Taking the picture of this host: all reading of /proc, /sys and folders is here.

What cannot be read is taken as what a host without the feature has: a kernel without swap has no
/proc/swaps.
"""

from __future__ import annotations

import ipaddress
import re
import resource
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from deploy.volatile.host import Host, Place

ROOT = Path("/")
FIRST_PERSON = 1000
"""User ids below are the system's own services'."""
_SERVICES = range(61_184, 65_536)
"""What systemd gives to services, and nobody."""
_NO_SHELL = frozenset({"nologin", "false", "sync", ""})
_CAP_SYS_RESOURCE = 1 << 24
_ALL_USERS = ["0", "0", "4294967295"]
_NO_LIMIT = 1 << 60
"""A version 1 group without a limit has one of about eight exbibytes."""
_LISTEN = "0A"
_CRASH_KERNEL = ("sys/kernel/kexec_crash_loaded", "sys/kernel/kexec/crash_loaded")
"""Where older and newer kernels tell of a second one that waits."""


def look(environment: Mapping[str, str], uid: int, ours: Iterable[Path], root: Path = ROOT) -> Host:
    """The picture for user ``uid``. ``ours``: what nobody else may touch, where it exists.

    ``root``: where the host's /proc, /sys and /etc are.
    """
    return Host(
        environment=environment,
        uid=uid,
        disk_swaps=_disk_swaps(root),
        swap_barred=_swap_barred(root),
        can_hibernate="disk" in _text(root / "sys/power/state").split(),
        core_pattern=_text(root / "proc/sys/kernel/core_pattern"),
        core_limit_settable=_core_limit_settable(root),
        kernel_dumps="1" in (_text(root / place) for place in _CRASH_KERNEL),
        shared_memory=_file_system(root, "/dev/shm"),  # noqa: S108 - looked at only
        ptrace_scope=_number(_text(root / "proc/sys/kernel/yama/ptrace_scope")),
        others=_others(root, uid),
        listening=tuple(_listening(root)),
        places=tuple(_places(ours)),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _disk_swaps(root: Path) -> tuple[str, ...]:
    """Swap areas but those of zram that have no disk behind them."""
    areas = [line.split()[0] for line in _text(root / "proc/swaps").splitlines()[1:] if line]
    return tuple(area for area in areas if not _in_memory(root, Path(area).name))


def _in_memory(root: Path, device: str) -> bool:
    backing = _text(root / "sys/block" / device / "backing_dev") or "none"
    return re.fullmatch(r"zram\d+", device) is not None and backing == "none"


def _swap_barred(root: Path) -> bool:
    """Whether a control group above us has no swap: version 2 by its own limit, 1 by the sum's."""
    groups = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            bases = (groups, groups / "unified")
            if any(
                _text(at / "memory.swap.max") == "0" for base in bases for at in _up(base, path)
            ):
                return True
        elif "memory" in controllers.split(",") and any(
            _no_more_than_memory(at) for at in _up(groups / "memory", path)
        ):
            return True
    return False


def _up(base: Path, path: str) -> Iterable[Path]:
    """The group at ``path`` below ``base`` and all above it."""
    own = base / path.lstrip("/")
    return (own, *(above for above in own.parents if above.is_relative_to(base)))


def _no_more_than_memory(group: Path) -> bool:
    both, memory = (
        _number(_text(group / f"memory.{name}limit_in_bytes")) for name in ("memsw.", "")
    )
    return both is not None and memory is not None and both <= memory < _NO_LIMIT


def _core_limit_settable(root: Path) -> bool:
    """Whether RLIMIT_CORE can be made 1: a hard limit of 0 only a powerful process can raise."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard != 0:
        return True
    status = dict(
        line.split(":", 1) for line in _text(root / "proc/self/status").splitlines() if ":" in line
    )
    powers = int(status.get("CapEff", "0").strip(), 16)
    # In a user namespace of its own a process has powers over that only.
    unconfined = _text(root / "proc/self/uid_map").split() == _ALL_USERS
    return bool(powers & _CAP_SYS_RESOURCE) and unconfined


def _file_system(root: Path, path: str) -> str:
    """The type of the file system that ``path`` is on; "" where that cannot be told."""
    best, kind = -1, ""
    for line in _text(root / "proc/self/mounts").splitlines():
        _, where, type_, *_ = line.split()
        prefix = where.rstrip("/")
        if (path == prefix or path.startswith(f"{prefix}/")) and len(prefix) >= best:
            best, kind = len(prefix), type_
    return kind


def _others(root: Path, uid: int) -> tuple[str, ...]:
    """People who can log in, and those who have processes, but ``uid`` and root."""
    names: dict[int, str] = {}
    able: set[int] = set()
    for line in _text(root / "etc/passwd").splitlines():
        fields = line.split(":")
        if len(fields) == 7 and fields[2].isdecimal():
            names.setdefault(int(fields[2]), fields[0])
            if Path(fields[6]).name not in _NO_SHELL:
                able.add(int(fields[2]))
    people = {one for one in able | _process_users(root) if _is_person(one) and one != uid}
    return tuple(names.get(one, f"user {one}") for one in sorted(people))


def _is_person(uid: int) -> bool:
    return uid >= FIRST_PERSON and uid not in _SERVICES


def _process_users(root: Path) -> set[int]:
    found = set()
    for entry in (root / "proc").glob("[0-9]*"):
        try:
            found.add(entry.stat().st_uid)
        except OSError:
            continue  # ended meanwhile
    return found


def _listening(root: Path) -> Iterable[tuple[str, int]]:
    """Addresses and ports of listening TCP sockets, from /proc/net/tcp's hexadecimal words."""
    for file in ("tcp", "tcp6"):
        for line in _text(root / "proc/net" / file).splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, port = local.split(":")
            if state == _LISTEN:
                words = (address[at : at + 8] for at in range(0, len(address), 8))
                packed = b"".join(bytes.fromhex(word)[::-1] for word in words)
                yield str(_plain(ipaddress.ip_address(packed))), int(port, 16)


def _plain(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _places(ours: Iterable[Path]) -> Iterable[Place]:
    for path in ours:
        try:
            status = path.stat()
        except OSError:
            continue  # not there: it is made, privately, by the first start
        mode = stat.S_IMODE(status.st_mode)
        yield Place(str(path), status.st_uid, mode, stat.S_ISDIR(status.st_mode))
