"""Glances that prove themselves, asked of peers that lie."""

from __future__ import annotations

import msgspec
import pytest

from lattica.errors import DocumentError
from lattica.identity import grants, wire
from lattica.identity.grants import Membership
from lattica.identity.signed import Signed
from lattica.link.memory import MemoryNetwork
from lattica.store.chains.messages import DOMAIN, GENESIS, Notice, Update, envelope_hash
from lattica.store.chains.notices import rule
from lattica.store.crdt.state import client_id
from lattica.store.crdt.values import encode_value
from lattica.store.documents import proven, showing
from lattica.store.documents.showing import Shown
from tests.store.mesh import (
    NOW,
    authority,
    document,
    identity,
    meet,
    membership,
    seal,
    until_equal,
)
from tests.store.raw import entry, update
from tests.store.test_documents import id_of, link, mesh, peer

pytestmark = pytest.mark.anyio

MAP = "map:ages"
RIGHT = ((id_of(3), membership(identity(3))),)


def shows(monkeypatch, liar, *envelopes, content, memberships=(), notices=()):
    """Let a peer answer this instead of what it has."""

    async def shown(name, roots):
        return Shown((encode_value(content),), envelopes, memberships, notices)

    monkeypatch.setattr(liar, "shown", shown)


def written(number, *values, key="ann", scopes=grants.MEMBER, document="roster"):
    """An author's envelopes that write these values over each other."""
    client = client_id(id_of(number))
    envelopes, previous = [], GENESIS
    for clock, value in enumerate(values):
        data = encode_value(value)
        body = (
            update(client, 0, entry(data, MAP, key))
            if not clock
            else update(
                client,
                clock,
                entry(data, left=(client, clock - 1), has_key=True),
                deletes={client: [(clock - 1, 1)]},
            )
        )
        made = Update(
            authority.peer_id,
            document,
            clock + 1,
            previous,
            NOW + clock,
            body,
            membership(identity(number), *scopes) if not clock else None,
            (("map", "ages", key),) if clock else (),
        )
        envelopes.append(Signed.seal(identity(number), DOMAIN, made))
        previous = envelope_hash(envelopes[-1])
    return envelopes


async def test_who_wrote_each_entry_is_proven_to_who_keeps_nothing(tmp_path):
    network = MemoryNetwork()
    async with (
        peer(network, 1, tmp_path) as one,
        peer(network, 2, tmp_path) as two,
        peer(network, 3, tmp_path, grants.CALL) as reader,
    ):
        await link(one, 2)
        here, there = await one.open("roster"), await two.open("roster")
        for age in range(30):
            here.map("ages")["ann"] = age
            here.map("ages").pop("ann")  # updates that only delete stand in between
            here.map("other")["x"] = age
        here.map("ages").update(ann=41, bob=7)
        await until_equal(here, there)
        await here.compact()  # so that most of it is on disk only
        there.map("ages")["bob"] = 8
        await until_equal(here, there)
        await link(reader, 1)
        seen = await reader.glance("roster", MAP, "map:none", proven=True)
        assert seen.content == {MAP: {"ann": 41, "bob": 8}, "map:none": {}}
        assert {key: each.author for key, each in seen.proofs[MAP].items()} == {
            "ann": id_of(1),
            "bob": id_of(2),
        }
        assert seen.proofs[MAP]["bob"].sequence == 1
        assert not seen.unproven[MAP]
        assert reader.opened == {}
        assert (await one.glance("roster", MAP, proven=True)).content[MAP] == {"ann": 41, "bob": 8}
        with pytest.raises(DocumentError, match="only maps"):
            await reader.glance("roster", "text:t", proven=True)


@pytest.fixture
async def liar_and_reader(tmp_path):
    async with mesh(tmp_path, 2) as (_, (liar, reader)):
        await liar.open("roster")
        await link(reader, 1)
        yield liar, reader


