"""A prompt becomes KV here, is kept, and is shipped while it is still being computed.

The life of a request on a prefill worker:

1. ``connector`` is what vLLM calls; it only forwards to one of the two below.
2. ``scheduling`` (in the engine's scheduler) reads the request's ticket, asks the DRAM tier how
   much of the prompt it holds, and says with each step which pages are complete.
3. ``working`` (in the engine's worker, one per rank) does what the step's orders say: loads from
   and stores to the DRAM tier, supplies complete pages to the shipper, reports completion.

A prompt that is all here but for what decode computes is parked by ``scheduling`` and only
shipped; ``gate`` then answers for vLLM.

The shipper is :mod:`kvstore.transport.shipper`, a thread that sends pages to the decode worker that
has reserved memory. ``engine`` says how vLLM is started. :mod:`decode` mirrors this package.
"""
