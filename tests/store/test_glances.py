"""Glances: parts of a document for who does not keep it."""

from __future__ import annotations

import pytest

from lattica.errors import DocumentError
from lattica.identity import grants
from lattica.link.memory import MemoryNetwork
from lattica.store.documents import glances
from tests.store.mesh import until_equal
from tests.store.test_documents import QUICK, id_of, link, mesh, peer

pytestmark = pytest.mark.anyio


async def test_a_glance_shows_only_what_was_asked_for_and_keeps_nothing(tmp_path):
    network = MemoryNetwork()
    async with peer(network, 1, tmp_path) as one, peer(network, 2, tmp_path, grants.CALL) as two:
        document = await one.open("roster")
        document.map("ages").update(ann=41, bob=7)
        document.counter("likes").add(3)
        document.text("notes").append("hé 🚀")
        document.array("todo").extend([1, "two"])
        await link(one, 2)
        seen = await two.glance("roster", "map:ages", "count:likes", "text:notes", "array:none")
        assert seen.content == {
            "map:ages": {"ann": 41, "bob": 7},
            "count:likes": 3,
            "text:notes": "hé 🚀",
            "array:none": [],
        }
        assert seen.peers == (id_of(1),)
        assert two.opened == {}
        assert await two.kept() == {}


async def test_several_peers_must_say_the_same(tmp_path, monkeypatch):
    async with mesh(tmp_path, 4) as (_, (one, two, three, four)):
        copies = []
        for documents, number in ((one, 2), (two, 3), (three, 1)):
            await link(documents, number)
            copies.append(await documents.open("roster"))
        copies[0].map("m")["k"] = 1
        await until_equal(*copies)
        for number in (1, 2):
            await link(four, number)
        with pytest.raises(DocumentError, match="fewer than 3"):
            await four.glance("roster", "map:m", agree=3)
        await link(four, 3)
        seen = await four.glance("roster", "map:m", agree=3)
        assert seen.content == {"map:m": {"k": 1}}
        assert len(seen.peers) == 3

        async def lies(name, roots):
            return (b"\x81\xa1k\x02",)

        monkeypatch.setattr(one, "glanced", lies)
        assert (await four.glance("roster", "map:m", agree=2)).content == {"map:m": {"k": 1}}
        with pytest.raises(DocumentError, match="2 different answers"):
            await four.glance("roster", "map:m", agree=3)


async def test_an_answer_that_makes_no_sense_is_passed_over(tmp_path, monkeypatch):
    async with mesh(tmp_path, 2) as (_, (one, two)):
        await one.open("roster")
        await link(one, 2)
        for nonsense in ((b"\xc1",), (), (b"\x80", b"\x80")):

            async def answer(name, roots, nonsense=nonsense):
                return nonsense

            monkeypatch.setattr(one, "glanced", answer)
            with pytest.raises(DocumentError, match="fewer than 1"):
                await two.glance("roster", "map:m")


async def test_what_is_too_large_or_no_root_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(glances, "MAX_GLANCE", 1000)
    async with mesh(tmp_path, 1) as (_, (one,)):
        document = await one.open("roster")
        document.text("t").append("x" * 2000)
        with pytest.raises(DocumentError, match="open 'roster' instead"):
            await one.glance("roster", "text:t")
        for root in ("plain", "tree:x", "map", ""):
            with pytest.raises(DocumentError, match="no root"):
                await one.glance("roster", root)


async def test_peers_that_have_it_open_are_found_through_the_dht(tmp_path):
    network = MemoryNetwork()
    async with (
        peer(network, 1, tmp_path, config=QUICK, with_dht=True) as one,
        peer(network, 2, tmp_path, config=QUICK, with_dht=True) as two,
        peer(network, 3, tmp_path, config=QUICK, with_dht=True) as three,
    ):
        document = await two.open("roster")
        document.map("m")["k"] = 1
        dht = one._dht
        assert dht is not None
        seen = None
        for _ in range(100):
            try:
                seen = await three.glance("roster", "map:m")
                break
            except DocumentError:
                await document.flush()  # its announcement is still on the way
        assert seen is not None
        assert seen.content == {"map:m": {"k": 1}}
