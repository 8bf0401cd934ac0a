"""A mesh of DHT peers on a virtual clock: every decision is the product's, only the carrier is not.

The peers' `Dht` calls each other through `World`, which delays, loses and counts what they say and
runs the same service. Sizes are those of the encoded arguments and results, and `FRAME` for each
way: UDP and IPv4 headers, a QUIC short header with its tag, and the call's own frame.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import msgspec

from lattica.clock import Clock
from lattica.config import DhtConfig
from lattica.dht import Dht
from lattica.dht.keys import KEY_BITS
from lattica.dht.messages import FindReply, Lease
from lattica.dht.routing import PeerNode
from lattica.dht.service import DhtService
from lattica.errors import DeadlineError, LatticaError, UnreachableError
from lattica.identity import grants, wire
from lattica.identity.keys import Identity, PeerId
from lattica.identity.tickets import Contact
from lattica.link.supervision import PeerState
from lattica.rpc import Rpc
from lattica.rpc.buffers import Buffer
from lattica.rpc.context import CallContext, current_call

FRAME = 28 + 27 + 15  # bytes each way: UDP and IPv4, QUIC, the call
HANDSHAKE = 4200  # bytes of a first call's link, both ends together
GONE_AFTER = 12.0  # seconds until the other end of a link is known to have died
DELAY = (0.01, 0.06)  # seconds one way
RETRANSMISSION = 0.15  # seconds that a lost packet costs
SCOPES = frozenset(grants.MEMBER)


class LoopClock:
    """See `lattica.clock.Clock`: the virtual loop's time."""

    def monotonic(self) -> float:
        """Seconds."""
        return asyncio.get_running_loop().time()

    def elapsed(self) -> float:
        """Seconds."""
        return asyncio.get_running_loop().time()

    def time(self) -> float:
        """Seconds, as if since the epoch."""
        return 1_000_000.0 + asyncio.get_running_loop().time()


