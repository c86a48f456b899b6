"""The first benchmark: kvferry beside a plain vLLM engine and vLLM's own NIXL pair."""
