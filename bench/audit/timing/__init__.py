"""Can a tenant tell by the time to its first token what another has asked?

The audit of Gu et al. (Auditing Prompt Caching in Language Model APIs, 2025): a victim sends a
prompt; an attacker sends one that begins with 95 % of it (hit), or one that nobody has sent (miss),
in random order; one-sided two-sample Kolmogorov-Smirnov of the two distributions. Since not to
reject proves nothing, an equivalence test stands beside it: is the probability that a hit is faster
than a miss within 0.5 ± 0.05? And the same within one tenant, where it must find its own.
"""