class Traffic:
    """What one peer has sent."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.bytes = 0


class World:
    """All peers. `loss` is the share of packets lost; times in seconds of the virtual loop."""

    def __init__(self, *, seed: int = 1, loss: float = 0.0, config: DhtConfig | None = None):
        self.random = random.Random(seed)
        self.loss = loss
        # Rounds of upkeep are rarer than the product's: most find nothing to do, and cost time.
        self.config = config or DhtConfig(maintain_every=20.0)
        self.clock: Clock = LoopClock()
        self.peers: dict[PeerId, SimPeer] = {}
        self.sides: dict[PeerId, int] | None = None  # while the network is cut
        self._made = 0
        self._tasks = anyio.create_task_group()

    async def __aenter__(self) -> World:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)

    @property
    def honest(self) -> list[SimPeer]:
        """Those alive who do not lie."""
        return [peer for peer in self.peers.values() if not peer.is_liar]

    async def start(
        self,
        *,
        entries: int = 3,
        is_liar: bool = False,
        directory: Path | None = None,
        identity: Identity | None = None,
    ) -> SimPeer:
        """A new peer, which joins through some that are there."""
        known = self.random.sample(list(self.peers.values()), min(entries, len(self.peers)))
        peer = self.add(is_liar=is_liar, directory=directory, identity=identity)
        started = anyio.Event()
        self._tasks.start_soon(self._live, peer, started)
        await started.wait()
        if known:
            await peer.dht.bootstrap([each.contact for each in known])
        return peer

    def add(
        self,
        *,
        is_liar: bool = False,
        directory: Path | None = None,
        identity: Identity | None = None,
    ) -> SimPeer:
        """A peer that knows nobody and does nothing yet."""
        self._made += 1
        who = identity or Identity(self.random.randbytes(32))
        peer = SimPeer(self, who, self._made, is_liar=is_liar, directory=directory)
        self.peers[peer.id] = peer
        return peer

    def add_static(self) -> SimPeer:
        """A peer that answers, and otherwise does nothing of itself."""
        peer = self.add()
        peer.dht.serve()
        return peer

    async def settle(self, count: int, *, liars: float = 0.0) -> None:
        """So many peers at once, of whom a share lies, as if all had met: far sooner than joining.

        They have said nothing yet, not even where they are.
        """
        for number in range(count):
            started = anyio.Event()
            peer = self.add(is_liar=int(number * liars) != int((number + 1) * liars))
            self._tasks.start_soon(self._live, peer, started)
            await started.wait()
        self.fill_tables()

    def fill_tables(self) -> None:
        """As if all had met: k contacts in each bucket that has so many (Kademlia paper §2.2)."""
        now = self.clock.monotonic()
        nodes = sorted((PeerNode(each) for each in self.peers), key=lambda node: node.long_id)
        places = [node.long_id for node in nodes]
        for node in nodes:
            node.addresses = (self.peers[node.peer].address,)
        for node in nodes:
            table = self.peers[node.peer].dht.table
            for shared in range(KEY_BITS):
                # Those that share so many leading bits and no more are next to each other.
                size = KEY_BITS - shared - 1
                low = ((node.long_id >> size) ^ 1) << size
                first = bisect_left(places, low)
                last = bisect_left(places, low + (1 << size))
                chosen = range(first, last)
                for index in self.random.sample(chosen, min(self.config.k, len(chosen))):
                    table.add_contact(nodes[index])
                if (
                    bisect_left(places, (low ^ (1 << size)) + (1 << size))
                    - bisect_left(places, low ^ (1 << size))
                    <= 1
                ):
                    break  # nobody shares more
            for bucket in table.buckets:  # and not all at the same time
                bucket.last_updated = now - self.random.uniform(0, self.config.refresh_every)

    async def kill(self, peer: SimPeer) -> None:
        """It vanishes without a word; those linked to it notice after a while."""
        del self.peers[peer.id]
        peer.is_alive = False
        peer.stop.set()
        loop = asyncio.get_running_loop()
        for other in tuple(peer.links.open):
            if (there := self.peers.get(other)) is not None:
                loop.call_later(GONE_AFTER, there.links.drop, peer.id)

    async def leave(self, peer: SimPeer) -> None:
        """It says good-bye, and closes its links."""
        await peer.dht.leave()
        del self.peers[peer.id]
        peer.is_alive = False
        peer.stop.set()
        for other in tuple(peer.links.open):
            if (there := self.peers.get(other)) is not None:
                there.links.drop(peer.id)

    async def _live(self, peer: SimPeer, started: anyio.Event) -> None:
        async with peer.dht:
            started.set()
            await peer.stop.wait()
        peer.stopped.set()

    def closest(self, key: bytes, count: int) -> list[PeerId]:
        """The true closest peers alive."""
        place = int.from_bytes(key, "big")
        nodes = (PeerNode(each) for each in self.peers)
        ranked = sorted(nodes, key=lambda node: node.long_id ^ place)
        return [node.peer for node in ranked[:count]]

    def cut(self, share: float) -> None:
        """Cut the network in two."""
        self.sides = {each: int(self.random.random() < share) for each in self.peers}

    def heal(self) -> None:
        """Undo it."""
        self.sides = None

    def can_reach(self, one: PeerId, other: PeerId) -> bool:
        """Whether packets pass."""
        sides = self.sides
        return sides is None or sides.get(one, 0) == sides.get(other, 0)

    async def call(
        self, here: SimPeer, peer: PeerId, name: str, args: tuple[Any, ...], timeout: float
    ) -> Any:
        """One call from a peer to another, with all that may go wrong."""
        there = self.peers.get(peer)
        here.traffic.calls[name] += 1
        size = FRAME + len(msgspec.msgpack.encode(args, enc_hook=_bare))
        here.traffic.bytes += size
        if there is None or not here.is_alive or not self.can_reach(here.id, peer):
            await asyncio.sleep(timeout)
            if peer in here.links.open:
                raise DeadlineError(f"no answer within {timeout} s")
            raise UnreachableError(f"{peer.short} does not answer")
        if peer not in here.links.open:
            here.traffic.bytes += HANDSHAKE // 2
            there.traffic.bytes += HANDSHAKE // 2
            await asyncio.sleep(2 * self._delay())
            here.links.join(there.id)
            there.links.join(here.id)
        await asyncio.sleep(self._delay())
        if not there.is_alive:
            await asyncio.sleep(timeout)
            raise DeadlineError(f"no answer within {timeout} s")
        context = CallContext(here.id, SCOPES, "", float("inf"), here.root)
        token = current_call.set(context)
        try:
            reply = await there.serve(name, args)
        except LatticaError:
            there.traffic.bytes += FRAME
            raise
        finally:
            current_call.reset(token)
        there.traffic.bytes += FRAME + _size(reply)
        await asyncio.sleep(self._delay())
        return reply

    def _delay(self) -> float:
        delay = self.random.uniform(*DELAY)
        while self.random.random() < self.loss:
            delay += RETRANSMISSION
        return delay


class SimPeer:
    """One peer and its `Dht`."""

    def __init__(
        self,
        world: World,
        identity: Identity,
        number: int,
        *,
        is_liar: bool,
        directory: Path | None,
    ) -> None:
        self.world = world
        self.identity = identity
        self.id = identity.peer_id
        self.address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}:4242"
        self.is_liar = is_liar
        self.is_alive = True
        self.root = self.id  # as if each had a ticket of its own
        self.traffic = Traffic()
        self.links = SimLinks(self)
        self.services: dict[str, Any] = {}
        self.stop = anyio.Event()
        self.stopped = anyio.Event()
        self.dht = Dht(
            cast(Rpc, self),
            identity,
            config=world.config,
            clock=world.clock,
            addresses=lambda: (self.address,),
            directory=directory,
        )
        self.dht.register_kind("note", bytes)

    @property
    def contact(self) -> Contact:
        """How others find it."""
        return Contact(self.id, (self.address,))

    async def serve(self, name: str, args: tuple[Any, ...]) -> Any:
        """Answer a call; a liar names other liars only, and keeps nothing of what it takes."""
        service = self.services.get("dht")
        if service is None:
            raise UnreachableError("it does not serve")
        if self.is_liar and name == "find":
            liars = [each.contact for each in self.world.peers.values() if each.is_liar]
            chosen = self.world.random.sample(liars, min(len(liars), self.world.config.k))
            return FindReply((self.address,), tuple(chosen), Buffer(b""))
        if self.is_liar and name == "store":
            return None
        if self.is_liar and name == "lease":  # whoever asks has it, and has had it for long
            return Lease(args[0], 1e6, 60.0)
        if self.is_liar and name == "leased":
            return None
        return await getattr(service, name)(*args)

    # --------------------------------------------------- what `Dht` needs of an `Rpc`

    @property
    def local(self) -> PeerId:
        """See `Rpc.local`."""
        return self.id

    def register(self, name: str, service: object) -> None:
        """See `Rpc.register`."""
        self.services[name] = service

    def unregister(self, name: str) -> None:
        """See `Rpc.unregister`."""
        self.services.pop(name, None)

    def client(self, peer: PeerId, service: type[DhtService], name: str, timeout: float) -> Any:
        """See `Rpc.client`."""
        return _Stub(self, peer, timeout)


class _Stub:
    def __init__(self, here: SimPeer, peer: PeerId, timeout: float) -> None:
        self._here = here
        self._peer = peer
        self._timeout = timeout

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            return self._here.world.call(self._here, self._peer, name, args, self._timeout)

        return call


class SimLinks:
    """What `Dht` needs of its `Links`."""

    def __init__(self, peer: SimPeer) -> None:
        self._peer = peer
        self.open: dict[PeerId, Any] = {}
        self._listeners: list[Callable[[Any, bool], None]] = []

    def join(self, peer: PeerId) -> None:
        """A link is up."""
        if peer not in self.open:
            link = SimpleNamespace(remote=SimpleNamespace(peer=peer, scopes=SCOPES))
            self.open[peer] = link
            for listener in tuple(self._listeners):
                listener(link, True)

    def drop(self, peer: PeerId) -> None:
        """It is down."""
        link = self.open.pop(peer, None)
        if link is not None and self._peer.is_alive:
            for listener in tuple(self._listeners):
                listener(link, False)

    def find(self, peer: PeerId) -> Any:
        """See `Links.find`."""
        return self.open.get(peer)

    def state(self, peer: PeerId) -> PeerState:
        """See `Links.state`."""
        return PeerState.UP if peer in self.open else PeerState.DOWN

    def learn(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """See `Links.learn`."""

    def subscribe(self, listener: Callable[[Any, bool], None]) -> Callable[[], None]:
        """See `Links.subscribe`."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)


def _bare(value: Any) -> Any:
    """Types that MessagePack does not have."""
    if isinstance(value, PeerId):
        return value.raw
    if isinstance(value, Buffer):
        return bytes(value.data)
    raise TypeError(type(value))


def _size(reply: Any) -> int:
    if isinstance(reply, FindReply):
        return len(wire.encode((reply.addresses, reply.contacts))) + len(reply.records.data)
    return len(msgspec.msgpack.encode(reply, enc_hook=_bare))
