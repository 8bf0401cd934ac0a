"""Rings over in-memory links: the same text as unsharded, whatever dies on the way."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from lattica.errors import BusyError
from serving.client import Client, Generated, NewToken, Replaced, Request, Started
from serving.config import ServingConfig
from serving.errors import ContextTooLongError, NoCoverError, UnknownModelError
from serving.sampling import Sampling
from serving.span import Span
from serving.volunteer import Layers, Volunteer
from tests.serving.mesh import FakePeer, Mesh
from tests.serving.models import build, reference

pytestmark = pytest.mark.anyio

PROMPT = tuple(range(5, 25))
CONFIG = ServingConfig(prefill_chunk=8, hop_timeout=2.0, probe_timeout=1.0, token_timeout=5.0)
MODEL = "tiny-llama"


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    """An empty mesh."""
    async with Mesh(tmp_path).running() as mesh:
        yield mesh


class Ring:
    """Volunteers and a client."""

    def __init__(self, mesh: Mesh, source: Path | str, tmp_path: Path) -> None:
        self.mesh = mesh
        self.source = source
        self.tmp_path = tmp_path
        self.config = CONFIG
        self.peers: dict[str, FakePeer] = {}
        self.volunteers: dict[str, Volunteer] = {}
        self.client: Client

    async def volunteer(
        self, name: str, layers: Layers, source: Path | str | None = None, **options: object
    ) -> Volunteer:
        """One more volunteer."""
        peer = self.peers[name] = await self.mesh.peer(name)
        volunteer = Volunteer(
            peer,
            source or self.source,
            layers=layers,
            config=self.config,
            **options,  # type: ignore[arg-type]
        )
        self.volunteers[name] = await self.mesh.enter(volunteer)
        return volunteer

    async def open_client(self) -> None:
        """The peer that asks."""
        self.client = await Client.open(await self.mesh.peer("client"), self.config)

    async def events(
        self, request: Request, on: Callable[[Generated], None] = lambda _: None
    ) -> list[Generated]:
        """Everything that one generation tells."""
        found: list[Generated] = []
        with anyio.fail_after(20):
            async with self.client.generate(request) as events:
                async for event in events:
                    found.append(event)
                    on(event)
        return found

    async def idle(self) -> None:
        """Wait until no volunteer holds a session."""
        with anyio.fail_after(5):
            for volunteer in self.volunteers.values():
                await volunteer.idle()


@pytest.fixture
async def ring(mesh: Mesh, llama: Path, tmp_path: Path) -> Ring:
    """Three volunteers, one span each, and a client."""
    ring = Ring(mesh, llama, tmp_path)
    for name, span in (("ann", Span(0, 2)), ("bob", Span(2, 4)), ("cat", Span(4, 6))):
        await ring.volunteer(name, span)
    await ring.open_client()
    return ring


def request(count: int = 12, **options: object) -> Request:
    """A greedy request unless told otherwise."""
    return Request(model=MODEL, prompt=PROMPT, max_tokens=count, **options)  # type: ignore[arg-type]


def tokens(events: list[Generated]) -> list[int]:
    """The answer's tokens; their indices must count on."""
    found = [event for event in events if isinstance(event, NewToken)]
    assert [event.index for event in found] == list(range(len(found)))
    return [event.token for event in found]


async def test_the_ring_answers_like_unsharded_transformers(ring: Ring, llama: Path) -> None:
    events = await ring.events(request())
    assert tokens(events) == reference(llama, list(PROMPT), 12)
    started = events[0]
    assert isinstance(started, Started)
    assert started.names == ("ann", "bob", "cat")
    assert [event.finish for event in events if isinstance(event, NewToken)] == [""] * 11 + [
        "length"
    ]
    await ring.idle()


async def test_one_volunteer_may_hold_the_whole_model(
    mesh: Mesh, llama: Path, tmp_path: Path
) -> None:
    ring = Ring(mesh, llama, tmp_path)
    await ring.volunteer("solo", "auto")
    await ring.open_client()
    assert tokens(await ring.events(request())) == reference(llama, list(PROMPT), 12)


async def test_sessions_side_by_side_do_not_mix(ring: Ring, llama: Path) -> None:
    answers: dict[int, list[int]] = {}

    async def ask(shift: int) -> None:
        prompt = tuple(range(5 + shift, 25 + shift))
        events = await ring.events(Request(model=MODEL, prompt=prompt, max_tokens=8))
        answers[shift] = tokens(events)

    async with anyio.create_task_group() as tasks:
        for shift in range(4):
            tasks.start_soon(ask, shift)
    for shift, answer in answers.items():
        assert answer == reference(llama, list(range(5 + shift, 25 + shift)), 8)


