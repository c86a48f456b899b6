"""All that the self-check knows of a host: a picture, taken once, so that checks are pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A folder or file of ours that exists: who owns it and its permission bits."""

    path: str
    uid: int
    mode: int
    is_folder: bool


@dataclass(frozen=True)
class Host:
    """The picture. Its defaults are a host on which there is nothing to find.

    - ``environment``: what children inherit; ``uid``: who runs them
    - ``disk_swaps``: swap areas that are not in memory; ``swap_barred``: our control group may
      not use them
    - ``can_hibernate``: the kernel offers suspending to disk
    - ``core_pattern``: where the kernel sends core dumps; ``core_limit_settable``: whether a
      process of ours can set RLIMIT_CORE to 1
    - ``kernel_dumps``: a crashing kernel would write all memory to a disk
    - ``shared_memory``: the file system of /dev/shm
    - ``ptrace_scope``: Yama's setting, None where the kernel has no Yama
    - ``others``: people besides us who can log in or have processes here
    - ``listening``: TCP addresses and ports somebody listens on
    - ``places``: our private folders and files, as far as they exist
    """

    environment: Mapping[str, str]
    uid: int = 0
    disk_swaps: tuple[str, ...] = ()
    swap_barred: bool = False
    can_hibernate: bool = False
    core_pattern: str = "core"
    core_limit_settable: bool = True
    kernel_dumps: bool = False
    shared_memory: str = "tmpfs"
    ptrace_scope: int | None = 1
    others: tuple[str, ...] = ()
    listening: tuple[tuple[str, int], ...] = ()
    places: tuple[Place, ...] = ()
