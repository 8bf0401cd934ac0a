"""Two endpoints that meet through a third one's forwarder, in a network in memory."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec

from lattica.config import LinkConfig, RelayConfig
from lattica.identity.keys import PeerId
from lattica.link.quic_link import QuicLink
from lattica.path import addresses as text
from lattica.path.combined import CombinedPath
from lattica.path.interface import VirtualAddress
from lattica.path.memory import Conditions, PacketNetwork
from lattica.path.relay import HEADER, Batch
from lattica.reach.forwarding import Forwarder
from tests.link.helpers import ALICE, BOB, CAROL, Peer, peer

SESSION = b"session1"
NOWHERE = VirtualAddress("relay", 0)  # of no session: what goes there is dropped
OVER = "192.0.2.1:7"  # what stands for the session where a dial wants an address
LEG = Conditions(latency=0.01, rate=10e6, queue=500_000)  # 20 ms there and back, 80 Mbit/s
PATIENT = LinkConfig(dead_after=10.0, connect_timeout=10.0, handshake_timeout=10.0)


class MeetingPath(CombinedPath):
    """Resolves `OVER` to the session that is open."""

    session: VirtualAddress

    async def resolve(self, address: str) -> VirtualAddress:
        return self.session if address == OVER else await super().resolve(address)


class LinkLeg:
    """Whatever link a peer has to another."""

    def __init__(self, end: Peer, other: PeerId) -> None:
        self._end = end
        self._other = other

    @property
    def link(self) -> QuicLink | None:
        link = self._end.endpoint.find(self._other)
        return link if isinstance(link, QuicLink) else None

    @property
    def current(self) -> VirtualAddress:
        return NOWHERE if self.link is None else self.link.current_address

    def has(self, address: VirtualAddress) -> bool:
        link = self.link
        return link is not None and link.steering is not None and link.steering.has(address)


class Faults:
    """Drops, repeats, delays and spoils frames."""

    def __init__(self, faults: Mapping[str, float]) -> None:
        """`faults` are chances by name: "drop", "tamper", "delay", "repeat"."""
        self.done = Counter[str]()
        self._faults = faults
        self._chance = random.Random(7)
        self._late: Batch = []

    def left_of(self, frames: Batch) -> Batch:
        """What is to be forwarded instead of `frames`."""
        made: Batch = []
        late, self._late = self._late, []
        for frame, source in frames:
            if self._does("drop"):
                continue
            given = self._spoilt(frame) if self._does("tamper") else frame
            if self._does("delay"):  # until after the next batch
                self._late.append((given, source))
                continue
            made += [(given, source)] * (2 if self._does("repeat") else 1)
        return made + late

    def _does(self, fault: str) -> bool:
        does = self._chance.random() < self._faults.get(fault, 0.0)
        self.done[fault] += does
        return does

    def _spoilt(self, frame: bytes) -> bytes:
        spoilt = bytearray(frame)
        for _ in range(self._chance.randrange(1, 9)):
            bit = self._chance.randrange(8 * HEADER, 8 * len(frame))
            spoilt[bit // 8] ^= 1 << bit % 8
        return bytes(spoilt)


class HostileForwarder(Forwarder):
    """Forwards what its faults have left."""

    def __init__(self, *given: Any, faults: Mapping[str, float], **named: Any) -> None:
        super().__init__(*given, **named)
        self._faults = Faults(faults)

    @property
    def done(self) -> Counter[str]:
        """How often each fault was done."""
        return self._faults.done

    def forward(self, frames: Batch) -> None:
        super().forward(self._faults.left_of(frames))


class Triangle(msgspec.Struct):
    """Alice and Bob, linked to each other over the relay only."""

    alice: Peer
    bob: Peer
    relay: Peer
    network: PacketNetwork
    forwarder: Forwarder

    @property
    def link(self) -> QuicLink:
        """Alice's to Bob."""
        link = self.alice.endpoint.find(self.bob.id)
        assert isinstance(link, QuicLink)
        return link


@asynccontextmanager
async def triangle(
    limits: RelayConfig | None = None,
    make: Callable[..., Forwarder] = Forwarder,
    *,
    leg: Conditions = LEG,
    config: LinkConfig = PATIENT,
) -> AsyncIterator[Triangle]:
    """Both have a link to the relay. Nothing passes between them but through it."""
    network = PacketNetwork(leg, seed=3)
    network.partition("a:1", "b:1")
    paths = {name: MeetingPath({text.UDP: network.path(name)}) for name in "abr"}

    async with (
        peer(ALICE, paths["a"], config=config, name="alice") as alice,
        peer(BOB, paths["b"], config=config, name="bob") as bob,
        peer(CAROL, paths["r"], config=config, name="relay") as relay,
        anyio.create_task_group() as tasks,
    ):
        forwarder = _serve(relay, make, limits or RelayConfig())
        paths["r"].relay.forward = forwarder.forward
        tasks.start_soon(_check, forwarder)
        for end in (alice, bob):
            await end.endpoint.connect(relay.id, relay.endpoint.addresses)
            await relay.until_linked(end)
        forwarder.reserve(bob.id)
        for end, name in ((alice, "a"), (bob, "b")):
            path = paths[name]
            path.session = path.relay.open(SESSION, LinkLeg(end, relay.id), OVER)
        forwarder.open(SESSION, alice.id, bob.id)
        await alice.endpoint.connect(bob.id, [OVER])
        await bob.until_linked(alice)
        yield Triangle(alice, bob, relay, network, forwarder)
        tasks.cancel_scope.cancel()


def _serve(relay: Peer, make: Callable[..., Forwarder], limits: RelayConfig) -> Forwarder:
    def leg(other: PeerId) -> LinkLeg | None:
        return None if relay.endpoint.find(other) is None else LinkLeg(relay, other)

    def whose(address: VirtualAddress) -> PeerId | None:
        links = relay.endpoint.current()
        return next(
            (each.remote.peer for each in links if LinkLeg(relay, each.remote.peer).has(address)),
            None,
        )

    return make(
        relay.endpoint.path,
        leg,
        limits,
        whose=whose,
        counters=relay.endpoint.counters,
        now=anyio.current_time,
    )


async def _check(forwarder: Forwarder) -> None:
    while True:
        await anyio.sleep(1.0)
        forwarder.check()
