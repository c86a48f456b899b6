"""The OpenAI API in front of prefill and decode workers: one client request, start to finish.

::

    app ─▶ tenants                   who calls (identity), in which epoch, and what of theirs runs
     └───▶ pipeline ─▶ requests      what the client asked, stripped of what could steer the cache
              │    ├─▶ catalogue     the model, or adapter: with the tenant that makes the salt
              │    ├─▶ render        the prompt's tokens
              │    ├─▶ planning      which workers, or why not disaggregated (steering, scheduler)
              │    ├─▶ dispatch      both legs, each with the body that legs makes for it
              │    ├─▶ usage         how many tokens nobody had to compute
              │    └─▶ streaming     relaying events, the last one rewritten
              └──────▶ upstream      the only client sockets

    admin ─▶ tenants                 what operators see and flush; following reads the cluster file

Imports neither torch nor vllm.
"""
