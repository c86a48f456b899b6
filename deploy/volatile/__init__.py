"""Whether prompts, tokens and KV stay in volatile memory, and are shown to nobody: the self-check.

Reading order: ``findings``, ``host`` (what is looked at), ``settings``, ``host_checks``,
``cluster_checks`` (the closed list of checks), ``self_check`` (all of them), ``report``;
``looking`` fills in the picture from the real host.
"""
