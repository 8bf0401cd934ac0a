"""Every kind of network to every other, with real sockets through real NATs.

A pair's two peers, and the two relays that all share, run in this process; each has its
sockets in a namespace of its own. Several pairs are tried at a time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import anyio
import msgspec
import pytest

from lattica.path.way import WayKind
from tests.netlab.kinds import KINDS, PUBLIC, UDP_BLOCKED
from tests.netlab.lab import Lab
from tests.netlab.reach_peers import (
    RealPeer,
    known,
    leaves,
    real_host,
    real_peer,
    real_relays,
    relayed_bytes,
)
from tests.reach.oracle import method
from tests.reach.peers import ready, until
from tests.reach.test_matrix import is_relayed, limit

pytestmark = [pytest.mark.anyio, pytest.mark.netlab]

NAMES = list(KINDS)
EVERY = list(itertools.product(NAMES, NAMES))
# Each kind dials twice and is dialled twice, and every method is among them; by TCP two.
CHOSEN = [
    *((one, NAMES[(place + 5) % len(NAMES)]) for place, one in enumerate(NAMES)),
    *((one, NAMES[(3 * place + 2) % len(NAMES)]) for place, one in enumerate(NAMES)),
    (PUBLIC, UDP_BLOCKED),
    (UDP_BLOCKED, PUBLIC),
]
TOGETHER = 4  # pairs
FIRST_CALL = 2.0  # seconds; on an idle machine four round trips of 80 ms over a relay
LOOKS = 5
LOOK = 64 * 1024  # bytes that show which way packets take
SIGNS_OF_LIFE = 16 * 1024  # bytes that a relay may forward meanwhile for a pair that is direct


class Row(msgspec.Struct):
    """What became of a pair. Seconds."""

    one: str
    other: str
    first: float | None = None
    direct: float | None = None
    took: float = 0.0
    fault: str = ""

    @property
    def way(self) -> str:
        if UDP_BLOCKED in (self.one, self.other):
            return "tcp" if self.direct is not None else "relayed"
        return method(self.one, self.other).value if self.direct is not None else "relayed"

    def __str__(self) -> str:
        first = "-" if self.first is None else f"{self.first * 1000:.0f}"
        direct = "-" if self.direct is None else f"{self.direct:.2f}"
        line = f"{self.one:24}{self.other:24}{self.way:12}{first:>6}{direct:>8}{self.took:>7.1f}"
        return f"{line}  {self.fault}"


def test_the_chosen_pairs_have_every_kind_on_both_sides() -> None:
    assert {one for one, _ in CHOSEN} == {other for _, other in CHOSEN} == set(KINDS)
    assert {method(one, other) for one, other in CHOSEN} == {
        method(one, other) for one, other in EVERY
    }


@pytest.mark.timeout(240)
async def test_pairs_are_linked_and_direct_if_they_can_be() -> None:
    await check(CHOSEN)


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_every_pair_is_linked_and_direct_if_it_can_be() -> None:
    rows = await check(EVERY)
    table(rows)


async def check(pairs: Sequence[tuple[str, str]]) -> list[Row]:
    """Try pairs, print what became of each, and fail if anything is not as it must be."""
    rows: list[Row] = []
    limiter = anyio.CapacityLimiter(TOGETHER)
    async with Lab(seed=1) as lab, real_relays(lab) as relays:

        async def run(number: int, one: str, other: str) -> None:
            async with limiter:
                row = Row(one, other)
                began = time.monotonic()
                try:
                    await tried(lab, relays, row, number)
                except Exception as error:
                    row.fault = "; ".join(map(repr, leaves(error)))
                row.took = time.monotonic() - began
                rows.append(row)
                print(row, flush=True)

        async with anyio.create_task_group() as tasks:
            for number, (one, other) in enumerate(pairs):
                tasks.start_soon(run, number, one, other)
    assert not [str(row) for row in rows if row.fault]
    return rows


async def tried(lab: Lab, relays: Sequence[RealPeer], row: Row, number: int) -> None:
    """Link two new peers, and look what the link does."""
    one, other = row.one, row.other
    most = limit(one, other)
    async with (
        real_peer(
            await real_host(lab, one), f"a{number}", relays=relays, listens_tcp=one == PUBLIC
        ) as a,
        real_peer(
            await real_host(lab, other), f"b{number}", relays=relays, listens_tcp=other == PUBLIC
        ) as b,
    ):
        await ready(a, b)
        began = anyio.current_time()
        await a.dial(b)
        row.first = anyio.current_time() - began
        assert row.first < FIRST_CALL

        async def watch() -> None:
            with anyio.move_on_after(most):
                await until(lambda: not is_relayed(a, b), 2 * most)
                row.direct = anyio.current_time() - began

        async with anyio.create_task_group() as tasks:
            if most:
                tasks.start_soon(watch)
            await a.check_transfer(b)
        assert row.direct or not most, f"not direct: {known(a, b)}; {known(b, a)}"
        await b.check_transfer(a)
        if row.direct is None and not is_relayed(a, b):
            row.direct = anyio.current_time() - began  # better than was thought possible
        await check_claims(relays, a, b)


async def check_claims(relays: Sequence[RealPeer], a: RealPeer, b: RealPeer) -> None:
    """What both say of the link's path is what the relays see of it."""
    for _ in range(LOOKS):
        said = a.kind(b), b.kind(a)
        names = [x.link(y).address.startswith("relay:") for x, y in ((a, b), (b, a))]
        assert names == [kind is WayKind.RELAYED for kind in said]
        before = relayed_bytes(relays, a, b)
        await a.check_transfer(b, LOOK)
        passed = relayed_bytes(relays, a, b) - before
        if (a.kind(b), b.kind(a)) != said or passed < 0:
            continue  # a way opened or was lost meanwhile, or a session needed no more was closed
        most, least = {0: (SIGNS_OF_LIFE, 0), 1: (2 * LOOK, LOOK), 2: (4 * LOOK, 2 * LOOK)}[
            sum(names)
        ]
        assert least <= passed <= most, f"{said}, and the relays forwarded {passed} bytes"
        return
    raise AssertionError(f"the way goes on changing: {known(a, b)}; {known(b, a)}")


def table(rows: Sequence[Row]) -> None:
    """The matrix as the documentation has it: dialers down, seconds to direct."""
    marks = {"plain": "", "port prediction": "p", "birthday": "b", "tcp": "t"}
    by_pair = {(row.one, row.other): row for row in rows}
    for place, one in enumerate(NAMES, start=1):
        cells = [
            "r" if row.direct is None else f"{row.direct:.1f}{marks[row.way]}"
            for row in (by_pair[one, other] for other in NAMES)
        ]
        print(f"| {place} `{one}` | " + " | ".join(cells) + " |")
    firsts = sorted(row.first for row in rows if row.first is not None)
    print(f"first call: {figures(firsts)}")
    for way in marks:
        print(f"{way}: {figures(sorted(row.direct or 0.0 for row in rows if row.way == way))}")
    print(f"relayed: {sum(row.direct is None for row in rows)}")


def figures(times: Sequence[float]) -> str:
    """Of sorted seconds."""
    if not times:
        return "none"
    half, most = times[len(times) // 2], times[int(0.95 * len(times))]
    return f"{len(times)}, median {half:.2f} s, 95 % {most:.2f} s, last {times[-1]:.2f} s"
