"""Peers in this process whose sockets, and so whose networks, are those of the real lab's hosts."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from lattica.config import Config
from lattica.path import addresses as text
from lattica.path.combined import CombinedPath
from lattica.path.tcp import TcpPath
from lattica.path.udp import UdpPath
from tests.netlab.kinds import PUBLIC, Kind
from tests.netlab.lab import Lab, LabHost
from tests.reach.peers import ACCESS, ReachPeer, running

PORT = 4242
TCP_PORT = 4443
EXTRA_BUFFER = 256 * 1024  # bytes: there may be hundreds of such sockets
_BACKLOG = 16


class HostUdpPath(UdpPath):
    """Bound to every address that its host has or will have; IPv6 ones if it begins with one."""

    def __init__(self, host: LabHost, port: int = 0, *, socket_buffer: int = 4 << 20) -> None:
        family = socket.AF_INET if host.address6 is None else socket.AF_INET6
        sock = host.open_socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("0.0.0.0" if family == socket.AF_INET else "::", port))
        super().__init__(sock, socket_buffer=socket_buffer)
        self._host = host
        self._port: int = sock.getsockname()[1]

    @property
    def addresses(self) -> tuple[str, ...]:
        hosts = (self._host.address, self._host.address6)
        return tuple(text.join(each, self._port) for each in hosts if each is not None)


class HostTcpPath(TcpPath):
    """Dials from its host, and listens there if `port` is not 0."""

    def __init__(self, host: LabHost, port: int = 0) -> None:
        listener = None
        if port:
            listener = host.open_socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("0.0.0.0", port))
            listener.listen(_BACKLOG)
        super().__init__(listener, open_socket=host.open_socket)
        self._host = host
        self._port = port

    @property
    def addresses(self) -> tuple[str, ...]:
        return (text.TCP + text.join(self._host.address, self._port),) if self._port else ()


class RealPeer(ReachPeer, kw_only=True):
    """One in the real lab."""

    host: LabHost


@asynccontextmanager
async def real_peer(
    host: LabHost,
    name: str,
    *,
    relay: bool | None = None,
    relays: Sequence[ReachPeer] = (),
    config: Config | None = None,
    listens_tcp: bool = False,
) -> AsyncIterator[RealPeer]:
    """A running peer on a host. Names make identities, so a lab needs different ones."""
    path = CombinedPath(
        {
            text.UDP: HostUdpPath(host, PORT),
            text.TCP: HostTcpPath(host, TCP_PORT if listens_tcp else 0),
        },
        make_extra=lambda: HostUdpPath(host, socket_buffer=EXTRA_BUFFER),
    )
    settings = config or Config()
    async with running(path, name, relay=relay, relays=relays, config=settings) as peer:
        yield RealPeer(host=host, **msgspec.structs.asdict(peer))


@asynccontextmanager
async def real_relays(
    lab: Lab, count: int = 2, *, config: Config | None = None
) -> AsyncIterator[list[RealPeer]]:
    """Public peers that relay."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                real_peer(
                    await lab.host(delay=ACCESS),
                    f"relay {number}",
                    relay=True,
                    listens_tcp=True,
                    config=config,
                )
            )
            for number in range(count)
        ]


@asynccontextmanager
async def real_crowd(
    kinds: Sequence[str], *, seed: int, relays: int = 2, config: Config | None = None
) -> AsyncIterator[tuple[list[RealPeer], list[RealPeer]]]:
    """Peers at sites of these kinds, in a lab of their own, and public relays.

    `config` is the relays'. What goes wrong is raised as it is, not inside a group for each peer.
    """
    failure: Exception | None = None
    async with AsyncExitStack() as stack:
        lab = await stack.enter_async_context(Lab(seed=seed))
        found = await stack.enter_async_context(real_relays(lab, relays, config=config))
        peers: list[RealPeer] = []
        for number, kind in enumerate(kinds):
            host = await real_host(lab, kind)
            made = real_peer(host, f"{number}", relays=found, listens_tcp=kind == PUBLIC)
            peers.append(await stack.enter_async_context(made))
        try:
            yield peers, found
        except Exception as error:
            failure = next(leaves(error))
    if failure is not None:
        raise failure


def leaves(error: Exception) -> Iterator[Exception]:
    """What is inside groups of exceptions."""
    if isinstance(error, ExceptionGroup):
        for each in error.exceptions:
            yield from leaves(each)
    else:
        yield error


async def real_host(lab: Lab, kind: str | Kind, *, ipv6: bool = False) -> LabHost:
    """A host at a new site."""
    return await (await lab.site(kind, ipv6=ipv6, delay=ACCESS)).host()


def relayed_bytes(relays: Sequence[ReachPeer], one: ReachPeer, other: ReachPeer) -> int:
    """What the relays say they have forwarded between two peers, as far as sessions live."""
    return sum(
        session.up.bytes + session.down.bytes
        for relay in relays
        for session in relay.reach.forwarder.statistics().sessions
        if {session.source, session.target} == {one.id, other.id}
    )


def known(a: ReachPeer, b: ReachPeer) -> str:
    """What one peer knows of the ways to another, for whoever reads of a fault."""
    told = ", ".join(
        f"{a.path.describe(way.address)} {'proven' if way.is_proven else f'tried {way.tries}'}"
        f" missed {way.misses} rtt {way.rtt:.3f} {'' if way.is_named else 'unnamed'}"
        for way in a.link(b).steering.ways.all
    )
    report = a.reach.report
    return f"{report.mapping} {report.public} uses {a.link(b).address} of {told}"
