"""What ``kvferry up`` says when all is there. Pure."""

from __future__ import annotations

import json

from deploy import supervisor
from kvstore.cluster import ClusterConfig


def welcome(config: ClusterConfig, key: str) -> str:
    """The address, the ``key`` if it was made just now, what is served, and a first request."""
    base = supervisor.base_url(config)
    names = ", ".join(adapter.name for adapter in config.adapters)
    adapters = f"  adapters  {names}\n" if names else ""
    question = {
        "model": config.model.name,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 32,
    }
    shown = key or "YOUR-KEY"
    return (
        f"\nkvferry is ready.\n\n  base URL  {base}/v1\n  API key   {key or 'as in the file'}\n"
        f"  model     {config.model.name}\n{adapters}\n"
        f"  curl {base}/v1/chat/completions \\\n    -H 'Authorization: Bearer {shown}' \\\n"
        f"    -H 'Content-Type: application/json' \\\n    -d '{json.dumps(question)}'\n\n"
        "Ctrl-C stops everything."
    )
