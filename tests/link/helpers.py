"""What the link tests share: recording handlers, quick endpoints, a dialer that cheats."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio

from lattica.clock import Clock
from lattica.config import LinkConfig
from lattica.errors import LinkError
from lattica.identity.grants import CALL, Membership, issue
from lattica.identity.keys import Identity, PeerId
from lattica.link.certificate import Certificate
from lattica.link.endpoint import Endpoint
from lattica.link.engine import EngineConfig
from lattica.link.engines import choose
from lattica.link.interface import Link
from lattica.path.interface import Path, VirtualAddress
from lattica.path.memory import PacketNetwork

MESH = Identity(b"mesh".ljust(32))
ALICE, BOB = sorted(
    (Identity(b"alice".ljust(32)), Identity(b"bob".ljust(32))), key=lambda each: each.peer_id.raw
)
CAROL = Identity(b"carol".ljust(32))
QUICK = LinkConfig(
    heartbeat=0.1,
    dead_after=0.5,
    far_dead_after=0.5,
    connect_timeout=3.0,
    handshake_timeout=1.0,
    max_pending=8,
)


async def eventually(condition: Callable[[], object], timeout: float = 5.0) -> None:
    """Wait for what announces itself to nobody."""
    with anyio.fail_after(timeout):
        while not condition():
            await anyio.sleep(0.01)


class Recorder:
    """A link handler that remembers; `until` waits for what a test is after."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.data: dict[int, bytearray] = defaultdict(bytearray)
        self.ended: list[int] = []
        self.resets: list[tuple[int, int]] = []
        self.stops: list[tuple[int, int]] = []
        self.lost: list[LinkError] = []
        self._changed = anyio.Event()

    def stream_data(self, stream_id: int, data: bytes, end: bool) -> None:
        assert not self.lost
        self.data[stream_id] += data
        if end:
            self.ended.append(stream_id)
        self._wake()

    def stream_reset(self, stream_id: int, code: int) -> None:
        self.resets.append((stream_id, code))
        self._wake()

    def stream_stopped(self, stream_id: int, code: int) -> None:
        self.stops.append((stream_id, code))
        self._wake()

    def link_lost(self, error: LinkError) -> None:
        self.lost.append(error)
        self._wake()

    async def until(self, condition: Callable[[], bool], timeout: float = 10.0) -> None:
        with anyio.fail_after(timeout):
            while not condition():
                await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


async def exchange(sender: Link, receiver: Recorder, data: bytes) -> None:
    """Send `data` on a new stream and check what arrives."""
    stream_id = sender.open_stream(unidirectional=True)
    sender.write(stream_id, data, end=True)
    await receiver.until(lambda: stream_id in receiver.ended)
    assert receiver.data[stream_id] == data


