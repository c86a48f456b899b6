"""The latency harness: measures any server that speaks the OpenAI API, kvferry among them."""
