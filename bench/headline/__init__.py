"""The reference benchmark: kvferry beside vLLM, vLLM's NIXL pair and vLLM with LMCache."""
