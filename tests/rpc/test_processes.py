"""Faults of real processes on real sockets: killed, frozen, restarted; clocks that jump.

Times are taken from the moment the fault is in effect to the moment callers know; the bounds
of the waits themselves are generous, the asserted ones are promises.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from lattica.clock import ManualClock
from lattica.config import LinkConfig
from lattica.errors import CallLostError, LatticaError
from lattica.identity.keys import PeerId
from lattica.link.supervision import PeerEvent, PeerState
from lattica.rpc import Rpc
from tests.rpc.quic import CLIENT, OTHER, SERVER, peer
from tests.rpc.services import Bench

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
PATIENCE = 30.0  # seconds; for what has to happen some time
CONFIG = LinkConfig()


@contextmanager
def served(bind: str = "127.0.0.1:0", who: str = "server") -> Iterator[Served]:
    """A serving process."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.rpc.serve_process", bind, who],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield Served(process, process.stdout.readline().strip())
        finally:
            process.kill()


class Served:
    """The process, and where it serves."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process = process
        self.address = address

    def kill(self) -> float:
        """Kill it; the time from which its socket is closed."""
        self.process.kill()
        self.process.wait(PATIENCE)
        return time.monotonic()

    def freeze(self) -> float:
        """Stop it; the time from which it does not run."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)
        return time.monotonic()

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)


class Client:
    """A peer whose calls in flight are kept with their outcomes."""

    def __init__(self, rpc: Rpc) -> None:
        self.rpc = rpc
        self.events: list[PeerEvent] = []
        rpc.links.watch(self.events.append)
        self._changed = anyio.Event()
        rpc.links.watch(lambda event: self._wake())

    def stub(self, where: Served, peer_id: PeerId = SERVER.peer_id) -> Bench:
        self.rpc.links.learn(peer_id, [where.address])
        return self.rpc.client(peer_id, Bench, "bench", timeout=PATIENCE)

    async def until(self, state: PeerState, peer_id: PeerId = SERVER.peer_id) -> None:
        with anyio.fail_after(PATIENCE):
            while self.rpc.links.state(peer_id) is not state:
                await self._changed.wait()

    def count_in_flight(self) -> int:
        """Calls of all sessions, both ways, as a leak would show."""
        return sum(
            len(session.calls) + len(session.serving) for session in self.rpc._sessions.values()
        )

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with peer(CLIENT, "client", link_config=CONFIG) as rpc:
        yield Client(rpc)


async def hang(stub: Bench, count: int) -> list[asyncio.Task[None]]:
    """So many calls that are in flight at the other end."""
    calls = [asyncio.create_task(stub.hang()) for _ in range(count)]
    await stub.add(1)  # sent after them
    return calls


async def outcomes(calls: list[asyncio.Task[None]]) -> tuple[float, list[BaseException | None]]:
    """When the last call ended, and how each did."""
    async with asyncio.timeout(PATIENCE):
        found = await asyncio.gather(*calls, return_exceptions=True)
    return time.monotonic(), found


