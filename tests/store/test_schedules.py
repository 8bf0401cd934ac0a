"""Replicas under any schedule: they converge, lose nothing and believe no lie."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bench.forgeries import FORGERIES
from bench.schedule_world import World
from bench.schedules import ACTIONS, act, run_schedule
from lattica.errors import DocumentError

SEEDS = range(150)  # `python -m bench.crdt` runs 10,000


def check(seed: int) -> None:
    outcome = run_schedule(seed)
    assert outcome.is_good, outcome


@pytest.mark.parametrize("seed", SEEDS)
def test_replicas_converge_lose_nothing_and_believe_no_lie(seed):
    check(seed)


def test_a_seed_always_gives_the_same():
    assert run_schedule(7) == run_schedule(7)


def test_the_schedules_do_all_that_they_can():
    outcomes = [run_schedule(seed) for seed in range(25)]
    assert sum(outcome.forks for outcome in outcomes) > 3
    done = set().union(*(outcome.actions for outcome in outcomes))
    assert done == {*ACTIONS, *(f"forge: {name}" for name in FORGERIES)}


# Without what guards against it, a lie must show: else the schedules prove nothing.
@pytest.mark.parametrize(
    ("guard", "replacement"),
    [
        ("lattica.store.crdt.ledger.COUNT", "nothing"),
        ("lattica.store.chains.chain.Chain.check", lambda *_: None),
        ("lattica.store.chains.replica.Replica._cut", lambda *_: False),
        ("lattica.store.crdt.state.State._collect", lambda *_: None),
    ],
)
def test_without_a_guard_the_schedules_find_out(monkeypatch, guard, replacement):
    monkeypatch.setattr(guard, replacement)
    assert any(not holds(seed) for seed in range(40))


def holds(seed: int) -> bool:
    try:
        return run_schedule(seed).is_good
    except (DocumentError, AssertionError):
        return False


class Machine(RuleBasedStateMachine):
    """The same, in an order that Hypothesis chooses and makes short when it finds something."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(random.Random(0), 3)

    @rule(name=st.sampled_from(sorted(ACTIONS)), chance=st.randoms(use_true_random=False))
    def do(self, name: str, chance: random.Random) -> None:
        self.world.rng = chance
        act(self.world, name)

    @invariant()
    def nobody_honest_is_refused(self) -> None:
        assert self.world.refused_honest == 0
        assert self.world.believed == 0

    def teardown(self) -> None:
        outcome = self.world.finish(0)
        assert outcome.is_good, outcome


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
