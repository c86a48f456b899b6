"""Goes through all places, one row each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.audit import processes
from bench.audit.findings import Finding, Verdict
from bench.audit.volatile.canary import Form
from bench.audit.volatile.places import Mount, Walk, core_folder, swaps
from bench.audit.volatile.searching import Searched, Searcher

_CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
_SWAPS = Path("/proc/swaps")
_SHOWN = 5


@dataclass
class Sweep:
    """``planted``: the control's files, by folder; ``forms`` are in each. ``live``: memory that the
    deployment shares now, by path; what is there is where it should be. ``others``: that other
    programs use. ``shared``: the folder of both.
    """

    searcher: Searcher
    mounts: Sequence[Mount]
    walk: Walk
    live: frozenset[str]
    others: frozenset[str]
    planted: dict[str, str]
    shared: str
    control: Sequence[Form]
    wanted: Sequence[Form]
    findings: list[Finding] = field(default_factory=list)
    found: int = 0
    controls_found: int = 0
    _seen: set[str] = field(default_factory=set)

    def run(self, deployment: Sequence[psutil.Process]) -> None:
        """All of it; files first that the deployment has open."""
        self._open_files(deployment)
        self._shared_memory()
        self._cores(deployment)
        for folder in self.planted:
            if folder not in {mount.path for mount in self.mounts} | {self.shared}:
                self._folder(folder)
        for mount in self.mounts:
            if mount.searched and mount.path != self.shared:
                self._mount(mount)
        self._swap()

    def _open_files(self, deployment: Sequence[psutil.Process]) -> None:
        result, deleted, hidden = Searched(), 0, 0
        for process in deployment:
            try:
                for file in processes.open_files(process):
                    deleted += file.deleted
                    result.add(self.searcher.file(file.path, file.name))
            except OSError:
                hidden += 1
        why = f"{len(deployment)} processes, {deleted} of the files deleted"
        if hidden:
            why += f"; {hidden} processes do not let this user look"
        blind = not deployment or hidden == len(deployment)
        self._row("files that its processes have open", result, None, why, blind=blind)

    def _shared_memory(self) -> None:
        left, live = Searched(), Searched()
        for name in sorted(os.listdir(self.shared)):  # noqa: PTH208 - names are what is wanted
            path = f"{self.shared}/{name}"
            if Path(path).is_file():
                if path in self.live:
                    live.add(self.searcher.file(path))
                elif path not in self.others:
                    left.add(self.searcher.file(path))
        wanted = {form.name for form in self.wanted}
        meant = {name: count for name, count in live.found.items() if name in wanted}
        told = ", ".join(f"{name} {count} times" for name, count in sorted(meant.items()))
        why = (
            f"in memory in use, as meant, in {live.bytes >> 20} MiB: {told or 'nothing'}; "
            "figures are of what nobody uses"
        )
        if self.others:
            why += f"; {len(self.others)} that other programs use were left out"
        self._row(f"{self.shared}, left over", left, self.shared, why)

    def _cores(self, deployment: Sequence[psutil.Process]) -> None:
        pattern, result, folders = _CORE_PATTERN.read_text(encoding="utf-8").strip(), Searched(), []
        for process in deployment:
            try:
                folder = core_folder(pattern, Path(process.cwd()))
            except psutil.Error:
                continue
            if folder is not None and folder not in folders:
                folders.append(folder)
        for folder in folders:
            for file in sorted(folder.glob("*core*")) if folder.is_dir() else ():
                if file.is_file():
                    result.add(self.searcher.file(str(file)))
        told = f"core_pattern is {pattern!r}"
        if pattern.startswith("|"):
            told += ": what that program keeps is searched only where it is not compressed"
        self._row("core files", result, None, told)

    def _folder(self, folder: str) -> None:
        result = Searched()
        for path in self.walk.changed(folder):
            self._seen.add(path)
            result.add(self.searcher.file(path))
        self._row(folder, result, folder, "")

    def _mount(self, mount: Mount) -> None:
        result, hidden = Searched(), self.walk.unreadable
        try:
            for path in self.walk.changed(mount.path):
                if path not in self._seen:
                    result.add(self.searcher.file(path))
                if self.searcher.spent:
                    result.left += 1
                    break
        except OSError:
            result.unreadable += 1
        result.unreadable += self.walk.unreadable - hidden
        why = "" if mount.path in self.planted else "no control: this user may not write there"
        self._row(f"{mount.path} ({mount.kind})", result, mount.path, why)

    def _swap(self) -> None:
        devices = swaps(_SWAPS.read_text(encoding="utf-8")) if _SWAPS.exists() else []
        if devices:
            why = f"{', '.join(devices)}: pages may lie there and are not searched; turn swap off"
            self.findings.append(Finding(name="swap", verdict="not tried", why=why))
        else:
            self.findings.append(Finding(name="swap", verdict="pass", why="there is none"))

    def _row(
        self, name: str, result: Searched, control: str | None, why: str, *, blind: bool = False
    ) -> None:
        hits = sum(result.found[form] for form in {form.name for form in self.wanted})
        missed: list[str] = []
        if control in self.planted:
            missed = [one.name for one in self.control if not result.found[one.name]]
            self.controls_found += not missed
        told = [
            why,
            f"not found: {', '.join(missed)}" if missed else "",
            f"bytes or time ran out, {result.left} files or more were left" if result.left else "",
            "nothing could be looked into" if blind else "",
            *result.where[:_SHOWN],
        ]
        verdict: Verdict = "invalid" if missed or result.left or blind else "pass"
        figures = {
            "files": result.files,
            "mib": round(result.bytes / (1 << 20), 1),
            "found": hits,
            "control": _control(result, self.control) if control in self.planted else None,
            "unreadable": result.unreadable,
        }
        self.found += hits
        self.findings.append(
            Finding(
                name=name,
                verdict="fail" if hits else verdict,
                why="; ".join(part for part in told if part),
                figures=figures,
            )
        )


def _control(result: Searched, forms: Sequence[Form]) -> str:
    return f"{sum(1 for one in forms if result.found[one.name])} of {len(forms)} forms"


def writable(mounts: Iterable[Mount]) -> list[str]:
    """Folders at which something can be planted."""
    return [mount.path for mount in mounts if mount.searched and Path(mount.path).is_dir()]
