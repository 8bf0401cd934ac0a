"""A peer that ends lets the calls in flight finish, up to a bound, and starts no new ones."""

from __future__ import annotations

import anyio
import pytest

from lattica.config import RpcConfig
from lattica.errors import CallLostError, LinkError
from lattica.rpc import Rpc, method
from tests.rpc.quic import CLIENT, SERVER, address, peer

pytestmark = pytest.mark.anyio


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


class Ending:
    """A server that serves until it is told to end; `ended` once it has."""

    def __init__(self, service: Slow, drain_timeout: float) -> None:
        self.service = service
        self.up = anyio.Event()
        self.stop = anyio.Event()
        self._config = RpcConfig(drain_timeout=drain_timeout)

    async def run(self) -> None:
        async with peer(SERVER, "server", config=self._config) as server:
            server.register("slow", self.service)
            self.address = address(server)
            self.up.set()
            await self.stop.wait()

    async def stub(self, client: Rpc) -> Slow:
        await self.up.wait()
        client.links.learn(SERVER.peer_id, self.address)
        return client.client(SERVER.peer_id, Slow, "slow")


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_a_call_in_flight_gets_its_value_from_a_peer_that_ends(size: int) -> None:
    server, results = Ending(Slow(), 20.0), []
    async with peer(CLIENT, "client") as client:
        down = anyio.Event()
        client.links.subscribe(lambda link, is_up: None if is_up else down.set())
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(server.run)
                stub = await server.stub(client)

                async def call() -> None:
                    results.append(await stub.work(size))

                tasks.start_soon(call)
                await server.service.running.wait()
                server.stop.set()
                await down.wait()  # the server is leaving: nothing new begins there
                with pytest.raises(LinkError):
                    await stub.work(1)
                assert not results
                server.service.go_on.set()
        assert results == [bytes(size)]


async def test_a_call_that_does_not_end_is_lost_after_the_bound() -> None:
    server = Ending(Slow(), 0.2)
    async with peer(CLIENT, "client") as client:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(server.run)
                stub = await server.stub(client)

                async def stop() -> None:
                    await server.service.running.wait()
                    server.stop.set()

                tasks.start_soon(stop)
                with pytest.raises(CallLostError, match="shutting down") as caught:
                    await stub.work(1)
        assert caught.value.may_have_run