async def retry_until_it_works(stub: Bench) -> None:
    """A successor of the link comes up on demand."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                assert await stub.add(2, b=3) == 5
            except LatticaError:
                await asyncio.sleep(0.05)
            else:
                return


def all_lost(found: list[BaseException | None]) -> bool:
    return all(isinstance(one, CallLostError) and one.may_have_run for one in found)


async def test_callers_know_of_a_killed_process_within_half_a_second(client: Client) -> None:
    with served() as server:
        calls = await hang(client.stub(server), 50)
        killed = server.kill()
        known, found = await outcomes(calls)
        assert known - killed < 0.5
        assert all_lost(found)
        assert client.rpc.links.current() == ()
        assert client.count_in_flight() == 0


async def test_an_idle_link_to_a_killed_process_is_down_within_two_seconds(client: Client) -> None:
    with served() as server:
        await client.stub(server).add(1)
        killed = server.kill()
        await client.until(PeerState.DOWN)
        assert time.monotonic() - killed < 2.0


async def test_a_frozen_process_fails_its_calls_and_no_others_and_comes_back(
    client: Client,
) -> None:
    with served() as server, served(who="other") as other:
        stub, others = client.stub(server), client.stub(other, OTHER.peer_id)
        await others.add(1)
        calls = await hang(stub, 50)
        frozen = server.freeze()
        slowest = 0.0
        waiting = asyncio.create_task(outcomes(calls))
        while not waiting.done():
            began = time.monotonic()
            assert await others.add(1) == 2
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.02)
        known, found = waiting.result()
        assert known - frozen < 5.0
        assert all_lost(found)
        assert slowest < 1.0  # links to others go on meanwhile
        assert client.rpc.links.state(OTHER.peer_id) is PeerState.UP
        states = [each.state for each in client.events if each.peer == SERVER.peer_id]
        assert states[-2:] == [PeerState.SUSPECT, PeerState.DOWN]
        server.thaw()
        await retry_until_it_works(stub)
        assert client.rpc.links.state(SERVER.peer_id) is PeerState.UP
        assert client.count_in_flight() == 0


async def test_a_short_freeze_costs_no_call(client: Client) -> None:
    with served() as server:
        stub = client.stub(server)
        await stub.add(1)
        link = client.rpc.links.find(SERVER.peer_id)
        server.freeze()
        calls = [asyncio.create_task(stub.add(number)) for number in range(20)]
        await asyncio.sleep(CONFIG.dead_after / 3)  # the length of the freeze
        server.thaw()
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.gather(*calls) == [number + 1 for number in range(20)]
        assert client.rpc.links.find(SERVER.peer_id) is link


async def test_a_process_that_restarts_on_its_port_gets_a_new_link(client: Client) -> None:
    with served() as server:
        calls = await hang(client.stub(server), 10)
        server.kill()
        with served(server.address) as again:
            assert again.address == server.address
            _, found = await outcomes(calls)  # the old link is half open, and is given up
            assert all_lost(found)
            await retry_until_it_works(client.stub(again))
            assert client.count_in_flight() == 0


async def test_a_client_that_comes_back_after_a_crash_is_let_in_again(client: Client) -> None:
    """The end that did not crash takes the new link at once, not when the old one is dead."""
    async with peer(SERVER, "server", link_config=LinkConfig(dead_after=60.0)) as server:
        bench = Bench()
        server.register("bench", bench)
        links = server.links
        where = links.addresses  # type: ignore[attr-defined]
        client.rpc.links.learn(SERVER.peer_id, where)
        task = asyncio.create_task(client.rpc.client(SERVER.peer_id, Bench, "bench").hang())
        async with asyncio.timeout(PATIENCE):
            await bench.started.wait()
        client.rpc.links.path.close()  # type: ignore[attr-defined]  # as if killed
        async with peer(CLIENT, "client", link_config=CONFIG) as back:
            back.links.learn(SERVER.peer_id, where)
            async with asyncio.timeout(PATIENCE):
                assert await back.client(SERVER.peer_id, Bench, "bench").add(1) == 2
                await bench.cancelled.wait()  # what ran for the old link is ended
        with pytest.raises(CallLostError):
            await task


@pytest.mark.parametrize("jump", [-7 * 86_400.0, 300.0])
async def test_a_wall_clock_that_jumps_ends_no_link(client: Client, jump: float) -> None:
    async with peer(SERVER, "server", link_config=CONFIG) as server:
        server.register("bench", Bench())
        clock = ManualClock(time.time())
        for rpc in (server, client.rpc):
            rpc.links.clock = clock  # type: ignore[attr-defined]
        client.rpc.links.learn(SERVER.peer_id, server.links.addresses)  # type: ignore[attr-defined]
        stub = client.rpc.client(SERVER.peer_id, Bench, "bench")
        await stub.add(1)
        link = client.rpc.links.find(SERVER.peer_id)
        clock.advance(jump)
        await asyncio.sleep(CONFIG.dead_after + 2 * CONFIG.heartbeat)  # a whole life of silence
        assert await stub.add(2) == 3
        assert client.rpc.links.find(SERVER.peer_id) is link


async def test_a_stall_of_this_process_ends_no_link_of_its_own(client: Client) -> None:
    """As after a suspend, or a handler that blocks: the others are not to blame."""
    with served() as server:
        stub = client.stub(server)
        await stub.add(1)
        lost = len([each for each in client.events if each.state is PeerState.DOWN])
        time.sleep(CONFIG.dead_after * 0.6)  # noqa: ASYNC251  (less: the other end would be right)
        assert await stub.add(1) == 2
        assert len([each for each in client.events if each.state is PeerState.DOWN]) == lost
