"""Volunteers: where they get the model, which layers they take, whom they let in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from lattica.clock import ManualClock
from lattica.errors import BusyError, PermissionDeniedError
from lattica.identity.grants import Membership
from lattica.identity.keys import Identity
from lattica.link.memory import MemoryLinks
from lattica.rpc import Buffer, Rpc
from serving.config import ServingConfig
from serving.errors import (
    ModelDirError,
    PositionError,
    SessionGoneError,
    SpanError,
    UnknownModelError,
    WeightsError,
)
from serving.messages import SERVICE, Failed, Hop, Opened, Opening, StageInfo, Token
from serving.roster import DOCUMENT, MAP, Roster
from serving.sampling import Sampling
from serving.service import StageService
from serving.span import Span
from serving.volunteer import Volunteer
from tests.serving.mesh import FakePeer, Mesh

pytestmark = pytest.mark.anyio

CONFIG = ServingConfig(hop_timeout=2.0, probe_timeout=1.0, session_idle=30.0)
ID = b"s" * 16


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    """An empty mesh."""
    async with Mesh(tmp_path).running() as mesh:
        yield mesh


def weights(folder: Path) -> set[str]:
    """Names of a folder's weight files."""
    return {path.name for path in folder.glob("*.safetensors")}


async def volunteer(
    mesh: Mesh, tmp_path: Path, name: str, source: Path | str, layers: Any, **options: Any
) -> tuple[FakePeer, Volunteer]:
    """A new peer that volunteers."""
    peer = await mesh.peer(name)
    options.setdefault("config", CONFIG)
    entered = await mesh.enter(Volunteer(peer, source, layers=layers, **options))
    return peer, entered


async def test_volunteers_fill_the_gaps_and_then_stand_by(
    mesh: Mesh, llama: Path, tmp_path: Path
) -> None:
    states = []
    for name in ("a", "b", "c", "d"):
        _, one = await volunteer(mesh, tmp_path, name, llama, "auto", capacity=2)
        states.append((one.info.state, str(one.info.span)))
    assert states == [
        ("serving", "0:2"), ("serving", "2:4"), ("serving", "4:6"), ("standby", "None")
    ]  # fmt: skip


async def test_volunteers_that_start_at_once_do_not_take_the_same_layers(
    mesh: Mesh, llama: Path, tmp_path: Path
) -> None:
    taken: list[StageInfo] = []
    everybody = anyio.Event()

    async def run(peer: FakePeer) -> None:
        one = Volunteer(peer, llama, layers="auto", capacity=2, config=CONFIG)
        async with one:
            taken.append(one.info)
            if len(taken) == 4:
                everybody.set()
            await everybody.wait()

    peers = [await mesh.peer(name) for name in ("a", "b", "c", "d")]
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for peer in peers:
                tasks.start_soon(run, peer)
    spans = sorted(str(info.span) for info in taken)
    assert spans == ["0:2", "2:4", "4:6", "None"]
    assert sorted(info.state for info in taken) == ["serving"] * 3 + ["standby"]


async def test_a_gap_of_the_dead_is_filled_again(mesh: Mesh, llama: Path, tmp_path: Path) -> None:
    peer, _ = await volunteer(mesh, tmp_path, "a", llama, Span(0, 3))
    await volunteer(mesh, tmp_path, "b", llama, Span(3, 6))
    peer.die()
    _, third = await volunteer(mesh, tmp_path, "c", llama, "auto")
    assert third.info.span == Span(0, 3)


async def test_a_name_is_enough_where_the_mesh_has_the_model(
    mesh: Mesh, llama: Path, tmp_path: Path
) -> None:
    first, _ = await volunteer(mesh, tmp_path, "a", llama, Span(0, 2))
    _, one = await volunteer(mesh, tmp_path, "b", "tiny-llama", Span(2, 4))
    assert one.info.state == "serving"
    here = one.model_directory
    assert (here / "config.json").read_bytes() == (llama / "config.json").read_bytes()
    assert weights(here) < weights(llama)  # only the span's files
    assert set(one.provided) == {str(first.id)}
    assert one.provided[str(first.id)] > sum((here / n).stat().st_size for n in weights(here))


