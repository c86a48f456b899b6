"""Names that are remembered are the names that are hashed, whatever was asked before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.blockhash import block_chain, block_names
from proxy import chains
from proxy.chains import RUN_TOKENS, Chains

SALTS = ("a", "b")
PIECES = st.lists(st.sampled_from([0, 1, 70_000]), max_size=4)


def hashed(tokens: list[int], block_size: int, salt: str) -> list[bytes]:
    return block_names(block_chain(tokens, block_size, salt))


def prompt(pieces: list[int], rest: int) -> list[int]:
    return [token for piece in pieces for token in [piece] * RUN_TOKENS] + [2] * rest


@given(
    st.lists(
        st.tuples(
            PIECES, st.integers(0, 40), st.sampled_from(SALTS), st.sampled_from([16, 32, 4096])
        ),
        max_size=8,
    ),
    st.integers(0, 5),
)
def test_they_are_the_same(asked: list[tuple[list[int], int, str, int]], most: int) -> None:
    remembered = Chains(most)
    for pieces, rest, salt, block_size in asked:
        tokens = prompt(pieces, rest)
        assert remembered.names(tokens, block_size, salt) == hashed(tokens, block_size, salt)
        assert len(remembered) <= most


def test_only_what_is_new_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    remembered = Chains()
    seen: list[int] = []

    def watched(
        tokens: list[int], size: int, salt: str, adapter: None, known: list[bytes]
    ) -> list[bytes]:
        seen.append(len(known))
        return block_chain(tokens, size, salt, adapter, known)

    monkeypatch.setattr(chains, "block_chain", watched)
    remembered.names(prompt([0, 1], 33), 16, "a")
    remembered.names(prompt([0, 1, 0], 0), 16, "a")
    remembered.names(prompt([0, 0], 0), 16, "a")
    remembered.names(prompt([0, 1], 33), 16, "b")
    run = RUN_TOKENS // 16
    assert seen == [0, 2 * run, run, 0]


def test_what_was_used_of_late_stays() -> None:
    remembered = Chains(2)
    for piece in (0, 1, 0, 2):
        remembered.names(prompt([piece], 0), 16, "a")
    assert {key[4][:4] for key in remembered._runs} == {bytes(4), (2).to_bytes(4, "little")}


def test_a_block_of_any_size_costs_no_more_than_the_prompt() -> None:
    assert Chains().names([1, 2, 3], 1 << 32, "a") == []


def test_an_adapters_names_are_its_own_and_remembered() -> None:
    remembered = Chains()
    tokens = prompt([0, 1], 33)
    adapters = [None, ("poet@a", "/poet"), ("poet@b", "/poet"), ("poet@a", "/elsewhere")]
    found = [remembered.names(tokens, 16, "a", adapter) for adapter in adapters]
    assert len({name for names in found for name in names}) == sum(map(len, found))
    assert found == [remembered.names(tokens, 16, "a", adapter) for adapter in adapters]
    expected = [block_names(block_chain(tokens, 16, "a", adapter)) for adapter in adapters]
    assert found == expected
