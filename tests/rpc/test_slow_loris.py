"""Peers by the hundred that begin everything and end nothing: little is held, and given back."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import tracemalloc

import msgspec
import pytest

from lattica.config import KIB, RpcConfig
from lattica.identity import grants
from lattica.identity.keys import Identity
from lattica.link import supervision
from lattica.link.memory import MemoryLinks
from lattica.rpc import Buffer
from lattica.rpc import messages as m
from lattica.rpc.framing import frame
from lattica.virtual_loop import VirtualLoop
from tests.faults.baseline import leftovers
from tests.rpc.mesh import Mesh, until
from tests.rpc.puppet import Puppet, call, item
from tests.rpc.services import Bench
from tests.rpc.upload_services import Intake

pytestmark = pytest.mark.anyio
PATIENCE = 5.0  # seconds that `call` gives a handler


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Loris:
    """One peer that sends a little of everything."""

    def __init__(self, mesh: Mesh, *, is_member: bool) -> None:
        self._mesh = mesh
        self._identity = Identity.generate()
        chain = ()
        if is_member:
            chain = (
                grants.issue(
                    mesh.authority,
                    mesh=mesh.authority.peer_id,
                    subject=self._identity.peer_id,
                    scopes=grants.MEMBER,
                    expires=time.time() + 600,
                ),
            )
        self.is_member = is_member
        membership = grants.Membership(mesh.authority.peer_id, chain)
        self.links = MemoryLinks(mesh.network, self._identity, membership)
        self.links.set_acceptor(self._accept)
        self.puppet: Puppet

    def _accept(self, link: object) -> Puppet:
        self.puppet = Puppet(link)  # type: ignore[arg-type]
        return self.puppet

    async def attack(self, chance: random.Random) -> None:
        await self.links.connect(self._mesh.b.local)
        puppet = self.puppet
        puppet.greet()
        header = frame(msgspec.msgpack.encode(m.Body(9, False)))
        starts = [
            lambda: self._begin(header[: chance.randrange(1, len(header))]),
            lambda: self._begin(header + bytes(chance.randrange(1000))),
            lambda: self._begin(_header(m.Items(8, False)) + item(0, 50_000)[:-1]),
            lambda: puppet.say(call(0, "echo", [0], sizes=(chance.randrange(1, 10_000_000),))),
            lambda: self._begin(_header(m.Body(0, False)) + b"x"),
        ]
        if self.is_member:
            starts += [
                lambda: puppet.say(call(1, "hang", ())),
                lambda: self._upload(2, item(0, 1_000_000) + bytes(chance.randrange(1000))),
                lambda: self._upload(3, b""),
            ]
        for start in starts:
            if chance.random() < 0.8:
                start()
        # The last word: a control frame of which the rest never comes.
        puppet.link.write(puppet.control, (200_000).to_bytes(4, "big") + b"\x91")

    def _begin(self, data: bytes) -> None:
        self.puppet.link.write(self.puppet.link.open_stream(unidirectional=True), data)

    def _upload(self, n: int, data: bytes) -> None:
        items = msgspec.msgpack.Ext(1, b"")
        self.puppet.say(call(n, "slow", (items,), service="intake"))
        self._begin(_header(m.Items(n, False)) + data)

    def leave(self) -> None:
        self.puppet.link.close("enough")
        del self._mesh.network.members[self._identity.peer_id]


def _header(header: m.Header) -> bytes:
    return frame(msgspec.msgpack.encode(header))


async def crowd(mesh: Mesh, count: int, seed: int) -> list[Loris]:
    chance = random.Random(seed)
    peers = [Loris(mesh, is_member=n % 2 == 0) for n in range(count)]
    for peer in peers:
        await peer.attack(chance)
    return peers


async def gone(mesh: Mesh, peers: list[Loris], intake: Intake) -> int:
    """All of them leave; what is then held, in bytes."""
    for peer in peers:
        peer.leave()
    peers.clear()
    await until(lambda: len(mesh.b._sessions) <= 1 and not leftovers(mesh.b))
    await until(lambda: not any(each.in_flight for each in mesh.b.stats().served.values()))
    await asyncio.sleep(1.0)  # tasks and timers that are over
    intake.errors.clear()  # their tracebacks hold what the calls held
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def test_what_hundreds_begin_and_never_end_is_little_and_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervision, "MAX_PEERS", 16)  # who they were is remembered of thousands
    async with Mesh(RpcConfig()) as mesh:
        bench, intake = Bench(), Intake()
        mesh.b.register("bench", bench)
        mesh.b.register("intake", intake)
        honest = mesh.a.client(mesh.b.local, Bench, "bench", timeout=1)
        assert await honest.add(1) == 2
        tracemalloc.start()
        try:
            before = await gone(mesh, await crowd(mesh, 30, seed=0), intake)
            peers = await crowd(mesh, 300, seed=1)
            await until(lambda: bench.running > 100)
            gc.collect()
            held = tracemalloc.get_traced_memory()[0] - before
            assert held < 300 * 40 * KIB, "of both ends together"
            assert await honest.echo(Buffer(b"still served")) == Buffer(b"still served")
            assert await gone(mesh, peers, intake) - before < 100 * KIB
        finally:
            tracemalloc.stop()
        assert mesh.b.counters["bad_frame"] == 0
        assert await honest.add(1) == 2


async def test_calls_that_wait_for_the_rest_of_their_input_end_by_their_deadline() -> None:
    async with Mesh(RpcConfig()) as mesh:
        bench, intake = Bench(), Intake()
        mesh.b.register("bench", bench)
        mesh.b.register("intake", intake)
        peers = await crowd(mesh, 20, seed=2)
        await until(lambda: bench.running > 3)
        sessions = tuple(mesh.b._sessions.values())
        assert len(sessions) == 20
        assert sum(len(session.serving) for session in sessions) > 20
        await asyncio.sleep(PATIENCE + 0.5)
        assert not any(len(session.serving) for session in sessions)
        assert not any(session.serving.held for session in sessions)
        served = mesh.b.stats().served
        assert all(method.in_flight == 0 for method in served.values())
        for name in ("bench.echo", "bench.hang", "intake.slow"):
            assert set(served[name].errors) == {"DeadlineError"}
        assert all(peer.puppet.link.is_open for peer in peers)
