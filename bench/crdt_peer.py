"""One of the processes of `bench.crdt`: `python -m bench.crdt_peer AUTHORITY DIRECTORY WHERE …`.

Links with those at `WHERE`, opens a document, prints where it is, and then each number that
another peer writes into it, as soon as it reads it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import anyio

from bench.mesh import Where, engines, link_config, member
from lattica.identity import wire
from lattica.identity.keys import Identity
from lattica.store import Documents

DOCUMENT = "bench"


async def main(authority: str, directory: str, others: Sequence[str]) -> None:
    """Be a peer."""
    async with member(Identity(bytes.fromhex(authority)), link_config(engines("both")[-1])) as (
        links,
        rpc,
    ):
        documents = Documents(rpc, None, links.identity, links.membership, Path(directory))
        async with documents:
            for word in others:
                where = wire.decode(bytes.fromhex(word), Where)
                links.learn(where.peer, (where.address,))
                await links.connect(where.peer)
            document = await documents.open(DOCUMENT)
            changes = document.watch()
            print(wire.encode(Where(rpc.local, links.addresses[0])).hex(), flush=True)
            async for _ in changes:
                print(document.map("m").get("number"), flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3:])
