"""What one replica grants, and how one claimant counts what many have."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lattica.clock import ManualClock
from lattica.config import DhtConfig
from lattica.dht.ballots import Ballot, Standing
from lattica.dht.lease_book import LeaseBook
from lattica.dht.lease_keeper import NAME, LeaseKeeper
from lattica.dht.messages import CLAIM, Claim, Lease
from lattica.dht.records import MICROSECONDS
from lattica.errors import BusyError
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed
from tests.dht.support import KEY, NOW, identity, peer_id

pytestmark = pytest.mark.anyio


class Replica:
    """A book, and those who ask it."""

    def __init__(self, config: DhtConfig | None = None) -> None:
        self.book = LeaseBook(config or DhtConfig(), Counter())

    def ask(
        self,
        who: int,
        now: float,
        *,
        length: float = 30.0,
        sequence: int | None = None,
        key: bytes = KEY,
        root: PeerId | None = None,
    ) -> Lease | None:
        claim = Claim(key, int(now) if sequence is None else sequence, length)
        return self.book.ask(Signed.seal(identity(who), CLAIM, claim), claim, now=now, root=root)

    def holder(self, now: float) -> PeerId | None:
        lease = self.book.told(KEY, now=now)
        return None if lease is None else lease.claim.author


def test_a_key_is_for_one_until_its_lease_ends() -> None:
    replica = Replica()
    first = replica.ask(1, 100.0)
    assert first is not None
    assert (first.claim.author, first.held_for, first.left) == (identity(1).peer_id, 0.0, 30.0)
    refused = replica.ask(2, 129.0)
    assert refused is not None
    assert (refused.claim, refused.held_for, refused.left) == (first.claim, 29.0, 1.0)
    renewed = replica.ask(1, 129.5)
    assert renewed is not None
    assert (renewed.held_for, renewed.left) == (29.5, 30.0)
    assert replica.holder(159.4) == identity(1).peer_id
    late = replica.ask(2, 159.5)
    assert late is not None
    assert (late.claim.author, late.held_for) == (identity(2).peer_id, 0.0)


def test_only_its_holder_gives_a_key_back_and_not_by_an_old_word() -> None:
    replica = Replica()
    replica.ask(1, 100.0, sequence=7)
    replica.ask(2, 101.0, length=0.0)
    assert replica.holder(101.0) == identity(1).peer_id
    replica.ask(1, 102.0, length=0.0, sequence=6)  # was sent before and arrives after
    assert replica.holder(102.0) == identity(1).peer_id
    assert replica.ask(1, 103.0, length=0.0, sequence=8) is None
    assert replica.holder(103.0) is None
    assert replica.ask(3, 104.0, length=0.0) is None
    assert len(replica.book) == 0


def test_nobody_can_fill_a_replica_for_longer_than_a_lease() -> None:
    replica = Replica(DhtConfig(leases_per_peer=3, max_leases=5))
    keys = [bytes([number]) * 20 for number in range(9)]
    for key in keys[:3]:
        replica.ask(1, 100.0, key=key)
    with pytest.raises(BusyError):
        replica.ask(1, 100.0, key=keys[3])
    replica.ask(1, 101.0, key=keys[0])  # but it may renew what it has
    for key in keys[4:6]:
        replica.ask(2, 101.0, key=key)
    with pytest.raises(BusyError):
        replica.ask(3, 102.0, key=keys[6])
    for number, key in enumerate(keys[3:8]):
        lease = replica.ask(10 + number, 150.0, key=key)
        assert lease is not None
        assert lease.claim.author == identity(10 + number).peer_id
    assert len(replica.book) == 5


def test_who_makes_many_keys_with_one_ticket_does_not_fill_a_replica() -> None:
    replica = Replica(DhtConfig(leases_per_root=3, max_leases=5))
    keys = [bytes([number]) * 20 for number in range(9)]
    for who in range(3):
        replica.ask(who, 100.0, key=keys[who], root=peer_id(1))
    with pytest.raises(BusyError):
        replica.ask(3, 100.0, key=keys[3], root=peer_id(1))
    assert replica.ask(4, 100.0, key=keys[3], root=peer_id(2)) is not None
    replica.ask(0, 101.0, key=keys[0], length=0.0)
    assert replica.ask(3, 102.0, key=keys[0], root=peer_id(1)) is not None


async def test_what_was_granted_before_a_restart_holds_for_its_whole_length(
    tmp_path: Path,
) -> None:
    def keeper(clock: ManualClock) -> LeaseKeeper:
        made = LeaseKeeper(DhtConfig(), clock, tmp_path, Counter())
        made.load()
        return made

    def claim(who: int, clock: ManualClock) -> Signed:
        sequence = int(clock.time() * MICROSECONDS)
        return Signed.seal(identity(who), CLAIM, Claim(KEY, sequence, 30.0))

    clock = ManualClock(NOW)
    await keeper(clock).ask(claim(1, clock))
    clock.advance(29.0)
    again = keeper(clock)  # it cannot tell for how long it was gone
    clock.advance(29.0)
    lease = await again.ask(claim(2, clock))
    assert lease is not None
    assert lease.claim.author == identity(1).peer_id
    clock.advance(2.0)
    lease = await again.ask(claim(2, clock))
    assert lease is not None
    assert lease.claim.author == identity(2).peer_id


@pytest.mark.parametrize("damage", [b"", b"\xff" * 50, b"\x91"])
def test_a_damaged_file_of_leases_is_no_error(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / NAME).write_bytes(damage)
    keeper = LeaseKeeper(DhtConfig(), ManualClock(NOW), tmp_path, Counter())
    keeper.load()
    assert keeper.told(KEY) is None


# ---------------------------------------------------------------------------- ballots


def test_more_leases_come_first_then_longer_held_ones_then_either() -> None:
    low, high = sorted((peer_id(1), peer_id(2)), key=lambda peer: peer.raw)
    assert Standing(high, 3, 0.0).outranks(Standing(low, 2, 1000.0))
    assert Standing(high, 2, 10.0).outranks(Standing(low, 2, 5.0))
    assert not Standing(high, 2, 5.5).outranks(Standing(low, 2, 5.0))  # told at different times
    assert Standing(low, 2, 5.0).outranks(Standing(high, 2, 5.5))


def test_a_few_liars_make_no_claim_older_and_no_winner() -> None:
    one, other = peer_id(1), peer_id(2)
    ballot = Ballot(20)
    for _ in range(6):
        ballot.count(one, 1e9)
        ballot.count(one, float("nan"))
    assert ballot.standing(one).held_for == 0.0
    assert not ballot.is_won(one)
    for _ in range(8):
        ballot.count(other, 50.0)
    first = ballot.first()
    assert first is not None
    assert first.claimant == one
    for _ in range(6):
        ballot.count(other, 50.0)
    assert ballot.is_won(other)
    assert ballot.first(but=one) == Standing(other, 14, 50.0)


def test_those_who_do_not_answer_count_against_everybody() -> None:
    ballot = Ballot(3)
    ballot.count(peer_id(1), 0.0)
    assert not ballot.is_won(peer_id(1))
    ballot.count(peer_id(1), 0.0)
    assert ballot.is_won(peer_id(1))
