"""Names of chunks and windows in LMCache: no two things share one."""

from __future__ import annotations

from dataclasses import replace

from kvstore.layout import KVGroup
from kvstore.lmcache_filing import filings, window_prompt
from kvstore.lmcache_tier_link import Naming
from kvstore.tier import TierOp
from kvstore.tier_seal import Scope
from kvstore.tier_shape import TierShape

CHUNK = 64
SHAPE = TierShape((KVGroup(("s",), 80), KVGroup(("f",))), 32, CHUNK)
FILINGS = filings(Naming("m", 1), Scope("m", b"layout", 0, 1), SHAPE)
TOKENS = list(range(128))
CHUNKS = TierOp(0, "r", TOKENS, "salt", 64, 128, [1, 2])
WINDOW = TierOp(1, "r", TOKENS, "salt", 64, 128, [1, 2, 3], part="window")


def test_a_chunk_and_the_window_at_its_end_have_different_names_and_seals() -> None:
    chunks, window = FILINGS["chunks"], FILINGS["window"]
    assert chunks.key(CHUNKS, "session").model_name != window.key(WINDOW, "session").model_name
    assert chunks.identities(CHUNKS) != window.identities(WINDOW)
    assert len(window.identities(WINDOW)) == 1


def test_a_window_is_one_chunk_of_a_prompt_that_names_all_tokens_before_it() -> None:
    key = FILINGS["window"].key(WINDOW, "session")
    assert (key.start, key.end, len(key.token_ids)) == (0, CHUNK, CHUNK)
    assert max(key.token_ids) < 1 << 32
    others = [TOKENS[:64], [*TOKENS[:-1], 0], [9, *TOKENS[1:]]]
    prompts = {tuple(window_prompt(tokens, CHUNK)) for tokens in [TOKENS, *others]}
    assert len(prompts) == 4
    longer = replace(WINDOW, tokens=[*TOKENS, 7])
    assert FILINGS["window"].key(longer, "session") == key


def test_full_attention_alone_files_no_windows() -> None:
    alone = TierShape((KVGroup(),), 32, CHUNK)
    assert list(filings(Naming("m", 1), Scope("m", b"layout", 0, 1), alone)) == ["chunks"]
