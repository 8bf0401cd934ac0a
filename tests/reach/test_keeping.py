"""Idle links and punched ways outlive routers that forget soon."""

from __future__ import annotations

import anyio
import pytest

from lattica.virtual_loop import VirtualLoop
from tests.netlab.kinds import Kind
from tests.netlab.memory_lab import MemoryLab
from tests.netlab.nat import Dependence, Ports, Translation
from tests.reach.peers import lab_host, lab_peer, lab_relays, ready, until
from tests.reach.test_matrix import is_relayed

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


@pytest.mark.parametrize("refreshed_inbound", [True, False])
@pytest.mark.parametrize("timeout", [8.0, 12.0, 20.0, 30.0, 120.0])
async def test_after_ten_idle_minutes_a_call_is_answered_at_once(
    timeout: float, refreshed_inbound: bool
) -> None:
    """Twenty seconds are the shortest seen in practice; RFC 4787 asks for two minutes.

    Routers that forget even sooner are noticed, and links are heard of more often.
    """
    home = Kind(
        home=Translation(
            filtering=Dependence.ADDRESS_AND_PORT,
            ports=Ports.RANDOM,
            timeout=timeout,
            refreshed_inbound=refreshed_inbound,
        )
    )
    lab = MemoryLab(seed=8)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, home), "a", relays=relays) as a,
        lab_peer(lab_host(lab, home), "b", relays=relays) as b,
        lab_peer(lab_host(lab, home), "c", relays=relays) as c,
    ):
        await ready(a, b, c)
        if timeout < 20.0:
            each_knows = (a, b, c)
            await until(
                lambda: all(
                    each.reach.candidates.observer.safe_silence < timeout for each in each_knows
                ),
                300.0,
            )
        await a.dial(b)
        await until(lambda: not is_relayed(a, b), 10.0)
        link = a.link(b)
        await anyio.sleep(600.0)
        for one, other in ((a, b), (b, a)):
            began = anyio.current_time()
            await one.stub(other).ping()
            assert anyio.current_time() - began < 0.3
        assert a.link(b) is link
        assert not is_relayed(a, b)
        await c.dial(b)  # its relays have not forgotten it either
