"""Keys that one peer has for itself: races, partitions, crashes, restarts, churn and lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from bench.dht_world import LoopClock, SimPeer, World
from lattica.config import DhtConfig
from lattica.dht import Holding, dht_key
from lattica.dht.ballots import quorum, tolerated
from lattica.dht.bequest import MAX_CLAIMS
from lattica.dht.messages import CLAIM, Claim
from lattica.dht.records import MICROSECONDS
from lattica.dht.routing import PeerNode
from lattica.errors import DhtError, NameTakenError, RecordError
from lattica.identity.signed import Signed
from lattica.virtual_loop import VirtualLoop
from tests.dht.mesh import mesh

pytestmark = pytest.mark.anyio
KEY = dht_key("test", "mine alone")
LEASE = DhtConfig().lease


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Claimant:
    """A peer that wants the key, and keeps it while it can."""

    def __init__(self, peer: SimPeer) -> None:
        self.peer = peer
        self.holding: Holding | None = None
        self.told: NameTakenError | None = None

    @property
    def believes(self) -> bool:
        return self.peer.is_alive and self.holding is not None and self.holding.is_held

    async def claim(self) -> None:
        try:
            self.holding = await self.peer.dht.claim(KEY)
        except NameTakenError as error:
            self.told = error

    async def live(self) -> None:
        """Claim, and keep."""
        await self.claim()
        if self.holding is not None:
            self.told = await self.holding.keep()


async def started(world: World, count: int, *, liars: int = 0) -> list[SimPeer]:
    for number in range(count):
        await world.start(is_liar=0 < number <= liars)
    return world.honest


def believers(claimants: Sequence[Claimant]) -> list[Claimant]:
    return [each for each in claimants if each.believes]


# ------------------------------------------------------------------------ few and many


@pytest.mark.parametrize("count", [1, 2, 3, 4, 60])
async def test_one_gets_a_key_and_the_others_are_told_who(count: int) -> None:
    async with World(seed=count) as world:
        peers = await started(world, count)
        holding = await peers[-1].dht.claim(KEY)
        assert holding.is_held
        for other in peers[:5]:
            assert await other.dht.holder(KEY) == peers[-1].id
            with pytest.raises(NameTakenError) as caught:
                await other.dht.claim(KEY)
            assert caught.value.holder == peers[-1].id
        await holding.release()
        assert not holding.is_held
        again = await peers[0].dht.claim(KEY)
        assert again.is_held
        assert await peers[-1].dht.holder(KEY) == peers[0].id


@pytest.mark.parametrize(("count", "seed"), [(2, 1), (3, 2), (60, 3), (60, 4), (60, 5)])
async def test_of_many_that_claim_at_once_exactly_one_wins(count: int, seed: int) -> None:
    async with World(seed=seed, loss=0.02) as world:
        peers = await started(world, count, liars=count // 10)
        claimants = [Claimant(peer) for peer in peers[:16]]
        async with anyio.create_task_group() as tasks:
            for each in claimants:
                tasks.start_soon(each.claim)
        (winner,) = believers(claimants)
        # Who gave up before it was decided names whoever was ahead by then.
        assert all(each.told is not None for each in claimants if each is not winner)
        assert await peers[-1].dht.holder(KEY) == winner.peer.id
        late = Claimant(peers[-1])
        if late.peer is not winner.peer:
            await late.claim()
            assert late.told is not None
            assert late.told.holder == winner.peer.id


async def test_a_client_that_serves_nobody_may_claim() -> None:
    async with World(seed=6) as world:
        one, other, *_ = await started(world, 5)
        one.dht._claims._serves = False
        await one.dht.claim(KEY)
        assert await other.dht.holder(KEY) == one.id


# -------------------------------------------------------------------------- partitions


@pytest.mark.parametrize(("count", "share"), [(2, 0.5), (3, 0.4), (40, 0.5), (40, 0.2)])
async def test_two_halves_that_gave_one_key_twice_agree_within_a_lease(
    count: int, share: float
) -> None:
    async with World(seed=7) as world:
        peers = await started(world, count)
        small = round(count * share)
        world.sides = {peer.id: int(n < small) for n, peer in enumerate(peers)}
        await anyio.sleep(60.0)  # until each half has noticed
        one, other = Claimant(peers[0]), Claimant(peers[-1])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.live)
            await anyio.sleep(20.0)
            tasks.start_soon(other.live)
            await anyio.sleep(100.0)
            assert one.believes
            assert other.believes
            world.heal()
            config = world.config
            met = config.reunite_every + config.maintain_every  # until their tables meet
            both = 0.0
            while len(believers([one, other])) == 2:
                await anyio.sleep(0.5)
                both += 0.5
            assert both <= met + config.lease
            for _ in range(round(2 * config.lease)):
                await anyio.sleep(1.0)
                (winner,) = believers([one, other])  # whoever stays has it all the time
            loser = other if winner is one else one
            assert loser.told is not None
            assert loser.told.holder == winner.peer.id
            if small == count / 2 == 1:
                assert winner is one  # where each has one lease, it is the older that stays
            if share < 0.5:
                assert winner is other  # which holds the leases of more replicas
            tasks.cancel_scope.cancel()


async def test_links_that_are_cut_and_healed_leave_one_holder() -> None:
    """The same over RPC and links in memory, whose loss is told at once."""
    config = DhtConfig(maintain_every=10.0)
    async with mesh(config=config, limit=600.0) as made:
        made.clock = LoopClock()  # type: ignore[assignment]
        await made.join(9)
        left, right = made.peers[:4], made.peers[4:]
        pairs = [(one.id, other.id) for one in left for other in right]
        for pair in pairs:
            made.network.partition(*pair)
        await anyio.sleep(30.0)
        async with anyio.create_task_group() as tasks:
            one, other = await left[0].dht.claim(KEY), await right[0].dht.claim(KEY)
            told: list[NameTakenError] = []

            async def keep(holding: Holding) -> None:
                told.append(await holding.keep())

            for holding in (one, other):
                tasks.start_soon(keep, holding)
            await anyio.sleep(60.0)
            assert one.is_held
            assert other.is_held
            for pair in pairs:
                made.network.heal(*pair)
            with anyio.fail_after(config.reunite_every + config.maintain_every + config.lease):
                while one.is_held and other.is_held:
                    await anyio.sleep(0.5)
            await anyio.sleep(config.lease)
            assert other.is_held  # five of nine had granted it
            assert not one.is_held
            assert [error.holder for error in told] == [right[0].id]
            tasks.cancel_scope.cancel()


async def test_who_is_cut_off_stops_believing_before_another_can_have_the_key() -> None:
    """Its packets are lost, but it does not know that the others are no longer its mesh."""
    async with World(seed=8) as world:
        peers = await started(world, 30)
        holder = Claimant(peers[0])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(holder.live)
            await anyio.sleep(11.0)  # it has renewed
            assert holder.believes
            # It cannot be reached nor reach anybody, and finds nobody else to ask.
            world.sides = {peer.id: int(peer is peers[0]) for peer in peers}
            peers[0].dht._claims._serves = False
            peers[0].dht._claims._closest = lambda _: _nobody(peers[1:])
            rival = Claimant(peers[1])
            while rival.holding is None:
                await rival.claim()
                assert len(believers([holder, rival])) <= 1
                await anyio.sleep(0.25)
            assert not holder.believes
            tasks.cancel_scope.cancel()


async def _nobody(peers: Sequence[SimPeer]) -> list[object]:
    from lattica.dht.routing import PeerNode

    return [PeerNode(peer.id) for peer in peers[:20]]


async def test_a_key_comes_back_to_who_lost_touch_if_nobody_took_it() -> None:
    async with World(seed=9) as world:
        peers = await started(world, 2)
        holder = Claimant(peers[0])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(holder.live)
            await anyio.sleep(11.0)
            assert holder.holding is not None
            holder.holding._claims._closest = lambda _: _nobody(peers[1:])
            world.sides = {peers[0].id: 0, peers[1].id: 1}
            await anyio.sleep(2 * LEASE)
            assert not holder.believes
            assert holder.told is None
            world.heal()
            await anyio.sleep(LEASE)
            assert holder.believes
            tasks.cancel_scope.cancel()


# ----------------------------------------------------------- crashes, restarts and churn


async def test_the_key_of_who_crashed_is_free_after_a_lease_and_not_before() -> None:
    async with World(seed=10) as world:
        peers = await started(world, 30)
        holder, rival = Claimant(peers[0]), Claimant(peers[1])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(holder.live)
            await anyio.sleep(5.0)
            await world.kill(peers[0])
            tasks.cancel_scope.cancel()
        crashed = anyio.current_time()
        while rival.holding is None:
            await rival.claim()
            await anyio.sleep(0.5)
        took = anyio.current_time() - crashed
        assert LEASE - 6.0 < took < LEASE + 8.0


async def test_who_leaves_gives_its_keys_back() -> None:
    async with World(seed=11) as world:
        peers = await started(world, 10)
        await peers[0].dht.claim(KEY)
        await world.leave(peers[0])
        assert (await peers[1].dht.claim(KEY)).is_held


async def test_a_key_outlives_all_its_replicas_if_they_say_good_bye() -> None:
    async with World(seed=16) as world:
        peers = await started(world, 60)
        replicas = world.closest(KEY, world.config.lease_replicas)
        holder, rival = [each for each in peers if each.id not in replicas][:2]
        holding = await holder.dht.claim(KEY)
        async with anyio.create_task_group() as goodbyes:
            for replica in [each for each in peers if each.id in replicas]:
                goodbyes.start_soon(world.leave, replica)
        assert holding.is_held
        assert await rival.dht.holder(KEY) == holder.id
        with pytest.raises(NameTakenError) as caught:
            await rival.dht.claim(KEY)
        assert caught.value.holder == holder.id
        await holding.release()
        assert (await rival.dht.claim(KEY)).is_held


async def test_a_replica_takes_no_lease_on_another_s_word() -> None:
    async with World(seed=17) as world:
        peers = await started(world, 10)
        holding = await peers[0].dht.claim(KEY)
        ((_, claim),) = peers[1].dht._keeper.current()
        await holding.release()
        for peer in peers[2:]:
            call = peers[1].dht.neighbours.protocol.call_bequeath
            assert await call(PeerNode(peer.id), (claim,)) == 0
            assert peer.dht.counters["refused:bequest"] == 1
        assert (await peers[1].dht.claim(KEY)).is_held


async def test_an_heir_takes_a_lease_from_who_was_closer_if_its_holder_has_signed_it() -> None:
    async with World(seed=16) as world:
        peers = await started(world, 60)
        by_rank = [world.peers[each] for each in world.closest(KEY, 60)]
        replica, heir, last = by_rank[3], by_rank[24], by_rank[-1]
        await peers[0].dht.claim(KEY)
        ((_, claim),) = replica.dht._keeper.current()
        forged = Signed(last.id, claim.domain, claim.payload, claim.signature)
        given = Signed.seal(peers[0].identity, CLAIM, Claim(KEY, 2**62, LEASE))
        call = replica.dht.neighbours.protocol.call_bequeath
        assert await call(PeerNode(heir.id), (forged, given)) == 0
        assert await last.dht.neighbours.protocol.call_bequeath(PeerNode(heir.id), (claim,)) == 0
        assert heir.dht._keeper.told(KEY) is None
        assert await call(PeerNode(heir.id), (claim,) * (MAX_CLAIMS + 1)) is None
        assert await call(PeerNode(heir.id), (claim,)) == 1
        lease = heir.dht._keeper.told(KEY)
        assert lease is not None
        assert lease.claim.author == peers[0].id


async def test_replicas_that_start_again_remember_to_whom_they_gave_a_lease(
    tmp_path: Path,
) -> None:
    async with World(seed=12) as world:
        holder = await world.start()
        keepers = [await world.start(directory=tmp_path / str(n)) for n in range(5)]
        holding = await holder.dht.claim(KEY)
        await anyio.sleep(10.0)
        for number, keeper in enumerate(keepers):
            await world.kill(keeper)
            await keeper.stopped.wait()
            await world.start(directory=tmp_path / str(number), identity=keeper.identity)
        assert holding.is_held
        rival = world.honest[-1]
        with pytest.raises(NameTakenError) as caught:
            await rival.dht.claim(KEY)
        assert caught.value.holder == holder.id


async def test_a_lease_that_cannot_be_written_down_is_not_given(tmp_path: Path) -> None:
    async with World(seed=13) as world:
        holder = await world.start()
        keeper = await world.start(directory=tmp_path)
        (tmp_path / "leases.msgpack").mkdir()
        with pytest.raises(DhtError, match="cannot be written down"):
            await holder.dht.claim(KEY)
        assert keeper.dht.counters["leases_not_saved"] > 0
        (tmp_path / "leases.msgpack").rmdir()
        await holder.dht.claim(KEY)


async def test_a_holder_keeps_its_key_while_peers_come_and_go() -> None:
    """A tenth of the mesh is replaced each lease: all of it in five minutes."""
    async with World(seed=14, loss=0.02) as world:
        peers = await started(world, 40, liars=4)
        holder = Claimant(peers[0])
        missed = 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(holder.live)
            await anyio.sleep(5.0)
            for step in range(24):
                await anyio.sleep(7.5)
                others = [peer for peer in world.peers.values() if peer is not peers[0]]
                gone = world.random.choice(others)
                await world.kill(gone)
                await world.start(is_liar=gone.is_liar)
                missed += not holder.believes
                if step % 6 == 0:
                    rival = Claimant(world.random.choice(world.honest[1:]))
                    await rival.claim()
                    assert rival.holding is None
            tasks.cancel_scope.cancel()
        assert missed == 0
        assert holder.told is None


# ---------------------------------------------------------------------------- forgeries


async def test_a_claim_that_is_backdated_forged_or_anothers_is_refused() -> None:
    async with World(seed=15) as world:
        one, other = await started(world, 2)
        stub = one.client(other.id, None, "dht", 5.0)  # type: ignore[arg-type]
        now = int(world.clock.time() * MICROSECONDS)

        async def refused(why: str, claim: Claim, signer: SimPeer = one) -> None:
            with pytest.raises(RecordError, match=why):
                await stub.lease(Signed.seal(signer.identity, CLAIM, claim), ())
            assert await stub.leased(KEY) is None

        hour = 3600 * MICROSECONDS
        await refused("backdated by 3600 s", Claim(KEY, now - hour, 30.0))
        await refused("ahead of time by 3600 s", Claim(KEY, now + hour, 30.0))
        await refused("at most 60 s", Claim(KEY, now, 61.0))
        await refused("at most 60 s", Claim(KEY, now, float("nan")))
        await refused("20 bytes", Claim(b"short", now, 30.0))
        await refused("by who wants it", Claim(KEY, now, 30.0), other)
        assert other.dht.counters["refused:claim"] == 5
        with pytest.raises(RecordError, match="forged"):
            await stub.lease(Signed(one.id, CLAIM, b"x", bytes(64)), ())
        lease = await stub.lease(Signed.seal(one.identity, CLAIM, Claim(KEY, now, 30.0)), ())
        assert lease.claim.author == one.id


async def test_who_has_a_wrong_clock_is_told_so() -> None:
    async with World(seed=16) as world:
        one, *_ = await started(world, 5)
        one.dht._claims._seal = lambda key, length: Signed.seal(  # type: ignore[method-assign]
            one.identity, CLAIM, Claim(key, 1, length)
        )
        with pytest.raises(RecordError, match="check the claimant's clock"):
            await one.dht.claim(KEY)


# -------------------------------------------------------------------------- how many decide


def test_two_quorums_always_share_an_honest_replica() -> None:
    for asked in range(1, 50):
        liars = tolerated(asked)
        assert 2 * quorum(asked) - asked > liars
        assert quorum(asked) > asked / 2
        assert quorum(asked) <= asked - liars  # and the honest are enough for one
