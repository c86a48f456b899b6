"""Every field that a worker's server knows, and what becomes of it where a client sends it.

A list of what is allowed: a field that is not here reaches no worker. A contract test compares it
with the installed vLLM, so that an upgrade's new fields are judged before they pass. Each is

- ``Passed``: it only shapes the answer, and vLLM bounds it,
- ``Bounded``: the same, where vLLM would take more than a worker can stand,
- ``Dropped``: it steers what is the proxy's or the operator's to decide; the answer is the same
  without it, or was not to be had,
- ``Refused``: it would be another answer without it, and no client may have that.

What OpenAI's clients send beside these (``store``, ``metadata``, ``service_tier``, …) vLLM would
ignore, and is dropped likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvstore.errors import ApiError
from proxy import bounds
from proxy.bounds import Bound


@dataclass(frozen=True)
class Passed:
    """Reaches the decode worker as it is."""


@dataclass(frozen=True)
class Bounded:
    """Reaches the decode worker if ``bound`` finds nothing wrong with it."""

    bound: Bound


@dataclass(frozen=True)
class Dropped:
    """Reaches no worker, because of ``why``; the request is served without it."""

    why: str


@dataclass(frozen=True)
class Refused:
    """The request is refused, and told ``why``, unless the field is empty."""

    why: str


Fate = Passed | Bounded | Dropped | Refused

_PASSED = Passed()
_OURS = Dropped("names whose KV is found, or where it goes")
_HINT = Dropped("read by the proxy, and no worker's business")
_ORDER = Dropped("the proxy decides who is served first")
_IDENTITY = Dropped("the proxy names requests")
_RENDERING = Dropped("shapes the reply of a worker's rendering, which is for the proxy alone")
_OPERATOR = Dropped("the operator's to decide")

_BOTH: Mapping[str, Fate] = {
    "add_special_tokens": _PASSED,
    "allowed_token_ids": Bounded(bounds.token_ids(16384)),
    "bad_words": Bounded(bounds.texts(128, 256)),
    "cache_salt": _OURS,
    "echo": _PASSED,
    "ec_transfer_params": _OURS,
    "frequency_penalty": _PASSED,
    "ignore_eos": _PASSED,
    "include_stop_str_in_output": _PASSED,
    "kv_transfer_params": _OURS,
    "length_penalty": Bounded(bounds.number(-16, 16)),
    "logit_bias": Bounded(bounds.biases),
    "logprob_token_ids": Bounded(bounds.token_ids(128)),
    "logprobs": _PASSED,
    "max_tokens": Bounded(bounds.integer(-bounds.INT32, bounds.INT32)),
    "min_p": _PASSED,
    "min_tokens": Bounded(bounds.integer(-bounds.INT32, bounds.INT32)),
    "mm_payload": _RENDERING,
    "model": _PASSED,
    "n": Bounded(bounds.integer(1, bounds.MOST_ANSWERS)),
    "no_store": _HINT,
    "presence_penalty": _PASSED,
    "priority": _ORDER,
    "prompt_cache_isolation_key": _HINT,
    "prompt_cache_key": _HINT,
    "prompt_logprobs": _PASSED,
    "repetition_detection": Bounded(bounds.repetition),
    "repetition_penalty": _PASSED,
    "request_id": _IDENTITY,
    "response_format": Bounded(bounds.grammar),
    "return_mm_kwargs": _RENDERING,
    "return_token_ids": _PASSED,
    "return_token_offsets": _RENDERING,
    "return_tokens_as_token_ids": _PASSED,
    "routed_experts_prompt_start": _OPERATOR,
    "seed": _PASSED,
    "session_id": _IDENTITY,
    "skip_special_tokens": _PASSED,
    "spaces_between_special_tokens": _PASSED,
    "stop": Bounded(bounds.stops),
    "stop_token_ids": Bounded(bounds.token_ids(4096)),
    "stream": _PASSED,
    "stream_interval": Bounded(bounds.integer(1, 65536)),
    "stream_options": _PASSED,
    "structured_outputs": Bounded(bounds.structured),
    "temperature": _PASSED,
    "thinking_token_budget": Bounded(bounds.integer(-1, bounds.INT32)),
    "top_k": Bounded(bounds.integer(-1, bounds.INT32)),
    "top_p": _PASSED,
    "truncate_prompt_tokens": _PASSED,
    "truncation_side": _PASSED,
    "use_beam_search": _PASSED,
    "user": _IDENTITY,
    "vllm_xargs": Dropped("reaches whatever is plugged into the engine, the KV connector too"),
    "watermarking": _OPERATOR,
}

CHAT: Mapping[str, Fate] = {
    **_BOTH,
    "add_generation_prompt": _PASSED,
    "chat_template": Refused("A chat template is a program, and the operator's to choose."),
    "chat_template_kwargs": Bounded(bounds.template_arguments),
    "continue_final_message": _PASSED,
    "documents": _PASSED,
    "include_reasoning": _PASSED,
    "max_completion_tokens": Bounded(bounds.integer(-bounds.INT32, bounds.INT32)),
    "media_io_kwargs": Refused("How media are loaded is the operator's to choose."),
    "messages": _PASSED,  # looked into by proxy.parts
    "mm_processor_kwargs": Refused("How media are processed is the operator's to choose."),
    "parallel_tool_calls": _PASSED,
    "reasoning_effort": _PASSED,
    "return_prompt_text": _PASSED,
    "tool_choice": _PASSED,
    "tools": Bounded(bounds.tools),
    "top_logprobs": _PASSED,
}

COMPLETIONS: Mapping[str, Fate] = {
    **_BOTH,
    "prompt": Bounded(bounds.prompts),
    "prompt_embeds": Refused("Prompts are text or tokens here."),
    "suffix": _PASSED,
}

STREAM_OPTIONS: Mapping[str, Fate] = {
    "include_usage": _PASSED,
    "continuous_usage_stats": _PASSED,
}


def admitted(
    fields: Mapping[str, Any], fates: Mapping[str, Fate], within: str = ""
) -> dict[str, Any]:
    """Those of ``fields`` that a worker may see. ``within``: what the fields are named by first.

    Raises ApiError (400) naming the first that is refused, or is more than it may be.
    """
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        fate = fates.get(name)
        if fate is None or isinstance(fate, Dropped):
            continue
        param = within + name
        if isinstance(fate, Refused):
            if value in (None, "", [], {}):
                continue
            raise ApiError(400, f"'{param}' is not accepted. {fate.why}", param=param)
        wrong = bounds.unsound(value) if name != "prompt" else None
        if wrong is None and isinstance(fate, Bounded) and value is not None:
            wrong = fate.bound(value)
        if wrong is not None:
            raise ApiError(400, f"'{param}' {wrong}.", param=param)
        kept[name] = value
    return kept
