"""What a filter lets in is found out by knocks that were asked for, and by no others."""

from __future__ import annotations

import anyio
import pytest

from lattica.errors import LatticaError
from lattica.reach.messages import SERVICE
from lattica.reach.report import Filtering
from lattica.reach.service import ReachService
from lattica.virtual_loop import VirtualLoop
from tests.netlab.kinds import KINDS, PORT_RESTRICTED, PUBLIC, UDP_BLOCKED
from tests.netlab.memory_lab import MemoryLab
from tests.netlab.nat import Dependence
from tests.reach.peers import lab_host, lab_peer, lab_relays, ready

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


@pytest.mark.parametrize("kind", [each for each in KINDS if each != UDP_BLOCKED])
async def test_every_filter_is_known_soon(kind: str) -> None:
    """Whether it lets in strangers as well is only seen when one comes."""
    lab = MemoryLab(seed=9)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, kind), "a", relays=relays) as a,
    ):
        await ready(a)
        await anyio.sleep(10.0)
        is_strict = KINDS[kind].filtering is Dependence.ADDRESS_AND_PORT
        expected = Filtering.RESTRICTED if is_strict else Filtering.ADDRESS
        assert a.reach.report.filtering is expected
        assert len(a.link(relays[0]).steering.ways.all) == 1  # type: ignore[union-attr]


async def test_nobody_is_knocked_at_often_or_by_proxy() -> None:
    lab = MemoryLab(seed=9)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, PORT_RESTRICTED), "a", relays=relays) as a,
        lab_peer(lab_host(lab, PUBLIC), "b", relays=relays) as b,
    ):
        await ready(a, b)
        await a.dial(relays[0])
        stub = a.rpc.client(relays[0].id, ReachService, SERVICE, timeout=5.0)
        refused: list[str] = []
        for _ in range(50):
            try:
                await stub.knock()
            except LatticaError as error:
                refused.append(str(error))
        assert len(refused) >= 49
        assert all("does not knock so often" in each for each in refused)
        assert relays[0].reach.counters["knock:refused"] == len(refused)
