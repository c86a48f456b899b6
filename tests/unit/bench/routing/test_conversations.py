"""Conversations go on where they were, begin as their tenant's others do, and end."""

from __future__ import annotations

import msgspec

from bench.routing.conversations import Conversation, Conversations
from bench.routing.settings import RestartAmounts

AMOUNTS = RestartAmounts(workers=4, conversations=6, turns=3, system=200, turn=100)


def roles(taken: Conversation) -> list[str]:
    return [message["role"] for message in taken.messages]


def test_one_is_with_one_client_at_a_time() -> None:
    talks = Conversations("m", ["a", "b"], AMOUNTS)
    taken = [talks.take() for _ in range(12)]
    assert len({id(one) for one in taken}) == 12
    assert len(talks) == 0
    talks.answered(taken[0])
    assert len(talks) == 1


def test_a_turn_goes_on_where_the_one_before_ended() -> None:
    talks = Conversations("m", ["a"], RestartAmounts(workers=2, conversations=1, turns=4))
    seen = []
    for _ in range(9):
        taken = talks.take()
        seen.append(msgspec.json.decode(talks.body(taken))["messages"])
        talks.answered(taken)
    lengths = [len(messages) for messages in seen]
    first = lengths.index(2)
    assert lengths[first : first + 5] == [2, 4, 6, 8, 2]
    assert seen[first + 1][:2] == seen[first]
    assert seen[first + 4][0] == seen[first][0]  # what all of a tenant's begin with
    assert seen[first + 4][1] != seen[first][1]


def test_tenants_begin_differently_and_ages_are_mixed() -> None:
    talks = Conversations("m", ["a", "b"], AMOUNTS)
    taken = [talks.take() for _ in range(12)]
    begins = {(one.key, one.messages[0]["content"]) for one in taken}
    assert len(begins) == 2
    assert len({begin for _, begin in begins}) == 2
    assert len({len(one.messages) for one in taken}) > 1
    assert all(roles(one)[-1] == "user" for one in taken)
