"""One row in the making: what had to be found, and what must not be."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.audit.asking import Answer, Known
from bench.audit.findings import Finding, Verdict
from bench.records import TIERS


@dataclass
class Case:
    """Answers are added as they come; ``finding`` tells what they amount to.

    ``controls``: answers that had to find something, of which ``hits`` found just that.
    ``foreign``: tokens that were found where none were to be, ``indexed`` those that the index
    told of.
    """

    name: str
    controls: int = 0
    hits: int = 0
    probes: int = 0
    expected: int = 0
    found: int = 0
    foreign: int = 0
    indexed: int = 0
    leaks: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def hit(
        self, answer: Answer, tokens: int, what: str, *, tier: str = "gpu", path: str = ""
    ) -> None:
        """``answer`` had to find exactly so many ``tokens``, all in that ``tier``."""
        self.controls += 1
        self.expected += tokens
        self.found += answer.cached
        in_tier = answer.tiers.get(tier, 0)
        if answer.error:
            self.doubts.append(f"{what}: {answer.error}")
        elif answer.cached != tokens or in_tier != tokens:
            told = ", ".join(f"{name} {answer.tiers.get(name, 0)}" for name in TIERS)
            self.doubts.append(f"{what} found {told} ({answer.path}), not {tier} {tokens}")
        elif path and answer.path != path:
            self.doubts.append(f"{what} went {answer.path}, not {path}")
        else:
            self.hits += 1

    def miss(self, answer: Answer, what: str) -> None:
        """``answer`` must have found nothing, and the index nothing for it."""
        self.probes += 1
        if answer.error:
            self.doubts.append(f"{what}: {answer.error}")
            return
        tokens = answer.cached or (answer.prompt if answer.unforeseen else 0)
        self.foreign += tokens
        self.indexed += answer.known.total
        if answer.cached:
            self.leaks.append(f"{what} found {answer.cached} tokens")
        elif answer.unforeseen:
            self.leaks.append(f"{what} was served by decode, which held what the index did not")
        if answer.known.total:
            self.leaks.append(f"{what}: the index told of {answer.known.total} tokens")

    def knows(self, known: Known, wanted: Known, what: str) -> None:
        """The index had to know exactly ``wanted``."""
        self.controls += 1
        self.expected += wanted.total
        self.found += known.total
        if known == wanted:
            self.hits += 1
        else:
            self.doubts.append(f"{what}: the index knows {_told(known)}, not {_told(wanted)}")

    def unknown(self, known: Known, what: str) -> None:
        """The index must not know of anything."""
        self.probes += 1
        self.indexed += known.total
        if known.total:
            self.leaks.append(f"{what}: the index tells of {_told(known)}")

    def finding(self, verdict: Verdict = "pass") -> Finding:
        """What it amounts to; ``verdict``: where nothing leaked and nothing is in doubt."""
        if self.leaks:
            verdict = "fail"
        elif self.doubts:
            verdict = "invalid"
        figures = {
            name: getattr(self, name)
            for name in ("controls", "hits", "expected", "found", "probes", "foreign", "indexed")
        }
        why = "; ".join([*self.leaks, *self.doubts, *self.notes])
        return Finding(name=self.name, verdict=verdict, why=why, figures=figures)


def not_tried(name: str, why: str) -> Finding:
    """A row that this deployment, or what the audit may do to it, leaves out."""
    return Case(name, notes=[why]).finding("not tried")


def _told(known: Known) -> str:
    return f"prefill {known.prefill_gpu} GPU, {known.prefill_dram} DRAM, decode {known.decode_gpu}"
