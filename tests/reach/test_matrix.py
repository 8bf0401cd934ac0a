"""Every kind of network to every other: linked at once, direct wherever a method is known.

`LATTICA_MATRIX=all` tries every pair in both directions, and prints the table; else a
quarter of them, in which every kind meets several others.
"""

from __future__ import annotations

import itertools
import os

import anyio
import pytest

from lattica.path.way import WayKind
from lattica.reach.plan import Method
from lattica.virtual_loop import VirtualLoop
from tests.netlab.kinds import KINDS, PUBLIC, UDP_BLOCKED
from tests.netlab.memory_lab import MemoryLab
from tests.reach.oracle import method
from tests.reach.peers import LabPeer, ReachPeer, lab_host, lab_peer, lab_relays, ready, until

pytestmark = pytest.mark.anyio

ORDERED = list(itertools.product(KINDS, KINDS))
IS_WHOLE = os.environ.get("LATTICA_MATRIX") == "all"
NAMES = list(KINDS)
CHOSEN = [
    (one, other)
    for one, other in ORDERED
    if IS_WHOLE or (NAMES.index(one) + 3 * NAMES.index(other)) % 5 == 0
]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def test_the_quarter_has_every_kind_on_both_sides() -> None:
    assert {one for one, _ in CHOSEN} == {other for _, other in CHOSEN} == set(KINDS)


@pytest.mark.parametrize(("one", "other"), CHOSEN)
async def test_every_pair_is_linked_and_direct_if_it_can_be(one: str, other: str) -> None:
    lab = MemoryLab(seed=1)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, one), "a", relays=relays, listens_tcp=one == PUBLIC) as a,
        lab_peer(lab_host(lab, other), "b", relays=relays, listens_tcp=other == PUBLIC) as b,
    ):
        await ready(a, b)
        began = anyio.current_time()
        await a.dial(b)
        first = anyio.current_time() - began
        assert first < 0.5
        direct: float | None = None

        async def watch() -> None:
            nonlocal direct
            await until(lambda: not is_relayed(a, b), 60.0)
            direct = anyio.current_time() - began

        async with anyio.create_task_group() as tasks:
            if limit(one, other):
                tasks.start_soon(watch)
            await a.check_transfer(b)
        await a.check_transfer(b)
        await b.check_transfer(a)
        if direct is None and not is_relayed(a, b):
            direct = anyio.current_time() - began  # better than the oracle knows
        report(one, other, first, direct)
        assert not limit(one, other) or (direct is not None and direct < limit(one, other))
        await check_claims(a, b)


def limit(one: str, other: str) -> float:
    """Seconds within which a pair is direct; 0.0: it stays on the relay."""
    if UDP_BLOCKED in (one, other):
        return 5.0 if PUBLIC in (one, other) else 0.0  # by TCP
    return {
        Method.PLAIN: 5.0,
        Method.PREDICTION: 5.0,
        Method.BIRTHDAY: 30.0,
        Method.HOPELESS: 0.0,
        Method.NONE: 0.0,
    }[method(one, other)]


def is_relayed(a: ReachPeer, b: ReachPeer) -> bool:
    return WayKind.RELAYED in (a.kind(b), b.kind(a))


async def check_claims(a: LabPeer, b: LabPeer) -> None:
    """What both say of the link's path is what packets take."""
    relayed = is_relayed(a, b)
    before = a.path.relay.statistics().datagrams_out + b.path.relay.statistics().datagrams_out
    await a.check_transfer(b, 64 * 1024)
    after = a.path.relay.statistics().datagrams_out + b.path.relay.statistics().datagrams_out
    assert (after - before > 20) is relayed
    assert a.link(b).address.startswith("relay:") is relayed


def report(one: str, other: str, first: float, direct: float | None) -> None:
    """A line of the table, seen with `pytest -s`."""
    how = "tcp" if UDP_BLOCKED in (one, other) else method(one, other).value
    when = f"{how} after {direct:.2f} s" if direct is not None else "relayed"
    print(f"{one:24}{other:24}first call {first * 1000:4.0f} ms  {when}")
