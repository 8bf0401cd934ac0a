"""128 B calls between two processes on loopback: rate and latency."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from functools import partial

from bench import grpc_echo
from bench.floor import FloorClient
from bench.loops import Call, p50, rate
from bench.processes import other
from bench.rows import Row, alternate
from bench.servers import Echo, Where
from lattica.identity import wire
from lattica.identity.grants import Membership
from lattica.identity.keys import Identity
from lattica.link.endpoint import Endpoint
from lattica.path.udp import UdpPath
from lattica.rpc import Buffer, Rpc

BODY = b"x" * 128


@contextlib.asynccontextmanager
async def lattica_call(where: Where) -> AsyncIterator[Call]:
    """An echo over a link."""
    identity = Identity.generate()
    path = UdpPath.bind("127.0.0.1:0")
    async with (
        Endpoint(identity, Membership(where.mesh), path, name="client") as links,
        Rpc(links) as rpc,
    ):
        links.learn(where.peer, [where.address])
        echo = rpc.client(where.peer, Echo, "echo", timeout=10.0)
        body = Buffer(BODY)
        yield lambda: echo.echo(body)


async def rows(*, rounds: int = 5, seconds: float = 1.0) -> list[Row]:
    """The table's first part.

    A grpc channel is made once and kept, as is the link.
    """
    started = time.perf_counter()
    result: list[Row] = []
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(other("bench.servers"))
        where = wire.decode(bytes.fromhex(await server.line()), Where)
        call = await stack.enter_async_context(lattica_call(where))
        loop = asyncio.get_running_loop()
        _, floor = await loop.create_connection(FloorClient, "127.0.0.1", where.floor_port)
        stack.callback(floor.close)
        references: list[tuple[str, Call]] = [
            ("TCP + msgspec, not encrypted", lambda: floor.echo(BODY))
        ]
        if grpc_echo.available():
            channel, echo = grpc_echo.client(where.grpc_port, where.grpc_cert)
            stack.push_async_callback(channel.close)
            references.insert(0, ("grpc.aio, TLS", lambda: echo(BODY)))
        for name, reference in references:
            result.append(
                await alternate(
                    "128 B calls/s, 64 in flight",
                    "calls/s",
                    partial(rate, call, in_flight=64, seconds=seconds),
                    partial(rate, reference, in_flight=64, seconds=seconds),
                    reference_name=name,
                    rounds=rounds,
                )
            )
            result.append(
                await alternate(
                    "128 B call p50, one in flight",
                    "ms",
                    partial(p50, call, count=500),
                    partial(p50, reference, count=500),
                    reference_name=name,
                    rounds=rounds,
                )
            )
    sys.stderr.write(f"rpc: {time.perf_counter() - started:.0f} s\n")
    return result
