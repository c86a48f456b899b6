"""Records as a run leaves them."""

from typing import Any

from bench.records import Record


def record(number: int = 0, **changes: Any) -> Record:
    """Asked at ``number`` seconds, sent at once; 50 ms to the first of three tokens, then 10 ms."""
    intended = changes.pop("intended", float(number))
    sent = changes.pop("sent", intended)
    ttft, gap = changes.pop("ttft", 0.05), changes.pop("gap", 0.01)
    count = changes.pop("events", 3)
    tokens = tuple(sent + ttft + gap * n for n in range(count))
    fields: dict[str, Any] = {
        "number": number,
        "conversation": number,
        "planned_prompt_tokens": 100,
        "planned_output_tokens": count,
        "intended": intended,
        "sent": sent,
        "first_byte": sent + ttft,
        "tokens": tokens,
        "finished": tokens[-1],
        "status": 200,
        "prompt_tokens": 100,
        "output_tokens": count,
        **changes,
    }
    return Record(**fields)


def failed(number: int = 0, error: str = "status 500: oh", **changes: Any) -> Record:
    """Asked at ``number`` seconds; failed after a second."""
    fields: dict[str, Any] = {
        "number": number,
        "planned_prompt_tokens": 100,
        "planned_output_tokens": 3,
        "intended": float(number),
        "sent": float(number),
        "finished": number + 1.0,
        "error": error,
        **changes,
    }
    return Record(**fields)
