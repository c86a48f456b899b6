"""``python bench/gpu_transport.py --json FILE``: how fast KV leaves, enters and crosses a GPU.

Needs a GPU, torch and numpy, and nothing else of kvferry's dependencies. Exit code 1 where a bound
is missed, 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if not __package__:
    # Run as a file: this folder's modules would stand in for the standard library's (``http``).
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from bench.gpu import ipc, nccl, paged
from bench.gpu.figures import Figure
from bench.measures.comparison import FEWEST_PAIRS


def main(argv: Sequence[str]) -> int:
    """Measures everything, prints a table, writes the file. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--rounds", type=int, default=30, help="of every comparison (%(default)s)")
    parser.add_argument("--mib", type=int, default=256, help="moved at once (%(default)s)")
    given = parser.parse_args(argv)
    if given.rounds < FEWEST_PAIRS or given.mib < 1:
        parser.error(f"{FEWEST_PAIRS} rounds and 1 MiB at least")
    if not torch.cuda.is_available():
        sys.stderr.write("there is no GPU here, or this torch has no CUDA\n")
        return 2
    found = []
    for figure in measure(given.mib << 20, given.rounds):
        sys.stdout.write(f"{line(figure)}\n")
        sys.stdout.flush()
        found.append(figure)
    if given.json is not None:
        settings = {"rounds": given.rounds, "mib": given.mib, "layers": paged.LAYERS}
        written = json.dumps(document(found, settings, argv), indent=2)
        given.json.write_text(f"{written}\n", encoding="utf-8")
    return int(any(figure.kept is False for figure in found))


def measure(size: int, rounds: int) -> Iterator[Figure]:
    """Every figure as it is found."""
    yield from paged.figures(size, rounds)
    yield from ipc.figures(size, rounds)
    yield from nccl.figures(size, rounds)


def line(figure: Figure) -> str:
    """One line of the table."""
    if figure.ratio is None:
        return f"{figure.name:32} not measured: {figure.missing}"
    interval = f"{figure.ratio.ratio:6.3f} ({figure.ratio.low:.3f} to {figure.ratio.high:.3f})"
    bound = "" if figure.bound is None else f"  >= {figure.bound:g}  "
    verdict = {None: "", True: "kept", False: "MISSED"}[figure.kept]
    return (
        f"{figure.name:32} {figure.speed:8.1f} of {figure.beside:8.1f} GB/s {interval}"
        f"{bound}{verdict}"
    )


def document(
    found: Sequence[Figure], settings: dict[str, int], argv: Sequence[str]
) -> dict[str, object]:
    """What the file holds: ``metrics`` are the intervals' lower ends, which the bounds are for."""
    missing = {figure.name: figure.missing for figure in found if figure.ratio is None}
    return {
        "schema": 1,
        "command": " ".join(["python bench/gpu_transport.py", *argv]),
        "metrics": {figure.name: figure.ratio.low for figure in found if figure.ratio is not None},
        "detail": {"figures": [_detail(figure) for figure in found], "not_measured": missing},
        "settings": settings,
        "environment": {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            "kernel": platform.release(),
        },
    }


def _detail(figure: Figure) -> dict[str, object]:
    ratio = figure.ratio
    interval = None if ratio is None else [ratio.low, ratio.high]
    return {
        "name": figure.name,
        "gb_per_s": figure.speed,
        "beside_gb_per_s": figure.beside,
        "ratio": None if ratio is None else ratio.ratio,
        "interval_95": interval,
        "bound": figure.bound,
        "kept": figure.kept,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