async def test_an_end_token_ends_the_answer(ring: Ring, llama: Path) -> None:
    expected = reference(llama, list(PROMPT), 12)
    last = next(index for index in range(1, 12) if expected[index] not in expected[:index])
    events = await ring.events(request(eos=(expected[last],)))
    assert tokens(events) == expected[: last + 1]
    assert events[-1].finish == "stop"  # type: ignore[union-attr]


@pytest.mark.parametrize("victim", ["ann", "bob", "cat"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, top_p=0.95, seed=5)])
async def test_any_stage_may_die_in_mid_sentence(
    ring: Ring, llama: Path, victim: str, sampling: Sampling
) -> None:
    expected = tokens(await ring.events(request(sampling=sampling)))
    await ring.volunteer("dan", "standby")

    def kill(event: Generated) -> None:
        if isinstance(event, NewToken) and event.index == 4:
            ring.peers[victim].die()

    events = await ring.events(request(sampling=sampling), kill)
    assert tokens(events) == expected
    replaced = [event for event in events if isinstance(event, Replaced)]
    assert len(replaced) == 1
    assert replaced[0].lost == ring.peers[victim].id
    assert replaced[0].lost_name == victim
    assert "dan" in replaced[0].names
    assert replaced[0].after >= 5
    assert 0 < replaced[0].gap_ms < 5000
    assert ring.volunteers["dan"].info.span == ring.volunteers[victim].info.span


async def test_a_stage_may_die_during_prefill(ring: Ring, llama: Path) -> None:
    await ring.volunteer("dan", "standby")

    def kill(event: Generated) -> None:
        if isinstance(event, Started):
            ring.peers["bob"].die()

    events = await ring.events(request(), kill)
    assert tokens(events) == reference(llama, list(PROMPT), 12)
    assert [e.after for e in events if isinstance(e, Replaced)] == [0]


async def test_two_stages_may_die_one_after_the_other(ring: Ring, llama: Path) -> None:
    await ring.volunteer("dan", "standby")
    await ring.volunteer("eve", "standby")

    def kill(event: Generated) -> None:
        if isinstance(event, NewToken) and event.index in (3, 7):
            ring.peers["bob" if event.index == 3 else "ann"].die()

    events = await ring.events(request(), kill)
    assert tokens(events) == reference(llama, list(PROMPT), 12)
    assert [e.lost_name for e in events if isinstance(e, Replaced)] == ["bob", "ann"]


async def test_stages_that_lose_sight_of_each_other_are_replaced(ring: Ring, llama: Path) -> None:
    await ring.volunteer("dan", "standby")

    def cut(event: Generated) -> None:
        if isinstance(event, NewToken) and event.index == 4:
            ring.mesh.network.partition(ring.peers["ann"].id, ring.peers["bob"].id)

    events = await ring.events(request(), cut)
    assert tokens(events) == reference(llama, list(PROMPT), 12)
    assert [e.lost_name for e in events if isinstance(e, Replaced)] == ["bob"]


async def test_a_stage_that_leaves_in_order_is_replaced_too(ring: Ring, llama: Path) -> None:
    await ring.volunteer("dan", "standby")
    found: list[Generated] = []
    async with ring.client.generate(request()) as events:
        async for event in events:
            found.append(event)
            if isinstance(event, NewToken) and event.index == 4:
                ring.volunteers["bob"]._leave()
    assert tokens(found) == reference(llama, list(PROMPT), 12)
    assert [event.lost_name for event in found if isinstance(event, Replaced)] == ["bob"]


async def test_a_replica_goes_on_without_a_standby(ring: Ring, llama: Path) -> None:
    await ring.volunteer("whole", Span(0, 6))
    victim = "whole"

    def kill(event: Generated) -> None:
        if isinstance(event, NewToken) and event.index == 4:
            ring.peers[victim].die()

    events = await ring.events(request(), kill)
    assert tokens(events) == reference(llama, list(PROMPT), 12)
    replaced = next(event for event in events if isinstance(event, Replaced))
    assert replaced.names == ("ann", "bob", "cat")


async def test_without_a_replacement_the_missing_layers_are_named(ring: Ring) -> None:
    def kill(event: Generated) -> None:
        if isinstance(event, NewToken) and event.index == 4:
            ring.peers["bob"].die()

    with pytest.raises(NoCoverError, match=r"nobody serves layers 2:4 of tiny-llama"):
        await ring.events(request(), kill)
    with pytest.raises(NoCoverError, match="layers 2:4"):
        await ring.events(request())


async def test_gone_volunteers_are_not_listed(ring: Ring) -> None:
    assert [entry.info.name for entry in (await ring.client.models())[MODEL]] != []
    ring.peers["bob"].die()
    names = {entry.info.name for entry in (await ring.client.models())[MODEL]}
    assert names == {"ann", "cat"}