LIES = {
    "nothing": list,
    "a value that was not written": lambda: written(3, 1),
    "another's name": lambda: [
        msgspec.structs.replace(each, author=id_of(4)) for each in written(3, 666)
    ],
    "a changed payload": lambda: [
        msgspec.structs.replace(each, payload=each.payload.replace(b"ann", b"bob"))
        for each in written(3, 666, key="bob")
    ],
    "another document": lambda: written(3, 666, document="other"),
    "another key": lambda: written(3, 666, key="bob"),
    "an author that may not write": lambda: written(3, 666, scopes=(grants.CALL,)),
    "an author that shows nothing": lambda: written(3, 0, 666)[1:],
    "what its author wrote over at once": lambda: [
        seal(
            3,
            update(
                client_id(id_of(3)),
                0,
                entry(encode_value(666), MAP, "ann"),
                deletes={client_id(id_of(3)): [(0, 1)]},
            ),
            shown=membership(identity(3)),
        )
    ],
    "another's client id": lambda: [
        seal(
            3,
            update(client_id(id_of(4)), 0, entry(encode_value(666), MAP, "ann")),
            shown=membership(identity(3)),
        )
    ],
    "bytes that are no update": lambda: [seal(3, b"\x01", shown=membership(identity(3)))],
    "an expired grant": lambda: [
        seal(
            3,
            update(client_id(id_of(3)), 0, entry(encode_value(666), MAP, "ann")),
            shown=membership(identity(3), expires=NOW - 1),
        )
    ],
}


@pytest.mark.parametrize("lie", LIES)
async def test_what_is_not_proven_is_left_out_and_named(liar_and_reader, monkeypatch, lie):
    liar, reader = liar_and_reader
    shows(monkeypatch, liar, *LIES[lie](), content={"ann": 666})
    seen = await reader.glance("roster", MAP, proven=True)
    assert seen.content == {MAP: {}}
    assert seen.unproven == {MAP: {"ann"}}


async def test_a_proof_may_rest_on_grants_that_come_beside_it(liar_and_reader, monkeypatch):
    liar, reader = liar_and_reader
    last = written(3, 1, 2)[1:]
    shows(monkeypatch, liar, *last, content={"ann": 2}, memberships=RIGHT)
    assert (await reader.glance("roster", MAP, proven=True)).content[MAP] == {"ann": 2}
    for wrong in (
        membership(identity(4)),
        membership(identity(3), by=identity(3)),
        Membership(id_of(3), membership(identity(3)).chain),
        Membership(authority.peer_id),
    ):
        shown = ((id_of(3), wrong),)
        shows(monkeypatch, liar, *last, content={"ann": 2}, memberships=shown)
        assert (await reader.glance("roster", MAP, proven=True)).content[MAP] == {}


async def test_what_a_revoked_author_wrote_later_does_not_count(tmp_path, monkeypatch):
    async with mesh(tmp_path, 3) as (_, (liar, honest, reader)):
        for documents in (liar, honest):
            await documents.open("roster")
        envelopes = written(3, 1, 2)
        revoked = rule(authority, "roster", id_of(3), upto=1)
        shows(monkeypatch, liar, *envelopes, content={"ann": 2}, memberships=RIGHT)
        shows(monkeypatch, honest, envelopes[0], content={"ann": 1}, notices=(revoked,))
        await link(reader, 1)
        # One liar alone can keep the notice back, as it can keep back what is newer.
        assert (await reader.glance("roster", MAP, proven=True)).content[MAP] == {"ann": 2}
        await link(reader, 2)
        seen = await reader.glance("roster", MAP, agree=2, proven=True)
        assert seen.content[MAP] == {"ann": 1}
        assert seen.differing == {MAP: {"ann"}}
        forged = rule(identity(9), "roster", id_of(3), upto=0)
        shows(
            monkeypatch,
            liar,
            *envelopes,
            content={"ann": 2},
            memberships=RIGHT,
            notices=(forged, Notice(())),
        )
        shows(monkeypatch, honest, *envelopes, content={"ann": 2}, memberships=RIGHT)
        seen = await reader.glance("roster", MAP, agree=2, proven=True)
        assert seen.content[MAP] == {"ann": 2}


