"""What is remembered of prompts' texts: a tenant's own, exactly, within its bounds."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstore import salts
from kvstore.salts import Scope
from proxy.remembered import _ENTRY_BYTES, Remembered, _bytes

KEY = b"k" * 32
ALICE, BOB, CAROL = (salts.salt(KEY, Scope(name, 0)) for name in ("alice", "bob", "carol"))
MINE = salts.salt(KEY, Scope("alice", 0, "mine"))
LATER = salts.salt(KEY, Scope("alice", 1))
SALTS = st.sampled_from([ALICE, MINE, LATER, BOB, CAROL])
VOCABULARIES = st.integers(0, 1)
PIECES = st.lists(st.sampled_from([f"{name} " * 9 for name in "abcdefghij"]), max_size=6)
ONE = _bytes("a " * 9, b"1234")


def made(vocabulary: int, piece: str) -> bytes:
    return f"{vocabulary}{piece[0]}..".encode()


class Books(RuleBasedStateMachine):
    """Against sets of everything that was ever brought."""

    def __init__(self) -> None:
        super().__init__()
        self.remembered = Remembered(9 * ONE, 4 * ONE)
        self.brought: set[tuple[str, int, str]] = set()

    @rule(salt=SALTS, vocabulary=VOCABULARIES, pieces=PIECES)
    def bring(self, salt: str, vocabulary: int, pieces: list[str]) -> None:
        tokens = [made(vocabulary, piece) for piece in pieces]
        self.remembered.remember(salt, vocabulary, pieces, tokens)
        self.brought |= {(salt, vocabulary, piece) for piece in pieces}
        # What was brought last is there.
        for piece in pieces[-2:]:
            assert self.remembered.tokens(salt, vocabulary, [piece])[0] is not None

    @rule(salt=SALTS, vocabulary=VOCABULARIES, pieces=PIECES)
    def look(self, salt: str, vocabulary: int, pieces: list[str]) -> None:
        found = self.remembered.tokens(salt, vocabulary, pieces)
        for piece, tokens in zip(pieces, found, strict=True):
            if tokens is not None:
                assert tokens == made(vocabulary, piece)
                assert (salt, vocabulary, piece) in self.brought

    @rule(vocabulary=VOCABULARIES)
    def forget(self, vocabulary: int) -> None:
        self.remembered.forget(vocabulary)
        self.brought = {one for one in self.brought if one[1] != vocabulary}

    @rule(salt=SALTS)
    def forget_tenant(self, salt: str) -> None:
        tag = salt.partition("-")[0]
        self.remembered.forget_tenant(tag)
        self.brought = {one for one in self.brought if not one[0].startswith(tag)}

    @invariant()
    def bounded(self) -> None:
        books = self.remembered._tenants
        sizes = {
            tenant: sum(_bytes(piece, packed) for (_, _, piece), packed in book.items())
            for tenant, book in books.items()
        }
        assert sizes == self.remembered._sizes
        assert all(0 < size <= 4 * ONE for size in sizes.values())
        assert self.remembered.size == sum(sizes.values()) <= 9 * ONE


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_what_a_tenant_used_last_stays() -> None:
    remembered = Remembered(100 * ONE, 2 * ONE)
    remembered.remember(ALICE, 0, ["a " * 9, "b " * 9], [b"aaaa", b"bbbb"])
    remembered.tokens(ALICE, 0, ["a " * 9])
    remembered.remember(ALICE, 0, ["c " * 9], [b"cccc"])
    found = remembered.tokens(ALICE, 0, ["a " * 9, "b " * 9, "c " * 9])
    assert found == [b"aaaa", None, b"cccc"]


def test_the_tenant_that_was_idle_goes_first() -> None:
    remembered = Remembered(3 * ONE, 2 * ONE)
    for tenant in (ALICE, BOB):
        remembered.remember(tenant, 0, ["a " * 9], [b"aaaa"])
    remembered.tokens(ALICE, 0, ["a " * 9])
    remembered.remember(CAROL, 0, ["a " * 9, "b " * 9], [b"aaaa", b"bbbb"])
    assert remembered.tokens(BOB, 0, ["a " * 9]) == [None]
    assert remembered.tokens(ALICE, 0, ["a " * 9]) == [b"aaaa"]


@pytest.mark.parametrize("text", ["a" * 10_000, "一" * 10_000])
def test_what_is_larger_than_the_bound_is_not_kept(text: str) -> None:
    remembered = Remembered(5_000, 5_000)
    remembered.remember(ALICE, 0, [text], [b"aaaa"])
    assert remembered.size == 0
    assert remembered.tokens(ALICE, 0, [text]) == [None]


@pytest.mark.parametrize("salt", [ALICE.replace("-0-", "-0-once-"), "", "alice", ALICE[:-1]])
def test_what_may_not_be_kept_is_neither_remembered_nor_found(salt: str) -> None:
    remembered = Remembered(100 * ONE, 100 * ONE)
    remembered.remember(salt, 0, ["a " * 9], [b"aaaa"])
    assert (remembered.size, len(remembered._tenants)) == (0, 0)
    assert remembered.tokens(salt, 0, ["a " * 9]) == [None]


def test_a_request_of_which_nothing_is_kept_leaves_no_trace_in_the_order() -> None:
    remembered = Remembered(100 * ONE, 2 * ONE)
    remembered.remember(ALICE, 0, ["a " * 9, "b " * 9], [b"aaaa", b"bbbb"])
    remembered.tokens(salts.one_shot(KEY, "alice", 0), 0, ["a " * 9])
    remembered.remember(ALICE, 0, ["c " * 9], [b"cccc"])
    assert remembered.tokens(ALICE, 0, ["a " * 9]) == [None]


def test_sub_scopes_and_epochs_find_nothing_of_each_other() -> None:
    remembered = Remembered(100 * ONE, 100 * ONE)
    remembered.remember(ALICE, 0, ["a " * 9], [b"aaaa"])
    assert remembered.tokens(MINE, 0, ["a " * 9]) == [None]
    assert remembered.tokens(LATER, 0, ["a " * 9]) == [None]
    assert remembered.tokens(ALICE, 0, ["a " * 9]) == [b"aaaa"]


def test_a_tenant_has_one_bound_whatever_its_sub_scopes() -> None:
    remembered = Remembered(100 * ONE, 3 * ONE)
    for number in range(20):
        salt = salts.salt(KEY, Scope("alice", 0, f"{number}"))
        remembered.remember(salt, 0, ["a " * 9], [b"aaaa"])
    assert remembered.size <= 3 * ONE


def test_an_entry_takes_no_more_than_is_counted() -> None:
    import tracemalloc

    count = 20_000
    remembered = Remembered(1 << 30, 1 << 30)
    pieces = [f"{number:06}" * 80 for number in range(count)]
    tokens = [piece[:400].encode() for piece in pieces]
    tracemalloc.start()
    remembered.remember(ALICE, 0, pieces, tokens)
    beside, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.5 * _ENTRY_BYTES < beside / count <= 1.1 * _ENTRY_BYTES
