"""The packet network in memory behaves as told, and the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest

from lattica.errors import AddressError, PortInUseError
from lattica.path.interface import VirtualAddress
from lattica.path.memory import Conditions, PacketNetwork

pytestmark = pytest.mark.anyio


class Inbox:
    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.senders: set[VirtualAddress] = set()

    def packets_received(self, packets: Sequence[tuple[bytes, VirtualAddress]]) -> None:
        for data, sender in packets:
            self.data.append(data)
            self.senders.add(sender)

    def path_refused(self, address: VirtualAddress) -> None: ...

    def path_too_big(self, address: VirtualAddress, size: int) -> None: ...

    def probes_received(self, probes: Sequence[tuple[bytes, VirtualAddress]]) -> None: ...


async def deliver(conditions: Conditions, seed: int, count: int = 200) -> list[bytes]:
    network = PacketNetwork(conditions, seed=seed)
    one, other = network.path("a"), network.path("b")
    inbox = Inbox()
    one.start(Inbox())
    other.start(inbox)
    one.send([b"@%d" % index for index in range(count)], await one.resolve("b:1"))
    await anyio.sleep(conditions.latency + conditions.jitter + conditions.reorder_delay + 0.02)
    return inbox.data


SENT = [b"@%d" % index for index in range(200)]


async def test_a_perfect_network_delivers_in_order() -> None:
    assert await deliver(Conditions(), 0) == SENT


async def test_jitter_keeps_the_order() -> None:
    assert await deliver(Conditions(latency=0.01, jitter=0.01), 1) == SENT


async def test_loss_duplicates_and_reordering_happen_as_often_as_asked() -> None:
    lossy = await deliver(Conditions(loss=0.2), 2)
    assert 120 < len(lossy) < 190
    assert lossy == sorted(lossy, key=SENT.index)
    doubled = await deliver(Conditions(duplicate=0.2), 3)
    assert 210 < len(doubled) < 280
    shuffled = await deliver(Conditions(reorder=0.3), 4)
    assert shuffled != SENT
    assert sorted(shuffled) == sorted(SENT)


async def test_the_same_seed_loses_the_same_packets() -> None:
    conditions = Conditions(loss=0.3)
    assert await deliver(conditions, 5) == await deliver(conditions, 5)
    assert await deliver(conditions, 5) != await deliver(conditions, 6)


async def test_partitions_heal_and_silence_does_not_spread() -> None:
    network = PacketNetwork()
    paths = {name: network.path(name) for name in "abc"}
    inboxes = {name: Inbox() for name in "abc"}
    for name, path in paths.items():
        path.start(inboxes[name])

    async def send(source: str, target: str) -> bool:
        before = len(inboxes[target].data)
        paths[source].send([b"@"], await paths[source].resolve(f"{target}:1"))
        await anyio.sleep(0.01)
        return len(inboxes[target].data) > before

    assert await send("a", "b")
    network.partition("a:1", "b:1")
    assert not await send("a", "b")
    assert not await send("b", "a")
    assert await send("a", "c")
    network.heal("a:1", "b:1")
    assert await send("a", "b")
    network.silence("c:1")
    assert not await send("a", "c")
    assert not await send("c", "a")
    paths["b"].close()
    assert not await send("a", "b")


async def test_addresses_are_checked_as_on_a_socket() -> None:
    network = PacketNetwork()
    path = network.path("a")
    with pytest.raises(PortInUseError):
        network.path("a")
    with pytest.raises(AddressError):
        await path.resolve("b")
    with pytest.raises(AddressError):
        await path.resolve("b:0")
    path.close()
    assert network.path("a").addresses == ("a:1",)