async def test_an_unknown_model_says_what_there_is(ring: Ring) -> None:
    with pytest.raises(UnknownModelError, match="serves tiny-llama"):
        await ring.events(Request(model="other", prompt=(1,), max_tokens=1))


async def test_too_long_for_the_context(ring: Ring) -> None:
    with pytest.raises(ContextTooLongError, match="has room for 256"):
        await ring.events(request(count=250))


async def test_leaving_early_frees_every_cache(ring: Ring) -> None:
    async with ring.client.generate(request(100)) as events:
        async for event in events:
            if isinstance(event, NewToken):
                assert ring.volunteers["bob"].info.sessions == 1
                break
    await ring.idle()
    assert ring.volunteers["bob"].info.kv_free == CONFIG.kv_tokens


async def test_a_full_cache_says_busy_and_has_room_again(
    mesh: Mesh, llama: Path, tmp_path: Path
) -> None:
    ring = Ring(mesh, llama, tmp_path)
    ring.config = ServingConfig(kv_tokens=64)
    await ring.volunteer("solo", "auto")
    await ring.open_client()
    async with ring.client.generate(request(30)) as events:
        await anext(aiter(events))
        with pytest.raises(BusyError, match="no room for 40 more tokens") as caught:
            await ring.events(request(20))
        assert caught.value.retry_after > 0
    await ring.idle()
    assert tokens(await ring.events(request(20))) == reference(llama, list(PROMPT), 20)


async def test_a_family_with_experts_and_windows(mesh: Mesh, tmp_path: Path) -> None:
    for family in ("mixtral", "gemma3"):
        folder = build(family, tmp_path / family)
        ring = Ring(mesh, folder, tmp_path)
        await ring.volunteer(f"{family}-1", Span(0, 3))
        await ring.volunteer(f"{family}-2", Span(3, 6))
        await ring.open_client()
        events = await ring.events(Request(model=family, prompt=PROMPT, max_tokens=10))
        assert tokens(events) == reference(folder, list(PROMPT), 10)


async def test_a_stage_that_hangs_is_found_and_replaced(ring: Ring, llama: Path) -> None:
    ring.config = ServingConfig(prefill_chunk=8, token_timeout=0.2)
    await ring.open_client()
    await ring.volunteer("dan", "standby")
    expected = reference(llama, list(PROMPT), 12)
    stage = ring.volunteers["bob"]._stage
    assert stage is not None

    def hang(event: Generated) -> None:
        if isinstance(event, NewToken) and event.index == 4:
            stage._turn = anyio.CapacityLimiter(1)
            stage._turn.acquire_nowait()  # as a pass that never ends

    events = await ring.events(request(), hang)
    assert tokens(events) == expected
    replaced = [event for event in events if isinstance(event, Replaced)]
    assert [event.lost_name for event in replaced] == ["bob"]
    assert "no progress" in replaced[0].reason


async def test_slow_stages_are_waited_for_while_they_get_on(ring: Ring, llama: Path) -> None:
    ring.config = ServingConfig(prefill_chunk=2, token_timeout=0.05)
    for name in ("ann", "bob", "cat"):
        ring.volunteers[name].config = ring.config
        stage = ring.volunteers[name]._stage
        assert stage is not None
        stage.model.run = slowly(stage.model.run)  # type: ignore[method-assign]
    await ring.open_client()
    events = await ring.events(request(2))
    assert tokens(events) == reference(llama, list(PROMPT), 2)
    assert not any(isinstance(event, Replaced) for event in events)


def slowly(run: Callable[..., Any]) -> Callable[..., Any]:
    """A pass that takes 20 ms longer, in its thread."""

    def run_slowly(*args: Any) -> Any:
        time.sleep(0.02)
        return run(*args)

    return run_slowly


async def test_a_stage_that_nothing_is_heard_of_is_replaced_before_its_link_is_lost(
    ring: Ring, llama: Path
) -> None:
    await ring.volunteer("dan", "standby")
    client, bob = ring.mesh.peers["client"], ring.peers["bob"]
    stage = ring.volunteers["bob"]._stage
    assert stage is not None
    began = 0.0

    def silence(event: Generated) -> None:
        nonlocal began
        if isinstance(event, NewToken) and event.index == 4:
            stage._turn = anyio.CapacityLimiter(1)
            stage._turn.acquire_nowait()
            client.suspects(bob)
            began = time.monotonic()

    events = await ring.events(request(), silence)
    assert tokens(events) == reference(llama, list(PROMPT), 12)
    replaced = [event for event in events if isinstance(event, Replaced)]
    assert [event.lost_name for event in replaced] == ["bob"]
    assert "nothing is heard" in replaced[0].reason
    assert time.monotonic() - began < CONFIG.suspect_patience + 2.0 < CONFIG.token_timeout
    assert client.links.find(bob.id) is not None
