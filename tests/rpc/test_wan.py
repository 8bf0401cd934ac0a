"""Calls over a long path that is cut for seconds, on a clock that jumps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import anyio
import pytest

from lattica.config import LinkConfig, RpcConfig
from lattica.identity.grants import MEMBER, Membership, issue
from lattica.link.endpoint import Endpoint
from lattica.path.memory import Conditions, PacketNetwork
from lattica.rpc import Buffer, Rpc, method
from lattica.virtual_loop import VirtualLoop
from tests.rpc.quic import AUTHORITY, CLIENT, SERVER

pytestmark = pytest.mark.anyio

RATE = 1_250_000.0  # bytes/s: 10 Mbit/s
PATH = Conditions(latency=0.05, rate=RATE, queue=125_000)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Echo:
    """What is called."""

    @method()
    async def echo(self, data: Buffer) -> Buffer:
        """The same bytes."""
        return data

    @method()
    async def bulk(self, size: int) -> AsyncIterator[Buffer]:
        """Buffers without end."""
        item = Buffer(bytes(size))
        while True:
            yield item


@asynccontextmanager
async def joined(
    network: PacketNetwork, rpc_config: RpcConfig | None = None
) -> AsyncIterator[Echo]:
    """A stub of a peer at the other end of `network`, over aioquic, links that are patient."""
    config = LinkConfig(engine="aioquic", dead_after=10.0)
    async with AsyncExitStack() as stack:
        rpcs = []
        for name, identity in (("server", SERVER), ("client", CLIENT)):
            mesh = AUTHORITY.peer_id
            grant = issue(
                AUTHORITY, mesh=mesh, subject=identity.peer_id, scopes=MEMBER, expires=4e9
            )
            links = Endpoint(
                identity, Membership(mesh, (grant,)), network.path(name), config=config
            )
            await stack.enter_async_context(links)
            rpcs.append(await stack.enter_async_context(Rpc(links, config=rpc_config, name=name)))
        server, client = rpcs
        server.register("echo", Echo())
        client.links.learn(SERVER.peer_id, ("server:1",))
        yield client.client(SERVER.peer_id, Echo, "echo", timeout=30.0)


async def test_no_call_is_lost_in_a_blackout_and_the_rate_is_back_in_two_seconds() -> None:
    network = PacketNetwork(PATH, seed=1)
    loop = asyncio.get_running_loop()
    answers: list[float] = []
    async with joined(network) as stub, anyio.create_task_group() as tasks:

        async def caller() -> None:
            # Any failure ends the test.
            while True:
                assert len(await stub.echo(Buffer(bytes(20_000)))) == 20_000
                answers.append(loop.time())

        for _ in range(16):
            tasks.start_soon(caller)
        await anyio.sleep(4.0)
        network.blackout("client:1", "server:1", 3.0)
        healed = loop.time() + 3.0
        await anyio.sleep(3.0 + 6.0)
        tasks.cancel_scope.cancel()
    before = sum(healed - 5.0 <= at < healed - 3.0 for at in answers) / 2.0
    after = sum(healed + 2.0 <= at < healed + 6.0 for at in answers) / 4.0
    assert not any(healed - 2.8 < at < healed for at in answers)
    assert after >= 0.85 * before
    assert after * 20_000 >= 0.8 * RATE


async def test_one_stream_fills_a_path_that_holds_more_than_its_first_window() -> None:
    # 10 Mbit/s over half a second there and back: two and a half windows are on the way.
    network = PacketNetwork(Conditions(latency=0.25, rate=RATE, queue=625_000), seed=2)
    got = 0
    async with joined(network, RpcConfig(stream_window=256 * 1024)) as stub:
        begun = asyncio.get_running_loop().time()
        async with aclosing(stub.bulk(50_000)) as items:  # type: ignore[type-var]
            async for item in items:
                passed = asyncio.get_running_loop().time() - begun
                got += len(item) if passed >= 8.0 else 0
                if passed >= 16.0:
                    break
    assert got / 8.0 >= 0.75 * RATE
