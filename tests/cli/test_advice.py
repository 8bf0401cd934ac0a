"""What the doctor says of each kind of network, from what a peer there finds out."""

from __future__ import annotations

import msgspec
import pytest

from lattica.cli.advice import Finding, Network, RelayFinding, advise
from lattica.reach.report import NatReport
from lattica.virtual_loop import VirtualLoop
from tests.netlab import kinds
from tests.netlab.memory_lab import MemoryLab
from tests.reach.peers import lab_host, lab_peer, lab_relays, ready, until

pytestmark = pytest.mark.anyio

ONE_ADDRESS = "one address to everybody"
SAID = {
    kinds.PUBLIC: "no router translates",
    kinds.FULL_CONE: ONE_ADDRESS,
    kinds.ADDRESS_RESTRICTED: ONE_ADDRESS,
    kinds.PORT_RESTRICTED: ONE_ADDRESS,
    kinds.PORT_RESTRICTED_RANDOM: ONE_ADDRESS,
    kinds.SYMMETRIC_OPEN: "random port",
    kinds.ADDRESS_DEPENDENT: "random port",
    kinds.SYMMETRIC_RANDOM: "random port",
    kinds.SYMMETRIC_SEQUENTIAL: "one after the other",
    kinds.SYMMETRIC_BLOCK: "carrier NAT",
    kinds.CARRIER_HOME: ONE_ADDRESS,
    kinds.CARRIER_SYMMETRIC_HOME: "random port",
    kinds.FIREWALL: "no router translates",
    kinds.UDP_BLOCKED: "UDP does not pass",
}
NETWORK = Network(
    report=NatReport(),
    bound=["10.0.0.2:4242"],
    published=[],
    is_quiet=False,
    relays=[],
    is_relay=False,
    relay_sessions=0,
    mapped=[],
    port_mapping="",
    links={},
    peers=1,
)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def find(findings: list[Finding], words: str) -> Finding:
    found = [each for each in findings if words in each.what]
    assert len(found) == 1, [each.what for each in findings]
    return found[0]


@pytest.mark.parametrize("kind", list(kinds.KINDS))
async def test_every_kind_of_network_is_told_by_what_it_does(kind: str) -> None:
    lab = MemoryLab(seed=7)
    async with (
        lab_relays(lab, 3) as relays,
        lab_peer(lab_host(lab, kind), "a", relays=relays) as a,
    ):
        await ready(a)
        for relay in relays:
            await a.dial(relay)
        if kind == kinds.UDP_BLOCKED:
            await until(lambda: a.reach.report.udp is False, 60.0)
        network = msgspec.structs.replace(
            NETWORK,
            report=a.reach.report,
            bound=list(a.endpoint.addresses),
            relays=[RelayFinding(name="r", peer="r", address="", rtt_ms=1.0)] * 2,
        )
        findings = advise(network)
        find(findings, SAID[kind])
        for other in set(SAID.values()) - {SAID[kind]}:
            assert not [each for each in findings if other in each.what]
        find(findings, "reachable for everybody through r (1 ms), r (1 ms)")
        if kind in (kinds.SYMMETRIC_RANDOM, kinds.PORT_RESTRICTED):
            assert "not asked to keep a port open" in str(findings)


def test_a_peer_bound_to_this_machine_is_told_how_to_be_reached() -> None:
    (finding,) = advise(msgspec.structs.replace(NETWORK, is_quiet=True))
    assert finding.level == "bad"
    assert "--listen" in finding.cure


def test_without_relays_and_open_ports_nobody_can_begin() -> None:
    finding = find(advise(NETWORK), "no relay")
    assert finding.level == "bad"
    assert "--relay" in finding.cure


def test_a_mapped_port_is_told_and_nothing_asked_for() -> None:
    report = NatReport(udp=True, public=("198.51.100.7:4242",))
    network = msgspec.structs.replace(NETWORK, report=report, mapped=["198.51.100.7:4242"])
    assert find(advise(network), "keeps a port open").level == "ok"
    assert find(advise(network), "no relay").level == "better"
