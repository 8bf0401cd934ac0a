"""Lattica's own links through the real lab's NATs and lines."""

from __future__ import annotations

import os

import pytest

from tests.link.helpers import ALICE, BOB, exchange, peer
from tests.netlab import kinds
from tests.netlab.lab import Lab

pytestmark = [pytest.mark.anyio, pytest.mark.netlab]


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize(
    "kind", [kinds.PORT_RESTRICTED, kinds.SYMMETRIC_RANDOM, kinds.CARRIER_HOME]
)
async def test_a_link_passes_a_nat_and_a_lossy_line(kind: str, kernel: bool) -> None:
    async with Lab(seed=1) as lab:
        site = await lab.site(kind, kernel=kernel, delay=0.01, loss=0.01)
        async with (
            peer(ALICE, await (await site.host()).path()) as alice,
            peer(BOB, await (await lab.host(delay=0.01)).path()) as bob,
        ):
            await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
            await bob.until_linked(alice)
            await exchange(alice.to(bob).link, bob.to(alice), os.urandom(1_000_000))
            await exchange(bob.to(alice).link, alice.to(bob), os.urandom(1_000_000))
