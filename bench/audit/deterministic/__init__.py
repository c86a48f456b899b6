"""Same tenant's repeat hits, another's misses, on every tier and path; tokens are counted.

What would show that a protection is gone::

    salt dropped in an engine           prefill, decode, decode alone: others find tokens there
    salt dropped at the DRAM tier       DRAM, and whatever asks for a whole chunk
    block names without the salt        index: others are thought to hold it, or the owner is not
    adapter left out of the salt        adapters: one finds in DRAM what another has stored
    client's salt passed through        client's salt: equal ones meet, or the owner loses its own
"""
