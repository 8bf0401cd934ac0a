"""Real links for these tests: QUIC over UDP sockets on loopback."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lattica.config import LinkConfig, RpcConfig
from lattica.identity import grants
from lattica.identity.keys import Identity
from lattica.identity.signed import Signed
from lattica.link.endpoint import Endpoint
from lattica.path.interface import Path as LinkPath
from lattica.path.udp import UdpPath
from lattica.rpc import Rpc

AUTHORITY = Identity(b"the authority of these tests".ljust(32))
SERVER = Identity(b"server".ljust(32))
CLIENT = Identity(b"client".ljust(32))
OTHER = Identity(b"other".ljust(32))
STRANGER = Identity(b"stranger".ljust(32))


@asynccontextmanager
async def peer(
    identity: Identity,
    name: str,
    *,
    config: RpcConfig | None = None,
    link_config: LinkConfig | None = None,
    path: LinkPath | None = None,
) -> AsyncIterator[Rpc]:
    """An `Rpc` on a UDP socket of its own, or on `path`; all but the stranger are members."""
    mesh = AUTHORITY.peer_id
    chain: tuple[Signed, ...] = ()
    if identity is not STRANGER:
        chain = (
            grants.issue(
                AUTHORITY,
                mesh=mesh,
                subject=identity.peer_id,
                scopes=grants.MEMBER,
                expires=time.time() + 600,
            ),
        )
    async with (
        Endpoint(
            identity,
            grants.Membership(mesh, chain),
            path or UdpPath.bind("127.0.0.1:0"),
            name=name,
            config=link_config,
        ) as links,
        Rpc(links, config=config, name=name) as rpc,
    ):
        yield rpc


def address(rpc: Rpc) -> tuple[str, ...]:
    """Where a peer made by `peer` can be dialled."""
    links = rpc.links
    assert isinstance(links, Endpoint)
    return links.addresses
