"""How fast kvferry moves KV between two processes, beside the machine's limits and other engines.

One process holds the bytes, another awaits them; each transport and each peer moves the same pages
between the two, in turns. Throughput counts from the moment pages are supplied until all of them
are usable on the other side.
"""
