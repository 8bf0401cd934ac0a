"""Authors that write whatever they like: what is let in is the same on all, in any order.

Unlike the fuzzer, which damages updates that fit, this makes up entries of all kinds beside
units of all kinds, and goes on from those that were let in.
"""

from __future__ import annotations

import random

import pytest

from lattica.errors import DocumentError
from lattica.store.crdt.ledger import counter_key
from lattica.store.crdt.state import State
from lattica.store.crdt.update import UpdateFacts, read_update
from tests.store.raw import COUNT, ONE, entry, update

ROOTS = ("map:m", "array:a", "array:b", "text:t", "count:c")
CONTENTS: tuple[bytes | str | int | list[bytes], ...] = (
    ONE,
    COUNT,
    "x",
    "a👍b",
    "👍👍",
    1,
    3,
    [ONE],
    [ONE, ONE, ONE],
)
Update = tuple[bytes, UpdateFacts]
Unit = tuple[int, int]


class Hostile:
    """Several authors that keep to no rule but that of the encoding."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.state = State(99)
        self.clocks = dict.fromkeys(range(1, rng.randint(2, 4) + 1), 0)
        self.units: list[Unit] = []

    def try_one(self) -> Update | None:
        """An update that was let in."""
        client = self.rng.choice(list(self.clocks))
        start = clock = self.clocks[client]
        entries = []
        for _ in range(self.rng.choice((1, 1, 1, 2, 3))):
            made, length = self._entry(client, clock)
            entries.append(made)
            clock += length
        deletes = {}
        if self.rng.random() < 0.3 and self.units:
            deleted, at = self.rng.choice(self.units)
            deletes[deleted] = [(at, self.rng.randint(1, 3))]
        data = update(client, start, *entries, deletes=deletes)
        try:
            facts = read_update(data)
            if not self.state.has(facts.needs):
                return None
            self.state.apply(data, facts)
        except DocumentError as error:
            if "pycrdt" in str(error):  # it refuses, or panics over, what was let through
                raise
            return None
        self.clocks[client] = facts.end
        self.units += [(client, at) for at in range(start, facts.end)]
        return data, facts

    def _entry(self, client: int, clock: int) -> tuple[bytes, int]:
        left = self._unit() if self.rng.random() < 0.75 else None
        right = self._unit() if self.rng.random() < 0.5 else None
        if left and clock and self.rng.random() < 0.3:
            left = (client, clock - 1)
        if left == right:
            right = None
        root, content = self.rng.choice(ROOTS), self.rng.choice(CONTENTS)
        key = None
        if not left and not right and root in ("map:m", "count:c"):
            key = counter_key(client) if root == "count:c" else self.rng.choice("ab")
        has_key = self.rng.random() < 0.4 if left or right else None
        return entry(content, root, key, left, right, has_key=has_key), length_of(content)

    def _unit(self) -> Unit | None:
        return self.rng.choice(self.units) if self.units else None


def length_of(content: bytes | str | int | list[bytes]) -> int:
    match content:
        case int():
            return content
        case str():
            return len(content.encode("utf-16-le")) // 2
        case list():
            return len(content)
    return 1


def deliver(updates: list[Update], rng: random.Random) -> State:
    """A peer that gets them in some order, and comes back from a snapshot now and then."""
    state, todo = State(98), list(updates)
    while todo:
        ready = [each for each in todo if is_next(state, each[1])]
        chosen = rng.choice(ready)
        todo.remove(chosen)
        state.apply(*chosen)
        if rng.random() < 0.03:
            snapshot = state.snapshot()
            state = State(98)
            state.restore(snapshot)
    return state


def is_next(state: State, facts: UpdateFacts) -> bool:
    follows = facts.client is None or state.clocks.get(facts.client, 0) == facts.start
    return follows and state.has(facts.needs)


def check(seed: int) -> int:
    rng = random.Random(seed)
    hostile = Hostile(rng)
    updates = [found for _ in range(120) if (found := hostile.try_one()) is not None]
    digests = {deliver(updates, rng).digest() for _ in range(4)}
    assert digests == {hostile.state.digest()}
    return len(updates)


def test_what_is_let_in_reads_the_same_on_all():
    assert sum(check(seed) for seed in range(60)) > 500


@pytest.mark.slow
def test_and_so_does_much_more():
    assert sum(check(seed) for seed in range(60, 200)) > 1400
