"""Whoever can go elsewhere is told of a silent peer long before its link is given up."""

from __future__ import annotations

import asyncio

import pytest

from lattica.errors import CallLostError
from lattica.link.supervision import PeerState
from lattica.path.memory import Conditions
from lattica.rpc.doubts import Doubts
from tests.faults.baseline import settle
from tests.faults.stack import Peer, Stack
from tests.faults.workload import SERVICE, Ledger

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("engine")]
FAR = Conditions(latency=0.02)
PATIENCE = 1.0  # seconds


async def linked(here: Peer, there: Peer) -> tuple[Ledger, Ledger]:
    """A stub over a link that is up, and the service it stands for."""
    ledger = Ledger()
    there.rpc.register(SERVICE, ledger)
    stub = here.client(there, Ledger, SERVICE, timeout=60.0)
    assert await stub.add(0, 1) == 2
    return stub, ledger


async def test_a_call_to_a_silent_peer_is_given_up_and_its_link_is_not() -> None:
    async with Stack("a", "b", conditions=FAR) as stack:
        here, there = stack["a"], stack["b"]
        stub, ledger = await linked(here, there)
        loop = asyncio.get_running_loop()
        with Doubts(here.rpc.links, PATIENCE) as doubts:
            other = asyncio.ensure_future(stub.wait(2, 5.0))
            await asyncio.sleep(0.5)
            loop.call_later(0.5, stack.network.blackout, "a:1", "b:1", 6.0)
            with pytest.raises(CallLostError, match="may have run") as caught:  # noqa: PT012
                with doubts.waiting(there.rpc.local):
                    began = loop.time()
                    await stub.wait(1, 60.0)
            assert caught.value.may_have_run
            assert 0.9 + PATIENCE < loop.time() - began < 2.0 + PATIENCE
            assert here.rpc.links.state(there.rpc.local) is PeerState.SUSPECT
            assert await other == 2, "who does not doubt goes on waiting"
        await settle(here, there)  # what was given up was cancelled there as well
        assert not ledger.running


async def test_a_peer_that_is_heard_again_in_time_is_not_given_up() -> None:
    async with Stack("a", "b", conditions=FAR) as stack:
        here, there = stack["a"], stack["b"]
        stub, _ = await linked(here, there)
        seen: list[PeerState] = []
        here.endpoint.watch(lambda event: seen.append(event.state))
        with Doubts(here.rpc.links, PATIENCE) as doubts:
            for _ in range(3):
                stack.network.blackout("a:1", "b:1", 1.5)
                with doubts.waiting(there.rpc.local):
                    assert await stub.wait(1, 0.1) == 1
                await asyncio.sleep(0.2)
        assert seen.count(PeerState.SUSPECT) == seen.count(PeerState.UP) > 0


async def test_a_call_to_a_peer_that_is_suspect_already_has_the_same_patience() -> None:
    async with Stack("a", "b", conditions=FAR) as stack:
        here, there = stack["a"], stack["b"]
        stub, _ = await linked(here, there)
        loop = asyncio.get_running_loop()
        first = asyncio.ensure_future(stub.wait(1, 60.0))
        stack.network.silence("b:1")
        await asyncio.sleep(5.0)
        assert here.rpc.links.state(there.rpc.local) is PeerState.SUSPECT
        with Doubts(here.rpc.links, PATIENCE) as doubts:
            began = loop.time()
            with pytest.raises(CallLostError):
                with doubts.waiting(there.rpc.local):
                    await stub.add(2, 1)
            assert loop.time() - began == pytest.approx(PATIENCE, abs=0.01)
            assert not doubts._waits
            assert not doubts._timers
        with pytest.raises(CallLostError):
            await first


async def test_an_error_of_the_call_and_a_cancellation_pass_through() -> None:
    async with Stack("a", "b", conditions=FAR) as stack:
        here, there = stack["a"], stack["b"]
        stub, _ = await linked(here, there)
        with Doubts(here.rpc.links, PATIENCE) as doubts:
            with pytest.raises(Exception, match="call 1"):
                with doubts.waiting(there.rpc.local):
                    await stub.fail(1)

            async def wait() -> None:
                with doubts.waiting(there.rpc.local):
                    await stub.wait(2, 60.0)

            task = asyncio.ensure_future(wait())
            await asyncio.sleep(0.5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not doubts._waits
