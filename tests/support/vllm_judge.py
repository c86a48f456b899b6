"""What the installed vLLM says to a body, as far as it can without a model: 200, 400, or a failure.

Its own request models, messages' parts, sampling parameters with their checks, and the encoding in
which these go to its engine.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.exceptions import VLLMClientError
from vllm.renderers.chat_utils import has_non_text_content, parse_chat_messages
from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

VOCABULARY = 1000
MODEL = SimpleNamespace(
    enable_prompt_embeds=False,
    get_vocab_size=lambda: VOCABULARY,
    max_logprobs=20,
    max_model_len=8192,
    multimodal_config=None,
)
REFUSALS = (ValidationError, VLLMClientError, ValueError, TypeError, OverflowError)
"""What vLLM answers 400 to."""


def judge(path: str, body: dict[str, Any]) -> tuple[int, str]:
    """The status of a worker's answer to ``body``, and why it is not 200."""
    try:
        _accept(path, body)
    except REFUSALS as error:
        return 400, type(error).__name__
    except Exception as error:  # noqa: BLE001 (vLLM's outermost handler: a failing worker)
        return 500, f"{type(error).__name__}: {error}"
    return 200, ""


def _accept(path: str, body: dict[str, Any]) -> None:
    request: Any
    if "chat" in path:
        request = ChatCompletionRequest.model_validate(body)
        request.build_chat_params(None, "auto")
        messages = body["messages"]
        if not has_non_text_content(messages):
            parse_chat_messages(messages, MODEL, "string")
        [tool.model_dump() for tool in request.tools or ()]
    else:
        request = CompletionRequest.model_validate(body)
    request.build_tok_params(MODEL)
    if request.use_beam_search:
        request.to_beam_search_params(16, {})
        return
    params = request.to_sampling_params(request.max_tokens or 16, {})
    params._validate_logprobs(MODEL)
    params._validate_logit_bias(MODEL)
    params._validate_stop_token_ids(MODEL)
    params._validate_allowed_token_ids(MODEL)
    if params.structured_outputs is not None:
        validate_xgrammar_grammar(params)
    msgspec.msgpack.encode(params)
