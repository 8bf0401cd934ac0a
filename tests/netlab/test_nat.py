"""Each kind of box, classified from outside: what the labs play is what they say."""

from __future__ import annotations

import pytest

from lattica.virtual_loop import VirtualLoop
from tests.netlab import kinds
from tests.netlab.classify import Classifier, Findings, Servers
from tests.netlab.kinds import KINDS
from tests.netlab.memory_lab import MemoryHost, MemoryLab, MemorySocket
from tests.netlab.nat import (
    TCP,
    Dependence,
    Firewall,
    Nat,
    Packet,
    Ports,
    Translation,
)

INSIDE, OTHER, REMOTE = ("10.0.0.2", 5000), ("10.0.0.3", 5000), ("198.18.0.9", 443)
OUTSIDE = "198.18.0.1"
TRANSLATING = [name for name, kind in KINDS.items() if kind.home and kind.policy.udp]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def servers(lab: MemoryLab) -> Servers:
    one, other = lab.host(), lab.host()
    return Servers(one.socket(1001), one.socket(1002), other.socket(1001))


def classifier(lab: MemoryLab, host: MemoryHost) -> Classifier:
    async def bind(port: int) -> MemorySocket:
        return host.socket(port)

    return Classifier(bind, servers(lab), wait=0.5)


def test_there_are_fourteen_kinds() -> None:
    assert len(KINDS) == 14
    behaviours = {(each.home, each.carrier, each.firewall, each.policy) for each in KINDS.values()}
    assert len(behaviours) == 14


@pytest.mark.anyio
@pytest.mark.parametrize("name", KINDS)
async def test_a_kind_is_what_it_is_called(name: str) -> None:
    lab = MemoryLab(seed=3)
    host = lab.host(lab.site(name, delay=0.01))
    assert await classifier(lab, host).run() == Findings.of(KINDS[name])


@pytest.mark.anyio
@pytest.mark.parametrize("name", TRANSLATING)
async def test_an_idle_mapping_lives_for_two_minutes(name: str) -> None:
    lab = MemoryLab(seed=4)
    host = lab.host(lab.site(name, delay=0.01))
    assert await classifier(lab, host).lifetime([30, 115, 125, 300]) == (115, 125)


def test_the_same_seed_gives_the_same_ports() -> None:
    def ports(seed: int) -> list[int]:
        nat = Nat(Translation(ports=Ports.RANDOM), OUTSIDE, seed=seed)
        return [port(nat, ("10.0.0.2", number)) for number in range(1000, 1010)]

    assert ports(1) == ports(1) != ports(2)


def port(nat: Nat, source: tuple[str, int], target: tuple[str, int] = REMOTE) -> int:
    out = nat.outbound(Packet(source, target), 0.0)
    assert out is not None
    assert out.source[0] == OUTSIDE
    assert out.target == target
    return out.source[1]


def test_a_taken_port_is_not_given_twice() -> None:
    nat = Nat(Translation(ports=Ports.PRESERVE), OUTSIDE)
    assert port(nat, INSIDE) == 5000
    assert port(nat, OTHER) == 5001


def test_a_block_is_a_subscribers_own_and_runs_out() -> None:
    nat = Nat(Translation(mapping=Dependence.ADDRESS_AND_PORT, ports=Ports.BLOCK), OUTSIDE)
    mine = {port(nat, INSIDE, ("198.18.0.9", number)) for number in range(1, 513)}
    assert len(mine) == 512
    assert max(mine) - min(mine) == 511
    assert nat.outbound(Packet(INSIDE, ("198.18.0.9", 999)), 0.0) is None
    assert nat.counters["no_port"] == 1
    assert port(nat, OTHER) not in mine


def test_a_full_table_refuses_and_expired_lines_make_room() -> None:
    nat = Nat(Translation(capacity=2, timeout=10.0), OUTSIDE)
    for number in (1, 2):
        port(nat, ("10.0.0.2", 1024 + number))
    assert nat.outbound(Packet(("10.0.0.2", 2000), REMOTE), 1.0) is None
    assert nat.counters["table_full"] == 1
    assert nat.outbound(Packet(("10.0.0.2", 2000), REMOTE), 30.0) is not None
    assert len(nat) == 1


@pytest.mark.parametrize("refreshed", [True, False])
def test_what_comes_in_keeps_a_mapping_only_where_it_does(refreshed: bool) -> None:
    nat = Nat(Translation(timeout=10.0, refreshed_inbound=refreshed), OUTSIDE)
    back = Packet(REMOTE, (OUTSIDE, port(nat, INSIDE)))
    assert nat.inbound(back, 8.0) == Packet(REMOTE, INSIDE)
    assert (nat.inbound(back, 16.0) is not None) is refreshed


def test_tcp_has_a_table_of_its_own_and_lives_longer() -> None:
    nat = Nat(Translation(timeout=10.0), OUTSIDE)
    assert port(nat, INSIDE) == 5000
    out = nat.outbound(Packet(OTHER, REMOTE, TCP), 0.0)
    assert out == Packet((OUTSIDE, 5000), REMOTE, TCP)
    assert nat.inbound(Packet(REMOTE, (OUTSIDE, 5000), TCP), 3600.0) == Packet(REMOTE, OTHER, TCP)


def test_a_mapped_port_is_open_to_all_until_it_is_removed() -> None:
    nat = Nat(KINDS[kinds.SYMMETRIC_RANDOM].home or Translation(), OUTSIDE)
    nat.forward(6000, INSIDE)
    assert nat.inbound(Packet(REMOTE, (OUTSIDE, 6000)), 0.0) == Packet(REMOTE, INSIDE)
    assert port(nat, INSIDE) == 6000
    nat.unforward(6000)
    assert nat.inbound(Packet(REMOTE, (OUTSIDE, 6000)), 0.0) is None


def test_a_reboot_forgets_and_may_bring_a_new_address() -> None:
    nat = Nat(Translation(), OUTSIDE)
    back = Packet(REMOTE, (OUTSIDE, port(nat, INSIDE)))
    nat.reboot("198.18.7.7")
    assert nat.inbound(back, 0.0) is None
    out = nat.outbound(Packet(INSIDE, REMOTE), 0.0)
    assert out is not None
    assert out.source == ("198.18.7.7", 5000)


def test_a_firewall_lets_in_answers_only() -> None:
    wall = Firewall(timeout=10.0)
    question = Packet(("198.18.3.3", 5), REMOTE)
    answer = Packet(REMOTE, ("198.18.3.3", 5))
    assert wall.inbound(answer, 0.0) is None
    assert wall.outbound(question, 0.0) == question
    assert wall.inbound(answer, 9.0) == answer
    assert wall.inbound(Packet(("198.18.0.9", 444), ("198.18.3.3", 5)), 9.0) is None
    assert wall.inbound(answer, 30.0) is None
