"""The other process of each measurement: `python -m bench.servers`.

Serves an echo three ways at once, prints one JSON line with where, and ends when its
standard input does.
"""

from __future__ import annotations

import asyncio
import sys
import time

import anyio
import msgspec

from bench import grpc_echo
from bench.floor import FloorServer
from lattica.identity import wire
from lattica.identity.grants import MEMBER, Membership, issue
from lattica.identity.keys import Identity, PeerId
from lattica.link.endpoint import Endpoint
from lattica.path.udp import UdpPath
from lattica.rpc import Buffer, Rpc, method

YEAR = 365 * 86_400.0


class Echo:
    """Answers with what it was given."""

    @method(scope=None)
    async def echo(self, data: Buffer) -> Buffer:
        """The same bytes."""
        return data


class Where(msgspec.Struct, frozen=True):
    """Where the echoes are."""

    peer: PeerId
    mesh: PeerId
    address: str
    floor_port: int
    grpc_port: int
    grpc_cert: bytes


def membership(authority: Identity, peer: PeerId, *, now: float) -> Membership:
    """A membership for a peer of the bench's own mesh."""
    grant = issue(
        authority, mesh=authority.peer_id, subject=peer, scopes=MEMBER, expires=now + YEAR
    )
    return Membership(authority.peer_id, (grant,))


async def main() -> None:
    """Serve until standard input ends."""
    authority, identity = Identity.generate(), Identity.generate()
    shown = membership(authority, identity.peer_id, now=time.time())
    loop = asyncio.get_running_loop()
    floor = await loop.create_server(FloorServer, "127.0.0.1", 0)
    key, cert = grpc_echo.certificate()
    grpc_server, grpc_port = (
        await grpc_echo.serve(key, cert) if grpc_echo.available() else (None, 0)
    )
    path = UdpPath.bind("127.0.0.1:0")
    async with Endpoint(identity, shown, path, name="bench") as links, Rpc(links) as rpc:
        rpc.register("echo", Echo())
        where = Where(
            identity.peer_id,
            authority.peer_id,
            links.addresses[0],
            floor.sockets[0].getsockname()[1],
            grpc_port,
            cert,
        )
        print(wire.encode(where).hex(), flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
    floor.close()
    if grpc_server is not None:
        await grpc_server.stop(None)


if __name__ == "__main__":
    anyio.run(main)
