"""What a KV block is and how it moves, with no engine in sight.

A prompt is cut into **blocks** of ``block_size`` tokens. A block's KV is one page per
layer, opaque bytes that are only ever moved whole. Its name is a hash chained from the
first block on, and the first block carries the tenant's salt, so two tenants never
share a name (:mod:`kvstore.blockhash`).

Reading order: ``messages`` (every message between processes), ``transfer`` (sending and
receiving as state machines without I/O), ``ledger`` (completion, exactly once),
``transport`` (bytes, and the threads that move them), ``relay`` and ``feed`` (what a
worker holds, told to proxies), ``lmcache_tier`` (the DRAM tier).

Tenants: ``salts`` (whose KV it is), ``standings`` (what holds for them: epochs and shares). What
holds goes from proxies (``tenant_feed``) to workers (``relay``), from there to the engine
(``gate_telling``, ``gate``, ``errands``, ``engine_tenants``, ``engine_pool``) and to DRAM
(``tier_server``, ``lmcache_tenants``, ``tier_tenants``). Whoever keeps KV keeps it on ``shelves``.
"""
