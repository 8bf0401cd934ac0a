"""What peers with idle links know of their networks stays known."""

from __future__ import annotations

import anyio
import pytest

from lattica.config import NatConfig
from lattica.reach.nat import Mapping, NatReport
from lattica.virtual_loop import VirtualLoop
from tests.netlab.kinds import FULL_CONE, PORT_RESTRICTED, PUBLIC, SYMMETRIC_RANDOM
from tests.netlab.memory_lab import MemoryLab
from tests.reach.peers import lab_host, lab_peer, lab_relays, ready

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


def found(report: NatReport) -> tuple[Mapping, tuple[str, ...]]:
    return report.mapping, report.public
