"""The OpenAI API in front of prefill and decode workers: one client request, start to finish.

::

    app ─▶ pipeline ─▶ requests      what the client asked, stripped of what could steer the cache
              │    ├─▶ identity      whose request it is, and the salt that scopes its KV
              │    ├─▶ steering      the plan: which workers, or why not disaggregated
              │    ├─▶ legs          the body each worker gets
              │    ├─▶ usage         how many tokens nobody had to compute
              │    └─▶ streaming     relaying events, the last one rewritten
              └──────▶ upstream      the only client sockets

Imports neither torch nor vllm.
"""
