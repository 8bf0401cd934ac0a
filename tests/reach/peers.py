"""Peers in the lab: links, RPC and reach, without the layers above."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import msgspec

from lattica.clock import elapsed
from lattica.config import Config, LinkConfig
from lattica.identity.grants import CALL, RELAY
from lattica.identity.keys import Identity, PeerId
from lattica.identity.tickets import Contact
from lattica.link.endpoint import Endpoint
from lattica.link.quic_link import QuicLink
from lattica.path import addresses as text
from lattica.path.combined import CombinedPath
from lattica.path.way import WayKind
from lattica.reach.reach import Reach
from lattica.reach.relays import FindRelays
from lattica.rpc import Buffer, Rpc, builtin
from lattica.rpc.builtin import PeerService, peer_client
from tests.link.helpers import member
from tests.netlab.kinds import PUBLIC, Kind
from tests.netlab.memory_dual import DualMemoryPath
from tests.netlab.memory_lab import MemoryHost, MemoryLab
from tests.netlab.memory_stream import MemoryStreamPath

ACCESS = 0.01  # seconds one way between a site and the internet: 20 ms from site to site
CONFIG = Config(link=LinkConfig(engine="aioquic"))


class ReachPeer(msgspec.Struct, eq=False, kw_only=True):
    """A peer in some lab."""

    path: CombinedPath
    endpoint: Endpoint
    rpc: Rpc
    reach: Reach

    @property
    def id(self) -> PeerId:
        return self.endpoint.local

    @property
    def contact(self) -> Contact:
        return Contact(self.id, self.reach.addresses)

    def link(self, other: ReachPeer) -> QuicLink:
        found = self.endpoint.find(other.id)
        assert isinstance(found, QuicLink), f"no link to {other.id.short}"
        return found

    def kind(self, other: ReachPeer) -> WayKind:
        """The kind of way that packets to `other` take now."""
        steering = self.link(other).steering
        assert steering is not None
        assert steering.ways is not None
        return steering.ways.way.kind

    def stub(self, other: ReachPeer, timeout: float = 30.0) -> PeerService:
        return peer_client(self.rpc, other.id, timeout=timeout)

    async def dial(self, other: ReachPeer) -> None:
        """Link to it, and wait until it has the link as well."""
        await self.endpoint.connect(other.id, other.reach.addresses)
        await self.stub(other).ping()

    async def check_transfer(self, other: ReachPeer, size: int = 1024 * 1024) -> None:
        """Send bytes there and back."""
        data = bytes(range(256)) * (size // 256)
        answer = await self.stub(other, 60.0).ping(Buffer(data))
        assert answer is not None
        assert bytes(answer) == data


class LabPeer(ReachPeer, kw_only=True):
    """One in the lab in memory."""

    host: MemoryHost


@asynccontextmanager
async def running(
    path: CombinedPath,
    name: str,
    *,
    relay: bool | None = None,
    relays: Sequence[ReachPeer] = (),
    config: Config = CONFIG,
    scopes: Sequence[str] = (CALL, RELAY),
    find: FindRelays | None = None,
    elapsed: Callable[[], float] = elapsed,
) -> AsyncIterator[ReachPeer]:
    """A peer on a path, which finds these relays."""
    identity = Identity(name.encode().ljust(32))

    async def known() -> Sequence[Contact]:
        return [each.contact for each in relays]

    async with AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(
            Endpoint(identity, member(identity, scopes=scopes), path, name=name, config=config.link)
        )
        rpc = await stack.enter_async_context(Rpc(endpoint, config=config.rpc, name=name))
        builtin.install(rpc)
        reach = await stack.enter_async_context(
            Reach(
                rpc,
                endpoint,
                path,
                config=config,
                relay=relay,
                find_relays=find or known,
                elapsed=elapsed,
            )
        )
        yield ReachPeer(path=path, endpoint=endpoint, rpc=rpc, reach=reach)


@asynccontextmanager
async def lab_peer(
    host: MemoryHost,
    name: str,
    *,
    relay: bool | None = None,
    relays: Sequence[ReachPeer] = (),
    config: Config = CONFIG,
    listens_tcp: bool = False,
    tcp_port: int = 4443,
    scopes: Sequence[str] = (CALL, RELAY),
    elapsed: Callable[[], float] = lambda: 0.0,
) -> AsyncIterator[LabPeer]:
    """A running peer on a host of the lab; it sleeps when `elapsed` says so."""
    path = CombinedPath(
        {
            text.UDP: DualMemoryPath(host, 4242) if host.address6 else host.path(4242),
            text.TCP: MemoryStreamPath(host, tcp_port, is_listening=listens_tcp),
        },
        make_extra=lambda: host.path(0),
    )
    async with running(
        path,
        name,
        relay=relay,
        relays=relays,
        config=config,
        scopes=scopes,
        elapsed=elapsed,
    ) as peer:
        yield LabPeer(host=host, **msgspec.structs.asdict(peer))


@asynccontextmanager
async def lab_relays(lab: MemoryLab, count: int = 2) -> AsyncIterator[list[LabPeer]]:
    """Public peers that relay."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                lab_peer(
                    lab.host(lab.site(PUBLIC, delay=ACCESS)),
                    f"relay {number}",
                    relay=True,
                    listens_tcp=True,
                )
            )
            for number in range(count)
        ]


def lab_host(lab: MemoryLab, kind: str | Kind) -> MemoryHost:
    """A host at a new site."""
    return lab.host(lab.site(kind, delay=ACCESS))


async def until(condition: object, timeout: float) -> None:
    """Wait for what announces itself to nobody."""
    assert callable(condition)
    with anyio.fail_after(timeout):
        while not condition():
            await anyio.sleep(0.01)


async def ready(*peers: ReachPeer) -> None:
    """Until each has its relays and has been seen by them."""
    for each in peers:
        await until(lambda each=each: each.reach.is_relay or len(each.reach.relays) >= 2, 30.0)
    await anyio.sleep(2.0)
