"""Other processes of `bench.blocks`: `python -m bench.block_peer ROLE AUTHORITY ENGINE FOLDER …`.

`provide … SIZE` adds a file of so many bytes and serves it; for each line that it is told it
prints how many bytes it has served. `fetch … WHERE MANIFEST` fetches from there and prints a
line for each percent, and then what memory that took at most.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from bench.mesh import Where, client, link_config, member
from bench.peak import Peak
from bench.services import NAME, Service
from lattica.config import MIB
from lattica.identity import wire
from lattica.identity.keys import Identity, PeerId
from lattica.rpc import Buffer
from lattica.store import Blocks


def write_noise(path: Path, size: int, seed: int = 1) -> None:
    """A file that no block of occurs twice in."""
    noise = random.Random(seed)
    with path.open("wb") as file:
        while size:
            size -= file.write(noise.randbytes(min(size, MIB)))


@contextlib.asynccontextmanager
async def provider(
    authority: Identity, engine: str, folder: Path, size: int
) -> AsyncIterator[tuple[Where, str, Blocks]]:
    """A peer that has a file."""
    async with (
        member(authority, link_config(engine), name="provider") as (links, rpc),
        Blocks(folder / "store", rpc, None) as blocks,
    ):
        rpc.register(NAME, Service())
        await anyio.to_thread.run_sync(write_noise, folder / "file", size)
        manifest = await blocks.add(folder / "file")
        (folder / "file").unlink()
        yield Where(rpc.local, links.addresses[0]), manifest, blocks


async def provide(authority: str, engine: str, folder: str, size: str) -> None:
    """Serve until standard input ends."""
    identity = Identity(bytes.fromhex(authority))
    async with provider(identity, engine, Path(folder), int(size)) as (where, manifest, blocks):
        print(wire.encode(where).hex(), manifest, flush=True)
        while await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            print(blocks.served, flush=True)


async def fetch(authority: str, engine: str, folder: str, where: str, manifest: str) -> None:
    """Fetch once."""
    identity, server = Identity(bytes.fromhex(authority)), wire.decode(bytes.fromhex(where), Where)
    async with (
        client(identity, server, link_config(engine)) as here,
        Blocks(Path(folder), here.rpc, None) as blocks,
    ):
        await here.stub.echo(Buffer(bytes(MIB)))  # what links need once
        told = -1
        peak = Peak()

        def tell(done: int, total: int, _: PeerId | None) -> None:
            nonlocal told
            if (percent := 100 * done // total) > told:
                told = percent
                print(percent, flush=True)

        await blocks.path(manifest, progress=tell, providers=[server.peer])
        print("peak", peak.extra(), flush=True)


ROLES: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {"provide": provide, "fetch": fetch}

if __name__ == "__main__":
    anyio.run(ROLES[sys.argv[1]], *sys.argv[2:])
