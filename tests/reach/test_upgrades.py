"""What the two ends of a link tell each other so that both take the same way."""

from __future__ import annotations

import pytest

from lattica.reach.messages import Order
from lattica.virtual_loop import VirtualLoop
from tests.netlab.kinds import PUBLIC, SYMMETRIC_OPEN
from tests.netlab.memory_lab import MemoryLab
from tests.reach.peers import lab_host, lab_peer, lab_relays, ready, until
from tests.reach.test_matrix import is_relayed

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


async def test_a_way_that_opens_before_the_order_to_punch_is_taken_by_both() -> None:
    lab = MemoryLab(seed=1)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, PUBLIC), "a", relays=relays) as a,
        lab_peer(lab_host(lab, SYMMETRIC_OPEN), "b", relays=relays) as b,
    ):
        await ready(a, b)
        late: list[Order] = []
        b.reach.ordered = lambda peer, order: late.append(order)  # behind a large transfer
        await a.dial(b)
        await until(lambda: not is_relayed(a, b), 5.0)
        assert late
