"""Greedy output is the single engine's, token for token; or the difference is shown to be a tie.

Both systems are asked the same prompts. Where the two answers part, the tokens before are equal,
so both engines chose from the same distribution, up to rounding. Such a difference is a near-tie
if the plain engine's own two best tokens are those two and lie within a rounding step of its
logits' type: then the arithmetic, not the KV, decided.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.headline.amounts import Amounts
from bench.headline.part import ByRound, Judgement, MeasureFailed
from bench.headline.turn import Turn, request
from bench.prompts import Prompt, spread_lengths

NEAR_TIE = {"float32": 1e-4, "bfloat16": 0.25}
"""Natural-log probability between two best tokens below which rounding decides. In bfloat16 one
step of a logit between 16 and 32 is 0.125, and each of the two may be off by one."""

_BLOCK = 32


@dataclass(frozen=True)
class Choice:
    """One generated token: its id and the log probabilities of the two best."""

    token: str
    best: dict[str, float]


@dataclass(frozen=True)
class Answer:
    """The tokens generated for a prompt of ``prompt_tokens``."""

    prompt_tokens: int
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Difference:
    """Where two answers part. ``gap``: between the reference's two best; None if the other token
    is not among them."""

    prompt_tokens: int
    position: int
    reference: str
    other: str
    gap: float | None


class Greedy:
    """``dtype`` is the model's during the measurement; ``short`` names it in the metric."""

    every_round = False
    systems = frozenset({"plain", "kvferry"})

    def __init__(self, dtype: str, short: str) -> None:
        self.dtype = dtype
        self.name = f"greedy_{short}"
        self._metric = f"greedy_equal_{short}"

    def output_tokens(self, amounts: Amounts) -> int:
        """Tokens generated for each prompt."""
        if self.dtype == "float32":
            return amounts.greedy_output_fp32
        return amounts.greedy_output_bf16

    def seconds(self, system: str, amounts: Amounts) -> float:
        """See Part."""
        prompt_tokens = sum(lengths(amounts))
        generated = self.output_tokens(amounts) * amounts.greedy_prompts
        engines = 2 if system == "plain" else 1
        decoding = generated * 0.03 / min(2 * engines, amounts.greedy_in_flight)
        return prompt_tokens / 1000 / engines + decoding / 2

    async def measure(self, turn: Turn) -> list[Answer]:
        """See Part."""
        source = turn.source(self.name)
        prompts = [turn.prompts.make(length, source) for length in lengths(turn.amounts)]
        source.shuffle(prompts)
        gate = asyncio.Semaphore(turn.amounts.greedy_in_flight)
        asked = self.output_tokens(turn.amounts)

        async def one(lane: int, prompt: Prompt) -> Answer:
            async with gate:
                return await _answer(turn, prompt, asked, lane)

        answers = await asyncio.gather(*(one(lane, prompt) for lane, prompt in enumerate(prompts)))
        return list(answers)

    def judge(self, figures: ByRound[list[Answer]]) -> Judgement:
        """See Part."""
        plain, kvferry = figures.get("plain", {}), figures.get("kvferry", {})
        differences: list[Difference] = []
        compared = 0
        for number in plain.keys() & kvferry.keys():
            compared += len(plain[number])
            differences += compare(plain[number], kvferry[number])
        if not compared:
            return Judgement({})
        limit = NEAR_TIE[self.dtype]
        unexplained = [d for d in differences if d.gap is None or d.gap > limit]
        complaints = tuple(
            f"{self.name}: prompt of {d.prompt_tokens} tokens differs at token {d.position} "
            f"and it is no near-tie (gap {d.gap})"
            for d in unexplained
        )
        detail = {
            "compared": compared,
            "near_tie_limit": limit,
            "differences": [vars(difference) for difference in differences],
        }
        return Judgement({self._metric: 1 - len(differences) / compared}, detail, complaints)


def compare(reference: Sequence[Answer], other: Sequence[Answer]) -> list[Difference]:
    """The first difference of every pair of answers that differ; a missing token is one."""
    found = []
    for left, right in zip(reference, other, strict=True):
        for position, (wanted, got) in enumerate(zip(left.choices, right.choices, strict=False)):
            if wanted.token != got.token:
                gap = _gap(wanted, got)
                found.append(Difference(left.prompt_tokens, position, wanted.token, got.token, gap))
                break
        else:
            if len(left.choices) != len(right.choices):
                shorter = min(len(left.choices), len(right.choices))
                found.append(Difference(left.prompt_tokens, shorter, "", "", None))
    return found


def _gap(wanted: Choice, got: Choice) -> float | None:
    if got.token not in wanted.best:
        return None
    return wanted.best[wanted.token] - wanted.best[got.token]


def lengths(amounts: Amounts) -> list[int]:
    """From one token to the longest: a tenth within the first block, the rest beyond it."""
    within = max(2, amounts.greedy_prompts // 10)
    beyond = amounts.greedy_prompts - within
    return [
        *spread_lengths(1, _BLOCK, within),
        *spread_lengths(_BLOCK + 1, amounts.greedy_longest, beyond),
    ]


async def _answer(turn: Turn, prompt: Prompt, output_tokens: int, lane: int) -> Answer:
    body = {
        **request(prompt, output_tokens),
        "logprobs": 2,
        "return_tokens_as_token_ids": True,
    }
    answer = await turn.system.complete(body, lane)
    choices = _choices(answer["choices"][0]["logprobs"])
    counted = answer["usage"]["prompt_tokens"]
    if counted != prompt.tokens or len(choices) != output_tokens:
        raise MeasureFailed(
            f"{turn.system.name}: {counted} prompt tokens instead of {prompt.tokens}, "
            f"{len(choices)} output tokens instead of {output_tokens}"
        )
    return Answer(prompt.tokens, choices)


def _choices(logprobs: dict[str, Any]) -> tuple[Choice, ...]:
    return tuple(
        Choice(token, best)
        for token, best in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True)
    )
