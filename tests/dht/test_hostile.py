"""What a member that means harm is refused by the service itself."""

from __future__ import annotations

import pytest

from lattica.config import DhtConfig
from lattica.dht.messages import CLAIM, SERVICE, Claim
from lattica.dht.records import MICROSECONDS
from lattica.dht.service import DhtService
from lattica.errors import BadArgumentsError, RecordError
from lattica.identity.signed import Signed
from tests.dht.mesh import Peer, mesh
from tests.dht.support import KEY

pytestmark = pytest.mark.anyio
LEASE = DhtConfig().lease


def service(caller: Peer, callee: Peer) -> DhtService:
    return caller.rpc.client(callee.id, DhtService, SERVICE)


async def test_nobody_asks_for_a_lease_or_gives_one_up_in_another_s_name() -> None:
    async with mesh(3) as made:
        holder, thief, replica = made.peers
        holding = await holder.dht.claim(KEY)
        later = int(made.clock.time() * MICROSECONDS) + MICROSECONDS
        for length in (LEASE, 0.0):
            claim = Signed.seal(holder.identity, CLAIM, Claim(KEY, later, length))
            with pytest.raises(RecordError, match="nobody else"):
                await service(thief, replica).lease(claim, ())
        assert replica.dht.counters["refused:author"] == 2
        assert await thief.dht.holder(KEY) == holder.id
        assert holding.is_held


@pytest.mark.parametrize("target", [b"", KEY[:-1], KEY + b"x", bytes(100_000)])
async def test_a_target_that_is_no_key_costs_nothing_but_the_refusal(target: bytes) -> None:
    async with mesh(2) as made:
        one, other = made.peers
        with pytest.raises(BadArgumentsError):
            await service(one, other).find(target, "note", ())
        with pytest.raises(BadArgumentsError):
            await service(one, other).watch(target, "note", b"")
        assert await service(one, other).leased(target) is None
        assert other.dht.counters["refused:bad_target"] == 1
        assert len(other.dht.watchers) == 0


async def test_digests_of_any_length_are_no_more_than_unknown() -> None:
    async with mesh(3) as made:
        one, other = made.peers[:2]
        await one.dht.put(KEY, "note", "hello")
        reply = await service(one, other).find(KEY, "note", (), bytes(10_000), bytes(1))
        assert reply.contacts
        assert len(reply.records.data)
