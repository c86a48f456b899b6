"""Names of chunks and windows in LMCache: no two things share one."""

from __future__ import annotations

from dataclasses import replace

from kvstore.layout import KVGroup
from kvstore.lmcache_filing import filings, window_prompt
from kvstore.lmcache_tier_link import Naming
from kvstore.messages import Filed
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


def test_what_is_filed_names_blocks_and_no_token_or_salt() -> None:
    names = bytes(range(32))
    both = filings(Naming("m", 2), Scope("m", b"layout", 1, 2), SHAPE)
    chunks, window = (
        both[op.part].filed(replace(op, names=names), both[op.part].key(op, "session"), [0])
        for op in (CHUNKS, WINDOW)
    )
    assert chunks == [Filed("m/2", 4, "session", 1, 64, 128, names)]
    assert window == [Filed("m/2", 4, "session", 1, 0, CHUNK, names)]


def test_only_what_was_filled_is_filed() -> None:
    """What lies between is there already, or another worker is about to fill it."""
    op = TierOp(0, "r", list(range(320)), "salt", 64, 320, list(range(8)), names=bytes(range(128)))
    filing = FILINGS["chunks"]
    one, two = filing.filed(op, filing.key(op, "session"), [0, 3, 2])
    assert (one.start, one.end, one.names) == (64, 128, op.names[:32])
    assert (two.start, two.end, two.names) == (192, 320, op.names[64:])
    assert filing.filed(op, filing.key(op, "session"), []) == []


def test_full_attention_alone_files_no_windows() -> None:
    alone = TierShape((KVGroup(),), 32, CHUNK)
    (chunks,) = filings(Naming("m", 1), Scope("m", b"layout", 0, 1), alone).values()
    assert (chunks.part, chunks.parts) == ("chunks", 1)
