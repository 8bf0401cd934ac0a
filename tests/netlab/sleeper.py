"""`python -m tests.netlab.sleeper`: a peer in a process of its own, which tests stop and wake.

It is told, as JSON, its host's address and its relays, and tells where it is as soon as it has
reserved two of them. It ends with its standard input.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import anyio
import msgspec

from lattica.config import Config
from lattica.identity.keys import PeerId
from lattica.identity.tickets import Contact
from lattica.path import addresses as text
from lattica.path.combined import CombinedPath
from lattica.path.tcp import TcpPath
from lattica.path.udp import UdpPath
from tests.reach.load import Ledger
from tests.reach.peers import ReachPeer, running, until

NAME = "sleeper"
PORT = 4242


class Told(msgspec.Struct, frozen=True):
    """What it is told when it starts."""

    address: str
    relays: tuple[tuple[str, tuple[str, ...]], ...]  # ids and addresses


class Tells(msgspec.Struct, frozen=True):
    """What it tells when it is ready."""

    peer: str
    addresses: tuple[str, ...]


async def main(told: Told) -> None:
    """Serve until standard input ends."""
    path = CombinedPath(
        {text.UDP: UdpPath.bind(text.join(told.address, PORT)), text.TCP: TcpPath(None)},
        make_extra=lambda: UdpPath.bind(text.join(told.address, 0)),
    )

    async def find() -> Sequence[Contact]:
        return [Contact(PeerId.parse(peer), addresses) for peer, addresses in told.relays]

    async with running(path, NAME, config=Config(), find=find) as peer:
        peer.rpc.register("ledger", Ledger())
        await until(lambda: len(peer.reach.relays) >= len(told.relays), 30.0)
        await anyio.sleep(2.0)  # until relays have said where they see it
        tell(peer)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def tell(peer: ReachPeer) -> None:
    """Say where it is."""
    said = Tells(str(peer.id), peer.reach.addresses)
    print(msgspec.json.encode(said).decode(), flush=True)


if __name__ == "__main__":
    anyio.run(main, msgspec.json.decode(sys.argv[1], type=Told))
