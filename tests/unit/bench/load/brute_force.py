"""What an unlimited cache would find, told from the texts alone."""

from typing import Any

from bench.load.schedule import Planned, Schedule
from bench.load.words import Words


class Remembered:
    """A tree of words: everything that one tenant ever asked."""

    def __init__(self) -> None:
        self._root: dict[str, Any] = {}

    def ask(self, words: list[str]) -> int:
        """How many of the first ``words`` anything before began with; all are known afterwards."""
        node, found, known = self._root, 0, True
        for word in words:
            known = known and word in node
            found += known
            node = node.setdefault(word, {})
        return found


def shared(schedule: Schedule, salt: str = "salt") -> list[tuple[int, int]]:
    """(words found, words asked) of every measured request. Answers are words of their own."""
    texts = Words(salt)
    caches: dict[int, Remembered] = {}
    talks: dict[int, list[str]] = {}

    def ask(planned: Planned) -> tuple[int, int]:
        cache = caches.setdefault(planned.tenant, Remembered())
        prompt = talks.get(planned.conversation, []) + texts.prompt(planned.prompt).split()
        found = cache.ask(prompt)
        answer = [
            f"{planned.conversation}.{planned.turn}.{number}"
            for number in range(planned.output_tokens)
        ]
        talks[planned.conversation] = prompt + answer
        cache.ask(prompt + answer)
        return found, len(prompt)

    for planned in schedule.before:
        ask(planned)
    return [ask(planned) for planned in schedule.requests]


def hit_ratio(schedule: Schedule) -> float:
    """Fraction of measured words that were found."""
    told = shared(schedule)
    return sum(found for found, _ in told) / sum(asked for _, asked in told)
