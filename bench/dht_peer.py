"""One of the processes of `bench.dht`: `python -m bench.dht_peer AUTHORITY [WHERE]`.

Joins through `WHERE`, prints where it is, and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import sys

import anyio

from bench.mesh import Where, engines, link_config, member
from lattica.dht import Dht
from lattica.identity import wire
from lattica.identity.keys import Identity
from lattica.identity.tickets import Contact


async def main(authority: str, entry: str = "") -> None:
    """Be a peer."""
    async with (
        member(Identity(bytes.fromhex(authority)), link_config(engines("both")[-1])) as (
            links,
            rpc,
        ),
        Dht(rpc, links.identity, addresses=lambda: links.addresses) as dht,
    ):
        dht.register_kind("note", bytes)
        if entry:
            where = wire.decode(bytes.fromhex(entry), Where)
            await dht.bootstrap([Contact(where.peer, (where.address,))])
        print(wire.encode(Where(rpc.local, links.addresses[0])).hex(), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2] if sys.argv[2:] else "")
