"""Who makes many keys for itself with one ticket keeps nobody else's records out."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from bench.dht_world import World
from lattica.config import DhtConfig
from lattica.dht.keys import dht_key
from lattica.dht.storage import Storage
from lattica.errors import DhtError, RecordError
from lattica.identity.keys import PeerId
from lattica.virtual_loop import VirtualLoop
from tests.dht.support import KEY, NOW, envelope, peer_id, storage

pytestmark = pytest.mark.anyio
CROWD, OTHER = peer_id(1), peer_id(2)  # roots: tickets, as it were


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def roots(kept: Storage) -> list[PeerId | None]:
    return [each.root for each in kept]


def test_a_key_that_one_ticket_has_filled_still_takes_what_others_say() -> None:
    kept = storage(DhtConfig(max_records_per_key=6))
    for author in range(6):
        kept.store(envelope(author), now=NOW, root=CROWD)
    with pytest.raises(RecordError, match="too many records under this key"):
        kept.store(envelope(7), now=NOW, root=CROWD)
    for author in range(10, 13):
        kept.store(envelope(author), now=NOW, root=OTHER)
    assert sorted(map(str, roots(kept))) == sorted(map(str, [CROWD] * 3 + [OTHER] * 3))
    assert kept.counters["evicted"] == 3
    for root in (CROWD, OTHER):  # each has its half now, and neither takes from the other
        with pytest.raises(RecordError, match="too many records under this key"):
            kept.store(envelope(20), now=NOW, root=root)
    kept.store(envelope(10, sequence=2), now=NOW, root=OTHER)  # what is there may be renewed


@pytest.mark.parametrize("config", [DhtConfig(max_records=6), DhtConfig(max_bytes=6 * 140)])
def test_a_peer_that_one_ticket_has_filled_still_takes_what_others_say(config: DhtConfig) -> None:
    kept = storage(config)
    number = 0

    def fill() -> None:
        nonlocal number
        for number in range(99):
            key = dht_key("test", str(number))
            kept.store(envelope(number, key=key, value="x" * 80), now=NOW, root=CROWD)

    with pytest.raises(RecordError, match="keeps no more"):
        fill()
    for author in range(100, 102):
        kept.store(envelope(author, value="x" * 80), now=NOW, root=OTHER)
    assert roots(kept).count(OTHER) == 2
    assert roots(kept).count(CROWD) == number - 2
    assert kept.nbytes == sum(len(each.envelope.payload) for each in kept)


def test_what_a_peer_says_itself_gives_way_to_nobody() -> None:
    kept = storage(DhtConfig(max_records_per_key=2, max_records=2))
    for author in range(5):
        kept.store(envelope(author), now=NOW, own=True)
    with pytest.raises(RecordError, match="too many"):
        kept.store(envelope(9), now=NOW, root=OTHER)
    assert len(kept) == 5


async def test_a_ticket_with_many_keys_does_not_keep_a_member_out(tmp_path: Path) -> None:
    config = DhtConfig(max_records_per_key=4, maintain_every=20.0)
    async with World(seed=30, config=config) as world:
        keeper = await world.start(directory=tmp_path)
        crowd = [await world.start() for _ in range(7)]
        member = await world.start()
        for each in crowd:
            each.root = crowd[0].id

        def at_keeper() -> set[PeerId]:
            return {each.envelope.author for each in keeper.dht.storage if each.record.key == KEY}

        for each in crowd:
            with contextlib.suppress(DhtError):
                await each.dht.put(KEY, "note", b"here", ttl=600.0)
        assert at_keeper() == {each.id for each in crowd[:4]}
        await member.dht.put(KEY, "note", b"here", ttl=600.0)
        assert len(at_keeper()) == 4
        assert member.id in at_keeper()
        await world.kill(keeper)
        await keeper.stopped.wait()
        keeper = await world.start(directory=tmp_path, identity=keeper.identity)
        again = [each for each in keeper.dht.storage if each.record.key == KEY]
        assert {each.root for each in again} == {crowd[0].id, member.root}
