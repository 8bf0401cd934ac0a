"""The roster: claims are checked with the peers themselves, and nobody is waited for twice."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from lattica.errors import UnknownPeerError, UnreachableError
from lattica.identity.keys import PeerId
from lattica.rpc import method
from serving.config import ServingConfig
from serving.errors import UnknownModelError
from serving.messages import SERVICE, StageInfo
from serving.reach import ask_info
from serving.roster import Roster
from serving.span import Span
from tests.serving.mesh import FakePeer, Mesh

pytestmark = pytest.mark.anyio

CONFIG = ServingConfig(probe_timeout=0.3, ghost_for=60.0)
INFO = StageInfo(model="m", manifest="x", layers=4, state="serving", span=Span(0, 4))


class Says:
    """A volunteer that answers, or not."""

    def __init__(self, info: StageInfo = INFO) -> None:
        self.info_now = info
        self.asked = 0

    @method()
    async def info(self) -> StageInfo:
        """As `StageService.info`."""
        self.asked += 1
        return self.info_now


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    """An empty mesh."""
    async with Mesh(tmp_path).running() as mesh:
        yield mesh


async def claimant(mesh: Mesh, name: str, info: StageInfo = INFO) -> tuple[FakePeer, Says]:
    """A peer with an entry."""
    peer, service = await mesh.peer(name), Says(info)
    peer.serve(SERVICE, service)
    (await Roster.open(peer)).publish(info)
    return peer, service


async def test_those_that_answer_are_live(mesh: Mesh) -> None:
    one, _ = await claimant(mesh, "one")
    two, _ = await claimant(mesh, "two")
    two.die()
    roster = await Roster.open(await mesh.peer("asker"), CONFIG)
    assert set(roster.claims()) == {one.id, two.id}
    assert [entry.peer for entry in await roster.live("m")] == [one.id]
    assert await roster.live("other") == []
    assert await roster.live("m", avoid=[one.id]) == []


async def test_what_is_not_linked_and_silent_is_not_asked_again_for_a_while(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    await claimant(mesh, "gone")
    asker = await mesh.peer("asker")
    roster = await Roster.open(asker, CONFIG)

    given_up = anyio.Event()

    async def connect(peer: PeerId, addresses: object = ()) -> None:
        await given_up.wait()  # as a dial whose packets nobody answers
        raise UnreachableError("no answer")

    monkeypatch.setattr(asker.links, "connect", connect)
    with anyio.fail_after(3):
        assert await roster.live("m") == []
        started = time.monotonic()
        assert await roster.live("m") == []
        assert time.monotonic() - started < CONFIG.probe_timeout / 2
    monkeypatch.undo()
    given_up.set()
    await anyio.wait_all_tasks_blocked()
    assert len(await roster.live("m", anew=True)) == 1
    assert len(await roster.live("m")) == 1  # it is no ghost any more


async def test_the_slow_do_not_hold_up_what_is_enough(mesh: Mesh) -> None:
    fast, _ = await claimant(mesh, "fast")
    slow = await mesh.peer("slow")
    slow.serve(SERVICE, Hanging(anyio.Event()))
    (await Roster.open(slow)).publish(INFO)
    roster = await Roster.open(await mesh.peer("asker"), ServingConfig(probe_timeout=30.0))
    with anyio.fail_after(5):
        live = await roster.live("m", enough=lambda found: len(found) == 1)
    assert [entry.peer for entry in live] == [fast.id]


class Hanging:
    """A volunteer that never answers."""

    def __init__(self, never: anyio.Event) -> None:
        self._never = never

    @method()
    async def info(self) -> StageInfo:
        """As `StageService.info`."""
        await self._never.wait()
        return INFO


async def test_a_model_is_waited_for_until_the_document_arrives(mesh: Mesh) -> None:
    roster = await Roster.open(await mesh.peer("asker"), CONFIG)
    found: list[StageInfo] = []

    async def find() -> None:
        found.append(await roster.find_model("m", timeout=5.0))

    late = await Roster.open(await mesh.peer("late"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(find)
        await anyio.wait_all_tasks_blocked()
        late.publish(INFO)
    assert found == [INFO]
    with pytest.raises(UnknownModelError, match="'other': the mesh serves m"):
        await roster.find_model("other", timeout=0.01)


async def test_an_entry_is_written_only_when_it_changes(mesh: Mesh) -> None:
    peer, _ = await claimant(mesh, "one")
    roster = await Roster.open(peer)
    writes = 0
    document = await peer.document("roster")
    original = document.notify

    def count() -> None:
        nonlocal writes
        writes += 1
        original()

    document.notify = count  # type: ignore[method-assign]
    roster.publish(INFO)
    assert writes == 0
    roster.withdraw()
    roster.withdraw()
    assert writes == 1


async def test_an_unknown_address_is_looked_up_in_the_dht(mesh: Mesh) -> None:
    other, _ = await claimant(mesh, "other")
    asker = await mesh.peer("asker")
    connect, taught = asker.links.connect, []

    async def needs_teaching(peer: PeerId, addresses: object = ()) -> object:
        if peer not in taught:
            raise UnknownPeerError("no address is known")
        return await connect(peer)

    class Dht:
        """Knows where everybody is."""

        async def find_peer(self, peer: PeerId) -> PeerId | None:
            """Teach the links."""
            if peer not in mesh.network.members:
                return None
            taught.append(peer)
            return peer

    asker.links.connect = needs_teaching  # type: ignore[method-assign,assignment]
    with pytest.raises(UnknownPeerError):
        await ask_info(asker, other.id, 1.0)
    asker.dht = Dht()  # type: ignore[assignment]
    assert (await ask_info(asker, other.id, 1.0)).model == "m"
    with pytest.raises(UnknownPeerError):
        await ask_info(asker, PeerId(bytes(32)), 1.0)
