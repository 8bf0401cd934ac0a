"""Presence: who is there and what they say of themselves, for as long as they are there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import anyio
import anyio.to_thread
import msgspec
import pytest

from lattica.config import StoreConfig
from lattica.errors import DocumentError
from lattica.identity.grants import Membership
from lattica.identity.signed import Signed
from lattica.store.chains.messages import PRESENCE, Presence
from lattica.store.chains.refusals import RefusedError
from lattica.store.crdt.values import encode_value
from lattica.store.documents.presence import BURST, MAX_PEERS, SKEW, PresenceBook
from lattica.virtual_loop import VirtualLoop
from tests.store.mesh import NAME, NOW, authority, identity, membership
from tests.store.test_documents import id_of, link, mesh, peer

CONFIG = StoreConfig()
WAIT = CONFIG.presence_timeout + CONFIG.presence_every


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Half a minute of silence passes at once."""
    return "asyncio", {"loop_factory": VirtualLoop}


@pytest.fixture(autouse=True)
def _time_stands_while_threads_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The virtual loop knows of its own executor's threads, and of no others."""

    async def run_sync(
        function: Callable[..., object],
        *args: object,
        limiter: anyio.CapacityLimiter | None = None,
    ) -> object:
        async with limiter or contextlib.nullcontext():
            return await asyncio.get_running_loop().run_in_executor(None, function, *args)

    monkeypatch.setattr(anyio.to_thread, "run_sync", run_sync)


# -------------------------------------------------------------------------- without a network


def book(number: int, *scopes: str) -> PresenceBook:
    member = identity(number)
    return PresenceBook(NAME, member, membership(member, *scopes), CONFIG)


def said(number: int, value: object, *, wall: float = NOW, **changes: object) -> Signed:
    """What a peer says that may not keep to the rules."""
    presence = Presence(
        authority.peer_id,
        NAME,
        int(wall * 1e6),
        encode_value(value),
        membership(identity(number)),
    )
    return Signed.seal(identity(number), PRESENCE, msgspec.structs.replace(presence, **changes))


def take(to: PresenceBook, envelope: Signed, *, now: float = 0.0) -> bool:
    return to.receive(envelope, wall=NOW, now=now)


def test_the_latest_of_each_peer_counts_whoever_brings_it_in_whatever_order():
    here = book(1)
    assert take(here, said(2, "new", wall=NOW + 2))
    assert not take(here, said(2, "old", wall=NOW + 1))
    assert take(here, said(3, {"cursor": 5}))
    assert here.others() == {id_of(2): "new", id_of(3): {"cursor": 5}}
    assert take(here, said(2, None, wall=NOW + 3, state=b""))
    assert here.others() == {id_of(3): {"cursor": 5}}


FORGERIES = {
    "forged": [
        Signed(id_of(3), PRESENCE, said(2, "x").payload, said(2, "x").signature),
        msgspec.structs.replace(said(2, "x"), signature=bytes(64)),
        msgspec.structs.replace(said(2, "x"), domain="doc-update"),
    ],
    "foreign": [said(2, "x", document="other"), said(2, "x", mesh=id_of(9))],
    "stale": [
        said(2, "x", wall=NOW - CONFIG.presence_timeout - SKEW - 1),
        said(2, "x", wall=NOW + CONFIG.presence_timeout + SKEW + 1),
    ],
    "unauthorised": [
        said(2, "x", membership=membership(identity(3))),
        said(2, "x", membership=membership(identity(2), "write:other")),
        said(2, "x", membership=membership(identity(2), by=identity(9))),
        said(2, "x", membership=membership(identity(2), expires=NOW - 1)),
        said(2, "x", membership=Membership(id_of(2), membership(identity(2)).chain)),
    ],
    "oversized": [said(2, "x" * CONFIG.max_presence), said(2, "x" * 20_000)],
    "malformed": [said(2, "x", state=b"\xc1"), said(2, "x", state=b"\xcc\x01")],
}


@pytest.mark.parametrize(
    ("reason", "envelope"), [(reason, each) for reason, all_ in FORGERIES.items() for each in all_]
)
def test_nobody_speaks_for_another_or_without_a_grant_or_too_much(reason, envelope):
    here = book(1)
    with pytest.raises(RefusedError) as caught:
        take(here, envelope)
    assert caught.value.reason == reason
    assert here.others() == {}


def test_what_was_forgotten_cannot_be_brought_back_by_another():
    here = book(1)
    old = said(2, "here")
    take(here, old)
    here.forget(id_of(2))
    assert not take(here, old)
    assert here.envelopes([id_of(2)]) == [], "and is not passed on"
    assert take(here, said(2, "again", wall=NOW + 1))
    assert here.others() == {id_of(2): "again"}


def test_silence_is_forgotten_and_in_the_end_its_number_too():
    here = book(1)
    take(here, said(2, "here"), now=0.0)
    assert here.expire(CONFIG.presence_timeout - 1) == []
    assert here.expire(CONFIG.presence_timeout) == [id_of(2)]
    assert here.expire(CONFIG.presence_timeout + 1) == []
    assert here.others() == {}
    here.expire(2 * (CONFIG.presence_timeout + SKEW))
    assert here._seen == {}


def test_a_peer_that_speaks_without_end_is_not_heard_and_others_cannot_make_it_so():
    here = book(1)
    forged = msgspec.structs.replace(said(2, "x"), signature=bytes(64))
    for _ in range(int(BURST) + 5):
        with pytest.raises(RefusedError):
            take(here, forged)
    for step in range(int(BURST) + 1):
        assert take(here, said(2, step, wall=NOW + step / 100))
    with pytest.raises(RefusedError) as caught:
        take(here, said(2, "more", wall=NOW + 9))
    assert caught.value.reason == "busy"
    assert take(here, said(2, "later", wall=NOW + 10), now=1.0)


