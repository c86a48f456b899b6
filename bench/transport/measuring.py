"""Rounds of moves, contender after contender, in processes that stay up for all of them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from bench.noise import CpuWatch
from bench.processes import Child
from bench.transport.contender import Contender, Mooncake, Nixl
from bench.transport.ends.end import ADVICE, TransportFailed
from bench.transport.figures import Taken
from bench.transport.goals import Figure
from bench.transport.pair import Pair, PairSettings
from bench.transport.plan import PEER_LARGEST, Plan

_OURS = "kvferry"

Say = Callable[[str], None]
"""Given one line of progress at a time."""


def peer_interpreter() -> Path:
    """Of the environment beside this one in which ``make peers`` installs."""
    return Path(sys.prefix).parent / ".venv-peers" / "bin" / "python"


async def measure(plan: Plan, say: Say, peers: Path | None = None) -> Taken:
    """Everything in the plan. Raises TransportFailed where a transport or a limit fails; a peer
    that does is left out. ``peers``: the interpreter that has them."""
    taken = Taken()
    figures = plan.figures()
    with tempfile.TemporaryDirectory(prefix="kvferry-transport-") as folder:
        async with AsyncExitStack() as stack:
            floor = _Floor(stack, Path(folder), plan, peers or peer_interpreter())
            for contender in dict.fromkeys(figure.contender for figure in figures):
                await floor.admit(contender, taken)
            for figure in figures:
                await floor.check(figure, taken)
            say(f"{len(taken.seconds)} kinds of moves, every byte of them in its place")
            watch = CpuWatch(floor.children)
            for number in range(plan.rounds):
                for figure in plan.shuffled(figures, number):
                    await floor.repeat(figure, taken)
                say(f"round {number + 1} of {plan.rounds}")
            taken.others = watch.others()
    for contender, reason in taken.missing.items():
        say(f"without {contender.name}: {reason}")
    return taken


class _Floor:
    """The pairs that are up: one for our transports and the limits, one for each peer."""

    def __init__(self, stack: AsyncExitStack, folder: Path, plan: Plan, peers: Path) -> None:
        self._stack = stack
        self._folder = folder
        self._plan = plan
        self._peers = peers
        self._pairs: dict[str, Pair] = {}

    @property
    def children(self) -> Sequence[Child]:
        return [child for pair in self._pairs.values() for child in pair.children]

    async def admit(self, contender: Contender, taken: Taken) -> None:
        """Its two ends are there and know each other."""
        with _left_out(contender, taken):
            version = await (await self._pair_of(contender)).open(contender)
            if version:
                taken.versions[contender.name] = version

    async def check(self, figure: Figure, taken: Taken) -> None:
        """What it moves arrives; so it takes part in the rounds."""
        if figure.contender in taken.missing:
            return
        with _left_out(figure.contender, taken):
            pair = await self._on_turn(figure.contender)
            await pair.check(figure.contender, figure.case)
            taken.seconds[figure] = []

    async def repeat(self, figure: Figure, taken: Taken) -> None:
        """Its moves of one round."""
        if figure.contender in taken.missing:
            return
        with _left_out(figure.contender, taken):
            pair = await self._on_turn(figure.contender)
            moves = range(figure.case.repeats)
            taken.seconds[figure].append(
                [await pair.move(figure.contender, figure.case) for _ in moves]
            )

    async def _on_turn(self, contender: Contender) -> Pair:
        """Its pair, with peers whose turn it is not stopped.

        Ours are never: their connection would take the silence for a loss.
        """
        pair = await self._pair_of(contender)
        for name, other in self._pairs.items():
            if other is not pair and name != _OURS:
                other.pause()
        pair.resume()
        return pair

    async def _pair_of(self, contender: Contender) -> Pair:
        """Started, if it is not up yet. Raises TransportFailed."""
        name = contender.name if isinstance(contender, Mooncake | Nixl) else _OURS
        if name not in self._pairs:
            self._pairs[name] = await self._stack.enter_async_context(
                Pair(self._settings(name), self._folder)
            )
        return self._pairs[name]

    def _settings(self, name: str) -> PairSettings:
        if name == _OURS:
            return PairSettings(name, Path(sys.executable), self._plan.held, self._plan.bound)
        if not self._peers.exists():
            raise TransportFailed(f"{name} is not installed: {ADVICE}")
        # Never bound: all their threads would share one core, where ours free themselves.
        return PairSettings(name, self._peers, min(self._plan.held, PEER_LARGEST))


@contextmanager
def _left_out(contender: Contender, taken: Taken) -> Iterator[None]:
    """A peer that fails is left out of all that follows; what is ours must not fail."""
    try:
        yield
    except TransportFailed as failure:
        if not isinstance(contender, Mooncake | Nixl):
            raise
        taken.missing[contender] = str(failure)
        for figure in [one for one in taken.seconds if one.contender == contender]:
            del taken.seconds[figure]