class Peer:
    """An endpoint whose every link is recorded."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.handlers: list[Recorder] = []
        self.changes: list[tuple[PeerId, bool]] = []
        self._changed = anyio.Event()
        endpoint.set_acceptor(self._accept)
        endpoint.subscribe(self._change)

    @property
    def id(self) -> PeerId:
        return self.endpoint.local

    def to(self, other: Peer) -> Recorder:
        """The handler of the open link to `other`."""
        link = self.endpoint.find(other.id)
        return next(each for each in self.handlers if each.link is link)

    async def until_linked(self, other: Peer, is_up: bool = True, timeout: float = 10.0) -> None:
        with anyio.fail_after(timeout):
            while (self.endpoint.find(other.id) is not None) is not is_up:
                await self._changed.wait()

    def _accept(self, link: Link) -> Recorder:
        recorder = Recorder(link)
        self.handlers.append(recorder)
        return recorder

    def _change(self, link: Link, is_up: bool) -> None:
        self.changes.append((link.remote.peer, is_up))
        self._changed.set()
        self._changed = anyio.Event()


def member(
    identity: Identity,
    *,
    expires: float = 4e9,
    mesh: Identity = MESH,
    scopes: Sequence[str] = (CALL,),
) -> Membership:
    """A membership with a direct grant."""
    grant = issue(mesh, mesh=mesh.peer_id, subject=identity.peer_id, scopes=scopes, expires=expires)
    return Membership(mesh.peer_id, (grant,))


@asynccontextmanager
async def peer(
    identity: Identity,
    path: Path,
    *,
    membership: Membership | None = None,
    config: LinkConfig = QUICK,
    clock: Clock | None = None,
    name: str = "",
) -> AsyncIterator[Peer]:
    """A running endpoint."""
    if membership is None:
        membership = Membership(MESH.peer_id)
    async with Endpoint(
        identity, membership, path, name=name, config=config, clock=clock
    ) as endpoint:
        yield Peer(endpoint)


@asynccontextmanager
async def two(
    network: PacketNetwork | None = None, config: LinkConfig = QUICK
) -> AsyncIterator[tuple[Peer, Peer]]:
    """Alice, the lower PeerId, and Bob, in one packet network."""
    network = network or PacketNetwork()
    async with (
        peer(ALICE, network.path("a"), config=config, name="alice") as alice,
        peer(BOB, network.path("b"), config=config, name="bob") as bob,
    ):
        yield alice, bob


class Cheat:
    """Dials with QUIC like a link, then says on stream 0 whatever a test wants."""

    def __init__(self, path: Path, *, engine: str = "auto") -> None:
        self._path = path
        self._engine = choose(engine).near(
            EngineConfig(is_client=True, certificate=Certificate.generate(), datagram=1452)
        )
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.received = bytearray()
        self.binding = b""
        self.ready = anyio.Event()
        self.over = anyio.Event()
        self.code: int | None = None
        self.reason = ""
        path.start(self)

    async def dial(self, address: str) -> None:
        self._address = await self._path.resolve(address)
        self._engine.connect(self._address, self._loop.time())
        self.flush()
        with anyio.fail_after(5):
            await self.ready.wait()

    def say(self, data: bytes, stream_id: int = 0, *, end: bool = False) -> None:
        self._engine.send(stream_id, data, end)
        self.flush()

    def new_stream(self, *, unidirectional: bool) -> int:
        return self._engine.next_stream_id(unidirectional=unidirectional)

    async def until_closed(self, timeout: float = 5.0) -> None:
        with anyio.fail_after(timeout):
            await self.over.wait()

    def flush(self) -> None:
        datagrams = self._engine.datagrams(self._loop.time())
        self._path.send(datagrams, self._address)
        at = self._engine.timer()
        if self._timer is not None:
            self._timer.cancel()
        if at is not None and not self.over.is_set():
            self._timer = self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._engine.handle_timer(self._loop.time())
        self.flush()

    def packets_received(self, packets: Sequence[tuple[bytes, VirtualAddress]]) -> None:
        for data, address in packets:
            self._engine.receive(data, address, self._loop.time())
        self._engine.drain(self)
        self.flush()

    def path_refused(self, address: VirtualAddress) -> None: ...

    def path_too_big(self, address: VirtualAddress, size: int) -> None: ...

    def probes_received(self, probes: Sequence[tuple[bytes, VirtualAddress]]) -> None: ...

    def handshake_done(self) -> None:
        self.binding = self._engine.binding()
        self.new_stream(unidirectional=False)
        self.ready.set()

    def stream_data(self, stream_id: int, data: bytes, end: bool) -> None:
        self.received += data

    def stream_reset(self, stream_id: int, code: int) -> None: ...

    def stream_stopped(self, stream_id: int, code: int) -> None: ...

    def connection_id_added(self, connection_id: bytes) -> None: ...

    def connection_id_removed(self, connection_id: bytes) -> None: ...

    def closed(self, code: int | None, reason: str) -> None:
        self.code, self.reason = code, reason
        self.over.set()