def test_there_is_room_for_so_many_and_no_more(monkeypatch):
    monkeypatch.setattr("lattica.store.documents.presence.MAX_PEERS", 3)
    assert MAX_PEERS > 3
    here = book(1)
    for number in (2, 3, 4):
        take(here, said(number, "x"))
    with pytest.raises(RefusedError) as caught:
        take(here, said(5, "x"))
    assert caught.value.reason == "full"
    assert take(here, said(2, "y", wall=NOW + 1)), "who is there already may speak on"


def test_what_a_peer_says_of_itself_is_plain_and_small():
    here = book(1)
    for value in (object(), "x" * CONFIG.max_presence):
        with pytest.raises(DocumentError):
            here.set(value)
    assert here.set({"name": "ann"})
    assert not here.set({"name": "ann"}), "the same again is no news"
    here.announce(NOW)
    there = book(2)
    assert take(there, *here.envelopes([id_of(1)]))
    assert there.others() == {id_of(1): {"name": "ann"}}
    assert not take(here, *here.envelopes([id_of(1)])), "one's own comes back to nobody"


# ----------------------------------------------------------------------------- among peers


async def until(awareness, wanted) -> None:
    """Wait until the others are said to be so."""
    with anyio.fail_after(60):
        news = awareness.watch()
        while dict(awareness.others()) != wanted:
            await anext(news)


@pytest.mark.anyio
async def test_presence_reaches_peers_that_are_not_linked_and_is_on_no_disk(tmp_path):
    async with mesh(tmp_path, 3) as (_, all_of_them):
        one, two, _ = all_of_them
        await link(one, 2)
        await link(two, 3)
        docs = [await each.open(NAME) for each in all_of_them]
        docs[0].awareness.set({"cursor": 1})
        docs[2].awareness.set("three")
        await until(docs[0].awareness, {id_of(3): "three"})
        await until(docs[1].awareness, {id_of(1): {"cursor": 1}, id_of(3): "three"})
        await until(docs[2].awareness, {id_of(1): {"cursor": 1}})
        docs[0].awareness.set(None)
        await until(docs[2].awareness, {})
        assert docs[2].awareness.own == "three"
        assert [doc.heads() for doc in docs] == [{}, {}, {}]
        assert [doc.to_dict() for doc in docs] == [{}, {}, {}]
    async with mesh(tmp_path, 1) as (_, (one,)):
        assert (await one.open(NAME)).awareness.own is None


@pytest.mark.anyio
async def test_a_peer_is_there_for_as_long_as_it_is_linked(tmp_path):
    async with mesh(tmp_path, 1) as (network, (one,)):
        here = await one.open(NAME)
        async with peer(network, 2, tmp_path) as two:
            await link(one, 2)
            there = await two.open(NAME)
            there.awareness.set("here")
            await until(here.awareness, {id_of(2): "here"})
            await anyio.sleep(10 * WAIT)
            assert here.awareness.others() == {id_of(2): "here"}
        await until(here.awareness, {})


@pytest.mark.anyio
async def test_a_peer_that_is_linked_to_others_only_is_forgotten_after_a_while(tmp_path):
    async with mesh(tmp_path, 3) as (network, all_of_them):
        one, two, _ = all_of_them
        await link(one, 2)
        await link(two, 3)
        here, middle, far = [await each.open(NAME) for each in all_of_them]
        far.awareness.set("far")
        await until(here.awareness, {id_of(3): "far"})
        network.partition(id_of(2), id_of(3))
        assert middle.awareness.others() == {}
        await anyio.sleep(CONFIG.presence_timeout - CONFIG.presence_every - 1)
        assert here.awareness.others() == {id_of(3): "far"}
        await anyio.sleep(2 * CONFIG.presence_every + 2)
        assert here.awareness.others() == {}
        network.heal(id_of(2), id_of(3))
        await link(two, 3)
        await until(here.awareness, {id_of(3): "far"})


@pytest.mark.anyio
async def test_who_opens_later_hears_of_those_who_are_there(tmp_path):
    async with mesh(tmp_path, 2) as (_, (one, two)):
        await link(one, 2)
        here = await one.open(NAME)
        here.awareness.set("first")
        await anyio.sleep(WAIT)
        there = await two.open(NAME)
        await until(there.awareness, {id_of(1): "first"})


@pytest.mark.anyio
async def test_of_what_changes_fast_others_see_the_latest_and_little_is_sent(tmp_path):
    async with mesh(tmp_path, 2) as (_, (one, two)):
        await link(one, 2)
        here, there = await one.open(NAME), await two.open(NAME)
        news = there.awareness.watch()
        seen = 0

        async def count() -> None:
            nonlocal seen
            async for _ in news:
                seen += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count)
            await anyio.sleep(1)
            for step in range(1000):
                here.awareness.set(step)
                await anyio.sleep(0.002)
            await until(there.awareness, {id_of(1): 999})
            tasks.cancel_scope.cancel()
        assert 5 <= seen <= 25, "two seconds, at ten a second at most"
        assert not [key for key in two.counters if key.startswith("presence:")]


@pytest.mark.anyio
async def test_a_peer_that_may_not_read_says_nothing(tmp_path):
    async with mesh(tmp_path, 1) as (network, (one,)), peer(network, 2, tmp_path, "relay") as two:
        await link(one, 2)
        here, there = await one.open(NAME), await two.open(NAME)
        there.awareness.set("let me in")
        here.awareness.set("here")
        await anyio.sleep(WAIT)
        assert here.awareness.others() == {}
