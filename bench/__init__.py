"""The latency harness: a client of the HTTP API that measures kvferry beside its peers."""
