"""A machine that sleeps, as seen by itself and by others: a process that is stopped and goes on.

The router forgets its mappings meanwhile. Times are real and are printed; those from the wake on
are the promise.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest

from lattica.config import Config
from lattica.errors import CallLostError, LatticaError
from lattica.identity.keys import PeerId
from lattica.link.quic_link import QuicLink
from tests.netlab.kinds import PORT_RESTRICTED, Kind
from tests.netlab.lab import Lab
from tests.netlab.nat import Dependence, Translation
from tests.netlab.processes import LabProcess
from tests.netlab.reach_peers import RealPeer, real_host, real_peer, real_relays
from tests.netlab.sleeper import Tells, Told
from tests.reach.load import Ledger
from tests.reach.peers import ready, until

pytestmark = [pytest.mark.anyio, pytest.mark.netlab]
FORGETFUL = Kind(home=Translation(filtering=Dependence.ADDRESS_AND_PORT, timeout=5.0))
NAP = 8.0  # seconds: longer than the router remembers, not longer than others wait
LONG = Config().link.far_dead_after + 8.0
EVERY = 0.05  # seconds between calls
SOON = 2.5  # seconds from the wake to the next answer, where the link is still there,
SOON_ANEW = 8.0  # and where it is not
PATIENCE = 60.0


class World:
    """A peer that stays awake, and one that does not."""

    def __init__(self, awake: RealPeer, process: LabProcess, sleeper: PeerId) -> None:
        self.awake = awake
        self.process = process
        self.sleeper = sleeper
        self.stub = awake.rpc.client(sleeper, Ledger, "ledger", timeout=PATIENCE)
        self.answers: list[float] = []
        self.errors: dict[int, BaseException] = {}
        self.sent = 0

    @property
    def link(self) -> QuicLink | None:
        found = self.awake.endpoint.find(self.sleeper)
        assert found is None or isinstance(found, QuicLink)
        return found

    async def sleep(self, seconds: float) -> float:
        """Stop the process for so long; when it goes on."""
        await self.process.send_signal(signal.SIGSTOP)
        await anyio.sleep(seconds)
        await self.process.send_signal(signal.SIGCONT)
        return time.monotonic()

    @asynccontextmanager
    async def calls(self) -> AsyncIterator[None]:
        """One after the other is begun, whatever becomes of those before."""

        async def call(number: int) -> None:
            try:
                assert await self.stub.note(number) == number
                self.answers.append(time.monotonic())
            except LatticaError as error:
                self.errors[number] = error

        async with anyio.create_task_group() as tasks:

            async def begin() -> None:
                while True:
                    tasks.start_soon(call, self.sent)
                    self.sent += 1
                    await anyio.sleep(EVERY)

            async with anyio.create_task_group() as beginning:
                beginning.start_soon(begin)
                yield
                beginning.cancel_scope.cancel()

    def first_answer(self, since: float) -> float:
        """Seconds until a call was answered."""
        return min(each for each in self.answers if each > since) - since

    async def check_outcomes(self) -> None:
        """Each call has one: an answer, and then it ran once, or an error that tells."""
        assert len(self.answers) + len(self.errors) == self.sent
        runs = await self.stub.told()
        assert max(runs.values()) == 1
        for number in range(self.sent):
            error = self.errors.get(number)
            may_have_run = isinstance(error, CallLostError) and error.may_have_run
            assert number in runs if error is None else number not in runs or may_have_run


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    async with (
        Lab(seed=4) as lab,
        real_relays(lab) as relays,
        real_peer(await real_host(lab, PORT_RESTRICTED), "awake", relays=relays) as awake,
    ):
        host = await real_host(lab, FORGETFUL)
        told = Told(host.address, tuple((str(each.id), each.reach.addresses) for each in relays))
        process = await host.run(
            [sys.executable, "-m", "tests.netlab.sleeper", msgspec.json.encode(told).decode()]
        )
        line = await asyncio.wait_for(process.stdout.readline(), PATIENCE)
        tells = msgspec.json.decode(line, type=Tells)
        await ready(awake)
        sleeper = PeerId.parse(tells.peer)
        await awake.endpoint.connect(sleeper, tells.addresses)
        made = World(awake, process, sleeper)
        await until(lambda: made.link is not None and "relay:" not in made.link.address, 15.0)
        yield made
        process.stdin.close()
        await process.wait()


async def test_a_nap_costs_neither_the_link_nor_a_call() -> None:
    async with world() as w:
        link = w.link
        async with w.calls():
            await anyio.sleep(1.0)
            woke = await w.sleep(NAP)
            await until(lambda: w.answers[-1] > woke, 15.0)
            await anyio.sleep(2.0)
        print(f"answered {w.first_answer(woke):.2f} s after a nap of {NAP:g} s, {w.sent} calls")
        assert not w.errors
        assert w.link is link
        await w.check_outcomes()
        assert w.first_answer(woke) < SOON


@pytest.mark.slow
async def test_after_a_long_sleep_there_is_another_link_within_seconds() -> None:
    async with world() as w:
        link = w.link
        async with w.calls():
            await anyio.sleep(1.0)
            woke = await w.sleep(LONG)
            await until(lambda: w.answers[-1] > woke, 30.0)
            await anyio.sleep(2.0)
        lost = sum(isinstance(each, CallLostError) for each in w.errors.values())
        print(
            f"answered {w.first_answer(woke):.2f} s after a sleep of {LONG:g} s; of {w.sent} "
            f"calls {lost} were lost, {len(w.errors) - lost} not begun"
        )
        assert w.link is not link
        await w.check_outcomes()
        assert w.first_answer(woke) < SOON_ANEW
