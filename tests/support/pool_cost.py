"""What the pool that knows tenants costs per block: ``python -m tests.support.pool_cost``.

One round gives prompts of 64 blocks away in a full pool, enters them, frees them, and finds every
other one again.
"""

from __future__ import annotations

import time
from typing import Any

from kvstore.engine_pool import TenantPool, adopt
from kvstore.salts import Scope, salt
from tests.support.block_pools import BLOCK, plain_pool, request

BLOCKS, PROMPT, PROMPTS = 8193, 64, 600
KEY = bytes(32)


def microseconds(pool: Any, tenants: int) -> float:
    """Per block of a round, the second of two."""
    salts = [salt(KEY, Scope(str(number), 0)) for number in range(tenants)]
    rounds = []
    for start in (0, PROMPTS):
        prompts = [
            request(str(at), [at] * (PROMPT * BLOCK), salts[at % tenants])
            for at in range(start, start + PROMPTS)
        ]
        began = time.process_time()
        for number, one in enumerate(prompts):
            blocks = pool.get_new_blocks(PROMPT)
            if isinstance(pool, TenantPool):
                pool.claim(one.cache_salt, [block.block_id for block in blocks])
            pool.cache_full_blocks(one, blocks, 0, PROMPT, BLOCK, 0)
            pool.free_blocks(reversed(blocks))
            if number % 2:
                pool.touch(blocks)
                pool.free_blocks(reversed(blocks))
        rounds.append((time.process_time() - began) / PROMPTS / PROMPT * 1e6)
        pool.take_events()
    return rounds[-1]


def main() -> None:
    """Three of each; the least counts, since everything else only adds to it."""
    for name, tenants, pools in (
        ("vLLM's own", 1, lambda: plain_pool(BLOCKS)),
        ("one tenant", 1, lambda: adopt(plain_pool(BLOCKS))),
        ("four tenants", 4, lambda: adopt(plain_pool(BLOCKS))),
    ):
        least = min(microseconds(pools(), tenants) for _ in range(3))
        print(f"{name:>12}: {least:.2f} µs per block")


if __name__ == "__main__":
    main()
