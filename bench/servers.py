"""The other process of a measurement: `python -m bench.servers KIND …`.

Serves one thing, prints one line with where, and ends when its standard input does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import anyio
import anyio.to_thread
import msgspec

from bench import grpc_peer
from bench.floor import FloorServer
from bench.mesh import KINDS, Where, link_config, member
from bench.services import NAME, Service
from bench.targets import ENGINES
from lattica.identity import wire
from lattica.identity.keys import Identity


class FloorWhere(msgspec.Struct, frozen=True):
    """Where the floor is."""

    port: int


@contextlib.asynccontextmanager
async def _lattica(args: argparse.Namespace) -> AsyncIterator[Where]:
    authority = Identity(bytes.fromhex(args.authority))
    config = link_config(args.engine, args.path)
    async with member(authority, config, kind=args.path, name="server") as (links, rpc):
        rpc.register(NAME, Service())
        yield Where(rpc.local, links.addresses[0])


@contextlib.asynccontextmanager
async def _floor(_args: argparse.Namespace) -> AsyncIterator[FloorWhere]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(FloorServer, "127.0.0.1", 0)
    async with server:
        yield FloorWhere(server.sockets[0].getsockname()[1])


@contextlib.asynccontextmanager
async def _grpc(_args: argparse.Namespace) -> AsyncIterator[grpc_peer.Where]:
    async with grpc_peer.serve() as where:
        yield where


_SERVERS = {"lattica": _lattica, "floor": _floor, "grpc": _grpc}


async def main(args: argparse.Namespace) -> None:
    """Serve until standard input ends."""
    async with _SERVERS[args.what](args) as where:
        print(wire.encode(where).hex(), flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.servers", description=__doc__)
    parser.add_argument("what", choices=sorted(_SERVERS))
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0])
    parser.add_argument("--path", choices=KINDS, default=KINDS[0])
    parser.add_argument("--authority", default="", help="seed of the mesh's authority, hex")
    parser.add_argument("--uvloop", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    options = parse()
    anyio.run(main, options, backend_options={"use_uvloop": options.uvloop})