async def test_the_id_of_its_files_is_enough_and_they_are_not_copied(
    mesh: Mesh, llama: Path, tmp_path: Path
) -> None:
    first, _ = await volunteer(mesh, tmp_path, "a", llama, Span(0, 2))
    manifest = await first.blocks.add(llama)
    peer = await mesh.peer("b")
    options: dict[str, Any] = {"layers": Span(2, 4), "name": "tiny-llama", "config": CONFIG}
    one = await mesh.enter(Volunteer(peer, manifest, **options))
    assert one.info.model == "tiny-llama"
    assert one.info.manifest == manifest
    for path in one.model_directory.glob("*.safetensors"):
        assert path.is_symlink()
        assert path.resolve().is_relative_to(peer.blocks._directory)


async def test_a_standby_has_every_file_before_it_is_needed(
    mesh: Mesh, llama: Path, tmp_path: Path
) -> None:
    await volunteer(mesh, tmp_path, "a", llama, Span(0, 6))
    _, one = await volunteer(mesh, tmp_path, "b", "tiny-llama", "standby")
    assert weights(one.model_directory) == weights(llama)
    mesh.peers["a"].die()
    assert (await one.take_span("tiny-llama", Span(1, 3))).span == Span(1, 3)
    assert (await one.take_span("tiny-llama", Span(1, 2))).span == Span(1, 3)
    with pytest.raises(BusyError, match="serves layers 1:3 already"):
        await one.take_span("tiny-llama", Span(3, 6))
    with pytest.raises(UnknownModelError):
        await one.take_span("other", Span(0, 1))
    with pytest.raises(SpanError):
        await one.take_span("tiny-llama", Span(4, 9))


async def test_errors_of_the_source_leave_nothing_behind(
    mesh: Mesh, llama: Path, tmp_path: Path
) -> None:
    peer = await mesh.peer("a")
    with pytest.raises(ModelDirError, match="no model directory"):
        Volunteer(peer, "./nowhere")
    (tmp_path / "empty").mkdir()
    for source, layers, error in (
        (tmp_path / "empty", "auto", ModelDirError),
        (llama, Span(4, 9), SpanError),
    ):
        with pytest.raises(error):
            await Volunteer(peer, source, layers=layers).__aenter__()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_bytes((llama / "config.json").read_bytes())
    with pytest.raises(WeightsError, match="no weights"):
        await Volunteer(peer, tmp_path / "bare").__aenter__()
    assert (await Roster.open(peer)).claims() == {}


