"""Peers of the measurements' own mesh, on loopback."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence

import msgspec

from bench.services import NAME, Service
from bench.targets import ENGINES
from lattica.config import LinkConfig
from lattica.errors import EngineError
from lattica.identity.grants import MEMBER, Membership, issue
from lattica.identity.keys import Identity, PeerId
from lattica.link.endpoint import Endpoint
from lattica.link.engines import choose
from lattica.path.interface import Path
from lattica.path.tcp import TcpPath
from lattica.path.udp import UdpPath
from lattica.rpc import Rpc

YEAR = 365 * 86_400.0
TIMEOUT = 20.0  # seconds for a call
KINDS = ("auto", "1452", "tcp")  # how a link's packets go


class Client:
    """A peer and its stub of the measured service."""

    def __init__(self, links: Endpoint, rpc: Rpc, server: PeerId) -> None:
        self.links = links
        self.rpc = rpc
        self.server = server
        self.stub: Service = rpc.client(server, Service, NAME, timeout=TIMEOUT)


class Where(msgspec.Struct, frozen=True):
    """Where a peer is."""

    peer: PeerId
    address: str


def engines(wanted: str) -> list[str]:
    """The engines to measure: `both` is those that are installed.

    Raises:
        EngineError: the one asked for is not installed.
    """
    if wanted != "both":
        choose(wanted)
        return [wanted]
    found = []
    for engine in ENGINES:
        with contextlib.suppress(EngineError):
            choose(engine)
            found.append(engine)
    return found


def link_config(engine: str, kind: str = "auto") -> LinkConfig:
    """The configuration of both ends of a measured link."""
    assert engine in ENGINES
    assert kind in KINDS
    config = LinkConfig(
        engine=engine,
        connect_timeout=20.0,  # slow machines are slow
        handshake_timeout=20.0,
        handshake_rate=1000.0,  # all dials here come from one source
        handshake_burst=2000.0,
    )
    if kind == "1452":
        config = msgspec.structs.replace(config, max_datagram=1452)
    return config


def membership(authority: Identity, peer: PeerId) -> Membership:
    """A membership of the measurements' mesh."""
    grant = issue(
        authority,
        mesh=authority.peer_id,
        subject=peer,
        scopes=MEMBER,
        expires=time.time() + YEAR,
    )
    return Membership(authority.peer_id, (grant,))


def bind(kind: str, config: LinkConfig) -> Path:
    """A new path of a kind on loopback, to dial from and to be dialled at."""
    if kind == "tcp":
        return TcpPath.bind("127.0.0.1:0")
    return UdpPath.bind("127.0.0.1:0", socket_buffer=config.socket_buffer)


@contextlib.asynccontextmanager
async def member(
    authority: Identity, config: LinkConfig, *, kind: str = "auto", name: str = ""
) -> AsyncIterator[tuple[Endpoint, Rpc]]:
    """A peer on a socket of its own."""
    identity, path = Identity.generate(), bind(kind, config)
    shown = membership(authority, identity.peer_id)
    async with (
        Endpoint(identity, shown, path, name=name, config=config) as links,
        Rpc(links, name=name) as rpc,
    ):
        yield links, rpc


@contextlib.asynccontextmanager
async def client(
    authority: Identity,
    where: Where,
    config: LinkConfig,
    *,
    kind: str = "auto",
    addresses: Sequence[str] = (),
) -> AsyncIterator[Client]:
    """A peer that can call the one at `where`, by its own address or by `addresses`."""
    async with member(authority, config, kind=kind, name="client") as (links, rpc):
        links.learn(where.peer, addresses or (where.address,))
        yield Client(links, rpc, where.peer)
