"""Processes that provide and fetch blocks over loopback, to be killed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import anyio
import anyio.to_thread

from bench.mesh import Where, link_config, member
from lattica.config import KIB, StoreConfig
from lattica.errors import LatticaError
from lattica.identity.keys import Identity, PeerId
from lattica.store import Blocks

CONFIG = StoreConfig(block=64 * KIB, block_timeout=5.0)


def provide(seed: bytes, folder: Path, source: Path, tell: Connection) -> None:
    """Serve a file, until killed."""

    async def main() -> None:
        async with (
            member(Identity(seed), link_config("aioquic")) as (links, rpc),
            Blocks(folder, rpc, None, CONFIG) as blocks,
        ):
            tell.send((Where(rpc.local, links.addresses[0]), await blocks.add(source)))
            await anyio.sleep_forever()

    anyio.run(main)


def fetch(
    seed: bytes, folder: Path, providers: Sequence[Where], manifest: str, tell: Connection
) -> None:
    """Fetch; tells each step, and at last the bytes that came or what went wrong."""

    async def main() -> None:
        async with (
            member(Identity(seed), link_config("aioquic")) as (links, rpc),
            Blocks(folder, rpc, None, CONFIG) as blocks,
        ):
            for each in providers:
                links.learn(each.peer, (each.address,))
            named = [each.peer for each in providers]
            try:
                await blocks.path(manifest, progress=step, providers=named)
            except LatticaError as error:
                tell.send(repr(error))
                return
            report = blocks.report(manifest)
            assert report is not None
            tell.send(dict(enumerate(report.provided.values())))

    def step(done: int, _total: int, _peer: PeerId | None) -> None:
        with contextlib.suppress(BrokenPipeError):
            tell.send(done)

    anyio.run(main)