async def test_an_unknown_name_says_what_there_is(
    mesh: Mesh, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.source.FIND_TIMEOUT", 0.05)
    await volunteer(mesh, tmp_path, "a", llama, Span(0, 6))
    peer = await mesh.peer("b")
    with pytest.raises(UnknownModelError, match=r"'other': the mesh serves tiny-llama; give"):
        await Volunteer(peer, "other").__aenter__()


async def test_malformed_entries_are_dropped_and_counted(
    mesh: Mesh, llama: Path, tmp_path: Path
) -> None:
    peer, _ = await volunteer(mesh, tmp_path, "a", llama, Span(0, 6))
    entries = (await peer.document(DOCUMENT)).map(MAP)
    entries.set("not a peer", {"model": "x"})
    entries.set(str(Identity.generate().peer_id), {"model": 7})
    entries.set(str(Identity.generate().peer_id), [1, 2])
    roster = await Roster.open(peer)
    assert list(roster.claims()) == [peer.id]
    assert roster.invalid == 3


async def test_a_claim_of_another_peers_model_is_not_believed(
    mesh: Mesh, llama: Path, tmp_path: Path
) -> None:
    peer, one = await volunteer(mesh, tmp_path, "a", llama, Span(0, 2))
    entries = (await peer.document(DOCUMENT)).map(MAP)
    boast = msgspec.structs.replace(one.info, span=Span(0, 6))
    entries.set(str(peer.id), msgspec.to_builtins(boast))
    live = await (await Roster.open(await mesh.peer("c"))).live()
    assert [str(entry.info.span) for entry in live] == ["0:2"]


async def test_leaving_takes_the_entry_along(mesh: Mesh, llama: Path, tmp_path: Path) -> None:
    peer = await mesh.peer("a")
    roster = await Roster.open(peer)
    async with Volunteer(peer, llama, layers=Span(0, 2), config=CONFIG):
        assert peer.id in roster.claims()
    assert roster.claims() == {}
    async with Volunteer(peer, llama, layers=Span(2, 4), config=CONFIG):
        assert roster.claims()[peer.id].span == Span(2, 4)


def opening(peer: FakePeer, one: Volunteer, **changes: Any) -> Opening:
    """A session of a ring of one."""
    base = Opening(
        ID, "tiny-llama", one.info.manifest, (Hop(peer.id, Span(0, 6)),), 0, 40, Sampling()
    )
    return msgspec.structs.replace(base, **changes)


async def test_a_route_that_makes_no_sense_is_refused(
    mesh: Mesh, llama: Path, tmp_path: Path
) -> None:
    peer, one = await volunteer(mesh, tmp_path, "a", llama, Span(0, 6))
    me, other = peer.id, Identity.generate().peer_id
    stub = (await mesh.peer("c")).client(me, StageService, SERVICE)
    for changes, error in (
        ({"index": 3}, SpanError),
        ({"route": ()}, SpanError),
        ({"route": (Hop(other, Span(0, 6)),)}, SpanError),
        ({"route": (Hop(me, Span(1, 6)),)}, SpanError),
        ({"route": (Hop(me, Span(0, 3)), Hop(other, Span(4, 6)))}, SpanError),
        ({"session": b"short"}, SpanError),
        ({"manifest": "other"}, UnknownModelError),
    ):
        with pytest.raises(error):
            async for _ in stub.session(opening(peer, one, **changes)):
                pass
    assert one.info.sessions == 0


async def test_only_the_sessions_own_ring_may_speak(
    mesh: Mesh, llama: Path, tmp_path: Path
) -> None:
    peer, one = await volunteer(mesh, tmp_path, "a", llama, Span(0, 6))
    mine = (await mesh.peer("c")).client(peer.id, StageService, SERVICE)
    theirs = (await mesh.peer("d")).client(peer.id, StageService, SERVICE)
    events: Any = mine.session(opening(peer, one))
    assert isinstance(await anext(events), Opened)
    with pytest.raises(SpanError, match="own ring"):
        await theirs.prompt(ID, [5])
    with pytest.raises(SpanError, match="own ring"):
        await theirs.advance(ID, 0, 5)
    with pytest.raises(SpanError, match="own ring"):
        await theirs.step(ID, 0, 1, True, Buffer(bytes(128)))
    with pytest.raises(SpanError, match="own ring"):
        await theirs.progress(ID)
    with pytest.raises(SessionGoneError):
        await mine.progress(b"x" * 16)
    with pytest.raises(PositionError):
        await mine.prompt(ID, list(range(41)))
    await mine.prompt(ID, [5, 6])
    with pytest.raises(PositionError):
        await mine.prompt(ID, [5, 6])
    token = await anext(events)
    assert isinstance(token, Token)
    assert token.position == 2
    await events.aclose()
    await one.idle()


async def test_strangers_are_refused(mesh: Mesh, llama: Path, tmp_path: Path) -> None:
    peer, _ = await volunteer(mesh, tmp_path, "a", llama, Span(0, 6))
    identity = Identity.generate()
    links = MemoryLinks(mesh.network, identity, Membership(mesh.authority.peer_id))
    async with Rpc(links, name="stranger") as rpc:
        stub = rpc.client(peer.id, StageService, SERVICE)
        with pytest.raises(PermissionDeniedError):
            await stub.info()
        with pytest.raises(PermissionDeniedError):
            await stub.take_span("tiny-llama", Span(0, 1))


async def test_idle_sessions_are_closed_and_told(mesh: Mesh, llama: Path, tmp_path: Path) -> None:
    clock = ManualClock()
    peer, one = await volunteer(mesh, tmp_path, "a", llama, Span(0, 6), clock=clock)
    stub = (await mesh.peer("c")).client(peer.id, StageService, SERVICE)
    events: Any = stub.session(opening(peer, one))
    assert isinstance(await anext(events), Opened)
    clock.advance(29)
    assert one.expire() == 0
    clock.advance(2)
    assert one.expire() == 1
    with anyio.fail_after(5):
        failed = await anext(events)
        assert isinstance(failed, Failed)
        assert "idle for 30 s" in failed.reason
        await one.idle()
    assert one.info.kv_free == CONFIG.kv_tokens
    await events.aclose()
