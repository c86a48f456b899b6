"""Builds of kvferry with one protection removed each, for the audit to find.

A mutant is a copy of the packages in which a piece of text is another one. The piece must be there
exactly once, so that a change of the code shows here.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("bench", "decode", "deploy", "kvstore", "prefill", "proxy")
ROOT = Path(__file__).parents[2]

ONE_FOR_ALL = '"0123456789abcdef-0-" + "0" * 64'
"""A salt as any other, and everybody's."""


Edit = tuple[str, str, str]
"""A file, what is in it once, and what stands there instead."""


@dataclass(frozen=True)
class Mutant:
    """A build that differs by these ``edits``."""

    name: str
    edits: tuple[Edit, ...]

    def build(self, folder: Path) -> Path:
        """The mutant's tree in ``folder``, which is returned."""
        for package in PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(ROOT / package, folder / package, ignore=ignored)
        for file, before, after in self.edits:
            text = (folder / file).read_text(encoding="utf-8")
            assert text.count(before) == 1, f"{self.name}: {text.count(before)} times: {before}"
            (folder / file).write_text(text.replace(before, after), encoding="utf-8")
        return folder


MUTANTS = (
    Mutant(
        "salt-dropped-at-vllm",
        (
            ("proxy/legs.py", '"cache_salt": salt,', f'"cache_salt": {ONE_FOR_ALL},'),
            ("proxy/legs.py", '"cache_salt": salt}', f'"cache_salt": {ONE_FOR_ALL}}}'),
        ),
    ),
    Mutant(
        "salt-dropped-at-lmcache",
        (("prefill/scheduling.py", 'tokens, request.cache_salt or ""', f"tokens, {ONE_FOR_ALL}"),),
    ),
    Mutant(
        "salt-dropped-in-the-index",
        (("proxy/planning.py", "size, job.salt, lora)", f"size, {ONE_FOR_ALL}, lora)"),),
    ),
    Mutant(
        "adapter-left-out-of-the-salt",
        (
            (
                "proxy/pipeline.py",
                "served.within(Scope(tenant.name, tenant.epoch, request.sub_scope))",
                "Scope(tenant.name, tenant.epoch, request.sub_scope)",
            ),
        ),
    ),
    Mutant(
        "client-salt-passed-through",
        (
            ("proxy/fields.py", '"cache_salt": _OURS', '"cache_salt": _PASSED'),
            (
                "proxy/legs.py",
                'body = {**request.body, "cache_salt": salt}',
                'body = {"cache_salt": salt, **request.body}',
            ),
        ),
    ),
)
