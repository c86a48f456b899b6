"""KV becomes tokens here: blocks arrive from a prefill worker into reserved memory.

The life of a request on a decode worker:

1. ``connector`` is what vLLM calls; it only forwards to one of the two below.
2. ``scheduling`` (in the engine's scheduler) reads the request's ticket, has vLLM reserve memory
   for what is not cached here, and orders the fetch.
3. ``working`` (in the engine's worker, one per rank) passes orders on and reports completion.
4. ``fetching`` asks for the blocks, through :mod:`kvstore.transport.fetcher`, a thread that checks
   and writes them; ``telling`` tells the worker's HTTP ``gate`` what became of it.

What fails is recomputed by this engine. ``engine`` says how vLLM is started. :mod:`prefill`
mirrors this package.
"""
