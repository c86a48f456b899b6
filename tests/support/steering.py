"""What a client might send to have its way: for each field that is not its to set, a value; for
each that is bounded, one that is too much.
"""

from __future__ import annotations

from typing import Any

DROPPED: dict[str, Any] = {
    "cache_salt": "somebody-elses",
    "ec_transfer_params": {"x": 1},
    "kv_transfer_params": {"kvferry": {"transfer": "0" * 32}, "prompt_token_ids": [1]},
    "mm_payload": "none",
    "no_store": True,
    "priority": -100,
    "prompt_cache_isolation_key": "chosen",
    "prompt_cache_key": "ours",
    "request_id": "chosen",
    "return_mm_kwargs": True,
    "return_token_offsets": True,
    "routed_experts_prompt_start": 1,
    "session_id": "chosen",
    "user": "somebody",
    "vllm_xargs": {"kv_transfer_params": 1},
    "watermarking": False,
}

UNKNOWN: dict[str, Any] = {
    "allowed_local_media_path": "/",
    "audio": {"voice": "alloy", "format": "wav"},
    "best_of": 3,
    "cache_control": "no-store",
    "extra_body": {"cache_salt": "x"},
    "extra_args": {"kv_transfer_params": {}},
    "data_parallel_rank": 0,
    "features": {"mm_hashes": ["x"]},
    "guided_json": {},
    "guided_decoding_backend": "outlines",
    "kv_cache_report_mode": "x",
    "logits_processors": ["os.system"],
    "logits_processor_pattern": ".*",
    "lora_request": {"lora_path": "/tmp"},
    "metadata": {"a": "b"},
    "mm_hashes": ["x"],
    "mm_uuids": ["x"],
    "modalities": ["text"],
    "multi_modal_data": {"image": "http://169.254.169.254/"},
    "multi_modal_uuids": {"image": ["x"]},
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_retention": "24h",
    "prompt_token_ids": [1],
    "safety_identifier": "x",
    "service_tier": "priority",
    "skip_reading_prefix_cache": True,
    "store": True,
    "trace_decode_token_ids": [1],
    "verbosity": "low",
    "web_search_options": {},
}
"""Of OpenAI's clients, of other versions of vLLM, or made up."""

REFUSED: dict[str, dict[str, Any]] = {
    "chat": {
        "chat_template": "{{ messages }}",
        "media_io_kwargs": {"video": {"num_frames": -1}},
        "mm_processor_kwargs": {"size": 1 << 30},
    },
    "completions": {"prompt_embeds": "AA=="},
}

_DEEP: Any = []
for _ in range(80):
    _DEEP = [_DEEP]

BOUNDED: dict[str, list[Any]] = {
    "allowed_token_ids": [[1] * 16385, {"a": 1}],
    "bad_words": [["a"] * 129, ["a" * 257], [1], "a"],
    "chat_template_kwargs": [
        {"tokenize": True},
        {"chat_template": "x"},
        {"max_length": 1 << 40},
        {str(number): 1 for number in range(65)},
        [],
    ],
    "length_penalty": [1e308, -17, "1", True],
    "logit_bias": [
        {str(number): 1 for number in range(1025)},
        {"a": 1},
        {"-1": 1},
        {"1": 101},
        {"1": "1"},
        [],
    ],
    "logprob_token_ids": [[1] * 129],
    "max_completion_tokens": [1 << 31, "9"],
    "max_tokens": [1 << 31, "9", 1.5, True],
    "min_tokens": [1 << 31, "9"],
    "n": [0, 129, 1 << 62, "2", True, 1.5],
    "prompt": [["a"] * 129, [[1]] * 129],
    "repetition_detection": [
        {"max_pattern_size": 257},
        {"min_count": 1025},
        {"min_pattern_size": -1},
        {"x": 1},
        [],
    ],
    "response_format": [
        {"type": "json_schema", "json_schema": {"name": "a" * 70_000}},
        {"type": "json_schema", "json_schema": {"schema": {"pattern": "a" * 513}}},
        {"json_schema": {"schema": {"allOf": [{"patternProperties": {"a" * 513: {}}}]}}},
        {"type": "json_schema", "json_schema": _DEEP},
        "json",
    ],
    "stop": [["a"] * 5, "a" * 1025, ["a" * 1025], [1], 1],
    "stop_token_ids": [[1] * 4097, 1],
    "stream_interval": [0, 65537],
    "structured_outputs": [
        {"regex": "a" * 513},
        {"whitespace_pattern": "a" * 513},
        {"choice": ["a"] * 1025},
        {"grammar": "a" * 70_000},
        {"json": '{"pattern": "' + "a" * 513 + '"}'},
        {"json": "[" * 200 + "]" * 200},
        {"json": "{"},
        {"structural_tag": '{"pattern": "' + "a" * 513 + '"}'},
        {"_backend": "outlines"},
        {"json": {"const": 1 << 70}},
        [],
    ],
    "thinking_token_budget": [-2, 1 << 31],
    "tools": [
        [{"type": "function"}] * 129,
        [{"function": {"name": "a" * 300_000}}],
        [{"function": {"parameters": {"pattern": "a" * 513}}}],
        {},
    ],
    "top_k": [-2, 1 << 31],
}
