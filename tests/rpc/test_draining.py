"""A peer that ends lets the calls in flight finish, up to a bound, and starts no new ones."""

from __future__ import annotations

from contextlib import AsyncExitStack

import anyio
import pytest

from lattica.config import RpcConfig
from lattica.errors import CallLostError, LinkError
from lattica.rpc import method
from tests.rpc.quic import CLIENT, SERVER, address, peer

pytestmark = pytest.mark.anyio
PATIENT = RpcConfig(drain_timeout=20.0)


class Slow:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.running = anyio.Event()
        self.go_on = anyio.Event()

    @method()
    async def work(self, size: int) -> bytes:
        self.running.set()
        await self.go_on.wait()
        return bytes(size)


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_a_call_in_flight_gets_its_value_from_a_peer_that_ends(size: int) -> None:
    service, results = Slow(), []
    async with peer(CLIENT, "client") as client:
        down = anyio.Event()
        client.links.subscribe(lambda link, is_up: None if is_up else down.set())
        stack = AsyncExitStack()
        server = await stack.enter_async_context(peer(SERVER, "server", config=PATIENT))
        server.register("slow", service)
        stub = client.client(server.local, Slow, "slow")
        client.links.learn(server.local, address(server))

        async def call() -> None:
            results.append(await stub.work(size))

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                await service.running.wait()
                tasks.start_soon(stack.aclose)
                await down.wait()  # the server is leaving: nothing new begins there
                with pytest.raises(LinkError):
                    await stub.work(1)
                assert not results
                service.go_on.set()
        assert results == [bytes(size)]


async def test_a_call_that_does_not_end_is_lost_after_the_bound() -> None:
    service = Slow()
    async with peer(CLIENT, "client") as client:
        stack = AsyncExitStack()
        config = RpcConfig(drain_timeout=0.2)
        server = await stack.enter_async_context(peer(SERVER, "server", config=config))
        server.register("slow", service)
        client.links.learn(server.local, address(server))
        stub = client.client(server.local, Slow, "slow")
        errors: list[CallLostError] = []

        async def call() -> None:
            with pytest.raises(CallLostError) as caught:
                await stub.work(1)
            errors.append(caught.value)

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                await service.running.wait()
                await stack.aclose()
        assert errors[0].may_have_run
        assert "shutting down" in str(errors[0])