async def test_an_old_value_is_authentic_and_gives_way_to_a_newer_one(tmp_path, monkeypatch):
    async with mesh(tmp_path, 3) as (_, (liar, honest, reader)):
        await liar.open("roster")
        await link(reader, 1)
        shows(monkeypatch, liar, *written(3, 1), content={"ann": 1, "eve": 5})
        seen = await reader.glance("roster", MAP, proven=True)
        assert seen.content[MAP] == {"ann": 1}
        assert seen.unproven[MAP] == {"eve"}
        with pytest.raises(DocumentError, match="fewer than 2"):
            await reader.glance("roster", MAP, agree=2, proven=True)
        await honest.open("roster")
        shows(monkeypatch, honest, *written(3, 1, 2), content={"ann": 2}, memberships=RIGHT)
        await link(reader, 2)
        seen = await reader.glance("roster", MAP, agree=2, proven=True)
        assert seen.content[MAP] == {"ann": 2}
        assert seen.proofs[MAP]["ann"].sequence == 2
        assert seen.differing[MAP] == {"ann", "eve"}


async def test_an_answer_that_is_too_large_is_passed_over(liar_and_reader, monkeypatch):
    liar, reader = liar_and_reader
    monkeypatch.setattr(proven, "MAX_GLANCE", 1000)
    shows(monkeypatch, liar, *written(3, "x" * 2000), content={"ann": "x" * 2000})
    with pytest.raises(DocumentError, match="fewer than 1"):
        await reader.glance("roster", MAP, proven=True)
    few = written(3, 1)
    shows(monkeypatch, liar, *few * (showing.MAX_PROOFS + 1), content={"ann": 1})
    with pytest.raises(DocumentError, match="fewer than 1"):
        await reader.glance("roster", MAP, proven=True)
    for content in ([1], {1: 2}, 7):
        shows(monkeypatch, liar, *few, content=content)
        with pytest.raises(DocumentError, match="fewer than 1"):
            await reader.glance("roster", MAP, proven=True)


async def test_what_no_proof_has_room_for_is_named(liar_and_reader, monkeypatch):
    liar, reader = liar_and_reader
    monkeypatch.setattr(showing, "MAX_PROOFS", 3)
    ages = liar.opened["roster"].map("ages")
    for number in range(5):
        ages[f"k{number}"] = number
    seen = await reader.glance("roster", MAP, proven=True)
    assert len(seen.content[MAP]) == 3
    assert len(seen.unproven[MAP]) == 2


def test_an_author_cannot_say_that_it_writes_elsewhere():
    one, two = written(3, 1, 2)
    said = msgspec.msgpack.decode(two.payload)
    for stated in ([["map", "ages", "bob"]], [["map", "ages", "ann"]] * 2, [["map", "pay", "ann"]]):
        said[-1] = stated
        lie = Signed.seal(identity(3), DOMAIN, said)
        taken = document(1)._replica.receive([one, lie])
        assert [refusal.error.reason for refusal in taken.refusals] == ["malformed"]
    assert not document(1)._replica.receive([one, two]).refusals


@pytest.mark.parametrize(("count", "length", "said"), [(900, 0, 900), (1100, 0, 0), (20, 999, 0)])
def test_what_is_written_over_is_said_unless_it_is_too_much(count, length, said):
    writer, reader = document(1), document(2)
    keys = [str(number) + "x" * length for number in range(count)]
    for _ in range(2):
        writer.map("ages").update(dict.fromkeys(keys, 1))
    last = wire.decode(writer._replica.recent()[-1].envelope.payload, Update)
    assert len(last.stated) == said
    meet(writer, reader)
