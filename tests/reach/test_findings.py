"""What peers find out about their networks from the links that they have, and keep knowing."""

from __future__ import annotations

import anyio
import pytest

from lattica.config import NatConfig
from lattica.reach.nat import Mapping, NatReport
from lattica.virtual_loop import VirtualLoop
from tests.netlab.kinds import (
    FULL_CONE,
    KINDS,
    PORT_RESTRICTED,
    PUBLIC,
    SYMMETRIC_RANDOM,
    UDP_BLOCKED,
)
from tests.netlab.memory_lab import MemoryLab
from tests.reach.peers import lab_host, lab_peer, lab_relays, ready, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


@pytest.mark.parametrize(
    ("kind", "mapping"),
    [
        (PUBLIC, Mapping.NONE),
        (FULL_CONE, Mapping.INDEPENDENT),
        (PORT_RESTRICTED, Mapping.INDEPENDENT),
        (SYMMETRIC_RANDOM, Mapping.DEPENDENT),
    ],
)
async def test_a_report_outlives_the_time_that_one_word_counts(kind: str, mapping: Mapping) -> None:
    lab = MemoryLab(seed=3)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, kind), "a", relay=False, relays=relays) as a,
    ):
        await ready(a)
        reports: set[tuple[Mapping, tuple[str, ...]]] = set()
        version = a.reach.candidates.observer.version
        with anyio.move_on_after(2.5 * NatConfig().observation_ttl):
            while True:
                reports.add(found(a.reach.report))
                await anyio.sleep(10.0)
        assert {each for each, _ in reports} == {mapping}
        assert len(reports) == 1
        assert a.reach.candidates.observer.version == version


@pytest.mark.parametrize(("kind", "passes"), [(UDP_BLOCKED, False), (SYMMETRIC_RANDOM, True)])
async def test_blocked_udp_is_noticed_where_several_answer_by_tcp_only(
    kind: str, passes: bool
) -> None:
    lab = MemoryLab(seed=3)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, kind), "a", relay=False, relays=relays) as a,
        lab_peer(lab_host(lab, SYMMETRIC_RANDOM), "b", relays=relays) as b,
    ):
        await ready(a, b)
        await a.dial(b)
        await until(lambda: a.reach.report.udp is not None, 30.0)
        assert a.reach.report.udp is passes
        assert b.reach.report.udp is True
        a.host.site.policy = KINDS[PORT_RESTRICTED].policy
        await until(lambda: a.reach.report.udp is True, 300.0)  # and when it passes again


def found(report: NatReport) -> tuple[Mapping, tuple[str, ...]]:
    return report.mapping, report.public
