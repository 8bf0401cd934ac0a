"""What the two ends of a link tell each other so that both take the same way."""

from __future__ import annotations

import anyio
import pytest

from lattica.reach import reach
from lattica.reach.messages import Order
from lattica.virtual_loop import VirtualLoop
from tests.netlab.kinds import PORT_RESTRICTED, PUBLIC, SYMMETRIC_OPEN
from tests.netlab.memory_lab import MemoryLab
from tests.reach.load import load
from tests.reach.peers import ACCESS, lab_host, lab_peer, lab_relays, ready, until
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


async def test_a_change_of_network_that_is_noticed_late_leaves_nobody_on_the_relay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others have long said where they see the peer now; then all it knows is forgotten."""
    monkeypatch.setattr(reach, "CHECK_EVERY", 8.0)
    lab = MemoryLab(seed=1)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, PORT_RESTRICTED), "a", relays=relays) as a,
        lab_peer(lab_host(lab, PORT_RESTRICTED), "b", relays=relays) as b,
    ):
        await ready(a, b)
        await a.dial(b)
        await until(lambda: not is_relayed(a, b), 10.0)
        async with load(a, b, 6.0):
            await anyio.sleep(1.0)
            a.host.move(lab.site(PORT_RESTRICTED, delay=ACCESS))
        await until(lambda: not is_relayed(a, b), 10.0)
