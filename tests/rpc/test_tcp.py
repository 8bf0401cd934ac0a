"""Calls over the TCP fallback alone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from lattica.path.tcp import TcpPath
from lattica.rpc import Buffer, Rpc
from tests.rpc.quic import CLIENT, SERVER, address, peer
from tests.rpc.services import Bench

pytestmark = pytest.mark.anyio


@pytest.fixture
async def server() -> AsyncIterator[Rpc]:
    async with peer(SERVER, "server", path=TcpPath.bind("127.0.0.1:0")) as rpc:
        rpc.register("bench", Bench())
        yield rpc


@pytest.fixture
async def stub(server: Rpc) -> AsyncIterator[Bench]:
    async with peer(CLIENT, "client", path=TcpPath()) as rpc:
        rpc.links.learn(SERVER.peer_id, address(server))
        yield rpc.client(SERVER.peer_id, Bench, "bench", timeout=30)


async def test_calls_bodies_and_streams(stub: Bench) -> None:
    assert await stub.add(2, b=3) == 5
    data = os.urandom(5_000_000)
    assert bytes(await stub.echo(Buffer(data))) == data
    assert [i async for i in stub.count(3000)] == list(range(3000))


async def test_thousands_of_calls_beside_a_bulk_transfer_of_50_megabytes(
    server: Rpc, stub: Bench
) -> None:
    async with asyncio.timeout(60):
        bulk = asyncio.create_task(stub.echo(Buffer(bytes(50_000_000))))
        assert await asyncio.gather(*(stub.add(i, i) for i in range(2000))) == [
            2 * i for i in range(2000)
        ]
        assert len(await bulk) == 50_000_000
    path = server.links.path  # type: ignore[attr-defined]
    assert path.counters["send_queue_full"] == 0
