"""Authors that contradict themselves, and those that are revoked: all peers cut alike."""

from __future__ import annotations

import contextlib
import itertools
import random

import msgspec
import pytest

from lattica.errors import DocumentError, GrantError
from lattica.identity import grants
from lattica.identity.keys import PeerId
from lattica.store import Document
from lattica.store.chains.messages import Notice
from lattica.store.chains.notices import coarse, rule
from lattica.store.chains.refusals import RefusedError
from lattica.store.chains.replica import Replica
from lattica.store.crdt import state
from lattica.store.crdt.values import encode_value
from tests.store.mesh import (
    HOUR,
    NAME,
    NOW,
    authority,
    document,
    identity,
    membership,
    read,
    receive,
    replica,
    seal,
    sync,
    write,
)

ONE, TWO, THREE = encode_value(1), encode_value(2), encode_value(3)


def tell(one: Replica, other: Replica) -> None:
    """Only envelopes go over, as between peers that do not speak of notices yet."""
    batch = one.missing(other.heads(), limit=10**9)
    assert batch is not None
    other.receive(batch.envelopes)


def equal(*replicas: Replica) -> bool:
    """Whether they have the same content from the same updates."""
    return (
        len({one.state.digest() for one in replicas}) == 1
        and len({tuple(sorted(one.heads(), key=lambda h: h.author)) for one in replicas}) == 1
    )


def test_a_fork_is_refused_and_its_proof_kept():
    one, twin, two = replica(1), replica(1), replica(2)
    first = write(one, "a", ONE)
    sync(one, twin)
    receive(two, first)
    receive(two, write(one, "k", ONE))
    with pytest.raises(RefusedError) as caught:
        receive(two, write(twin, "k", TWO))
    assert caught.value.reason == "forked"
    assert len(two.notices.forks()) == 1
    assert read(two) == {"a": ONE}, "of what cannot both stand neither does"
    with pytest.raises(RefusedError):
        receive(two, write(one, "l", ONE))
    assert len(two.notices.forks()) == 1, "one proof is enough"


def test_a_branch_that_waits_is_compared_when_another_takes_its_place():
    one, twin, two, three = replica(1), replica(1), replica(2), replica(3)
    receive(twin, write(three, "k", ONE))
    waits = write(twin, "k", TWO)  # in the place of what the other has not heard of
    assert receive(two, waits) is None
    receive(two, write(one, "l", ONE))
    assert len(two.notices.forks()) == 1
    sync(two, three)
    assert read(two) == read(three) == {"k": ONE}


def test_an_update_on_the_other_branch_comes_in_with_what_shows_the_fork():
    one, twin, two, three = (replica(number) for number in (1, 1, 2, 3))
    mine, other = write(one, "k", ONE), write(twin, "k", ONE, name="other")
    receive(two, mine)
    receive(three, other)
    rests = write(two, "k", TWO)  # in the place of what stands elsewhere in the other branch
    follows = write(two, "l", TWO)
    taken = three.receive([mine, rests, follows])
    assert [refusal.error.reason for refusal in taken.refusals] == ["forked"]
    assert read(three)["l"] == TWO
    sync(two, three)
    assert equal(two, three)


def test_an_update_that_fits_no_branch_is_refused_beside_a_fork_too():
    one, twin, three = replica(1), replica(1), replica(3)
    receive(three, write(one, "k", ONE))
    bad = seal(4, b"\x01", shown=membership(identity(4)))
    taken = three.receive([write(twin, "k", TWO), bad])
    assert [refusal.error.reason for refusal in taken.refusals] == ["forked", "malformed"]


def test_what_waited_takes_no_room_once_it_has_come_again():
    one, two, three = replica(1), replica(2), replica(3)
    first = write(three, "k", ONE)
    receive(one, first)
    waits = write(one, "k", TWO)
    assert receive(two, waits) is None
    two.receive([first, waits])
    assert read(two) == {"k": TWO}
    assert (two._waiting, two._waiting_size) == (0, 0)


def test_peers_that_hold_different_branches_come_to_hold_the_same():
    one, twin, two, three = replica(1), replica(1), replica(2), replica(3)
    first = write(one, "a", ONE)
    sync(one, twin)
    for target in (two, three):
        receive(target, first)
    for value in range(40):
        receive(two, write(one, "k", encode_value(value)))
        receive(three, write(twin, "k", encode_value(-1 - value)))
    sync(two, three)
    assert equal(two, three)
    assert read(two) == {"a": ONE}
    assert two.heads() == three.heads()


def test_what_others_wrote_before_and_after_stands():
    one, twin, two, three = replica(1), replica(1), replica(2), replica(3)
    receive(two, write(one, "k", ONE))
    receive(three, write(twin, "k", TWO))
    write(two, "mine", TWO)
    write(three, "also", THREE)
    sync(two, three)
    write(two, "later", ONE)
    sync(two, three)
    assert equal(two, three)
    assert read(two) == {"mine": TWO, "also": THREE, "later": ONE}


def test_an_update_that_rests_on_what_was_cut_reads_the_same_on_all():
    one, twin, two, three, four = (replica(number) for number in (1, 1, 2, 3, 4))
    receive(two, write(one, "k", ONE))
    over = write(two, "k", TWO)  # in place of the entry that will be cut
    receive(three, write(twin, "other", TWO))
    sync(two, three)
    sync(three, four)
    assert equal(two, three, four)
    assert over in [link.envelope for link in four.chains[identity(2).peer_id].links]
    again = write(two, "k", THREE)
    assert len(receive(four, again)) == 1
    assert read(four) == {"k": THREE}


def test_a_proof_convinces_peers_that_have_neither_branch():
    one, twin, two, three = replica(1), replica(1), replica(2), replica(3)
    receive(two, write(one, "k", ONE))
    with pytest.raises(RefusedError):
        receive(two, write(twin, "k", TWO))
    assert three.learn(two.lacking(three.notices.marks()))
    with pytest.raises(RefusedError) as caught:
        receive(three, write(replica(1), "k", ONE))
    assert caught.value.reason == "forked"
    assert three.lacking(two.notices.marks()) == ()


def test_many_large_proofs_go_over_a_few_at_a_time():
    two, three = replica(2), replica(3)
    big = encode_value(b"x" * 400_000)
    for number in range(10, 18):
        receive(two, write(replica(number), "k", big))
        with pytest.raises(RefusedError):
            receive(two, write(replica(number), "k", TWO))
    assert len(two.lacking(())) < 8
    sync(two, three)
    assert len(three.notices.forks()) == 8
    assert equal(two, three)


def test_a_peer_that_finds_its_own_fork_stops_writing():
    one, twin = replica(1), replica(1)
    write(one, "k", ONE)
    with pytest.raises(RefusedError):
        receive(one, write(twin, "k", TWO))
    with pytest.raises(DocumentError, match="new identity"):
        write(one, "k", ONE)


def test_cuts_of_one_author_fall_on_few_places():
    places = {coarse(upto) for upto in range(100_000)}
    assert len(places) < 140
    assert all(upto - coarse(upto) <= upto / 8 for upto in range(100_000))
    assert [coarse(upto) for upto in range(17)] == list(range(17))


def test_what_proves_nothing_is_refused_and_counted():
    one, twin, two, stranger = replica(1), replica(1), replica(2), replica(9)
    first, second = write(one, "k", ONE), write(one, "k", TWO)
    other = write(twin, "k", THREE)
    shown = membership(identity(1))
    bad_signature = msgspec.structs.replace(other, signature=bytes(64))
    for notice in (
        Notice((), (), shown),
        Notice((first,), (second,), shown),
        Notice((first,), (first,), shown),
        Notice((first,), (bad_signature,), shown),
        Notice((first,), (other,), None),
        Notice((first,), (other,), membership(identity(2))),
        Notice((first,), (write(stranger, "k", ONE),), shown),
        Notice((second, first), (other,), shown),
        Notice((first,)),
        rule(identity(1), NAME, identity(2).peer_id, upto=0),
        rule(authority, "other", identity(1).peer_id, upto=0),
        rule(authority, NAME, authority.peer_id, upto=0),
        rule(authority, NAME, identity(1).peer_id),
    ):
        before = two.counters.total()
        assert two.learn([notice]) == []
        assert two.counters.total() == before + 1
    receive(two, first)
    assert read(two) == {"k": ONE}


def test_a_run_is_taken_with_few_signatures_verified(monkeypatch):
    one, two = replica(1), replica(2)
    envelopes = [write(one, "k", encode_value(value)) for value in range(200)]
    verified = []
    honest = type(envelopes[0]).verifies
    monkeypatch.setattr(
        "lattica.identity.signed.Signed.verifies",
        lambda self: verified.append(self) or honest(self),
    )
    taken = two.receive(envelopes)
    assert len(taken.links) == 200
    assert len([e for e in verified if e.domain == "doc-update"]) <= 5


def test_one_bad_signature_at_the_end_of_a_run_refuses_only_that():
    one, two = replica(1), replica(2)
    envelopes = [write(one, "k", encode_value(value)) for value in range(10)]
    envelopes[-1] = msgspec.structs.replace(envelopes[-1], signature=bytes(64))
    taken = two.receive(envelopes)
    assert [refusal.error.reason for refusal in taken.refusals] == ["forged"]
    assert read(two) == {"k": encode_value(8)}


def test_spoiled_signatures_in_a_run_do_not_travel_alone():
    """Whoever spoils what a later signature vouches for cannot make us pass on a forgery."""
    one, two, three = replica(1), replica(2), replica(3)
    envelopes = [write(one, f"k{value}", ONE) for value in range(6)]
    for index in (1, 2, 4):
        envelopes[index] = msgspec.structs.replace(envelopes[index], signature=bytes(64))
    assert len(two.receive(envelopes).links) == 6
    part = two.missing((), limit=10**9, committed={identity(1).peer_id: 3})
    assert len(part.envelopes) == 1, "the second and third would look forged"
    sync(two, three)
    assert equal(two, three)
    assert not three.counters["refused:forged"]


def test_a_fork_at_a_spoiled_signature_is_proven_by_what_vouches_for_it():
    one, twin, two, three = replica(1), replica(1), replica(2), replica(3)
    envelopes = [write(one, f"k{value}", ONE) for value in range(6)]
    envelopes[0] = msgspec.structs.replace(envelopes[0], signature=bytes(64))
    two.receive(envelopes)
    with pytest.raises(RefusedError):
        receive(two, write(twin, "k", TWO))
    assert three.learn(two.lacking(()))
    assert read(two) == {}


def test_a_batch_that_pycrdt_refuses_costs_only_its_author(monkeypatch):
    one, two, three = replica(1), replica(2), replica(3)
    good = [write(one, f"k{value}", ONE) for value in range(3)]
    bad = [write(three, f"b{value}", TWO) for value in range(3)]
    honest = state._apply

    def refusing(doc, updates):
        if any(b"b1" in update for update in updates):
            raise DocumentError("no")
        honest(doc, updates)

    monkeypatch.setattr(state, "_apply", refusing)
    taken = two.receive([good[0], bad[0], bad[1], good[1], bad[2], good[2]])
    assert len(taken.links) == 4
    assert {r.error.reason for r in taken.refusals} == {"malformed", "stuck"}
    assert read(two) == {"k0": ONE, "k1": ONE, "k2": ONE, "b0": TWO}


# ------------------------------------------------------------------------------ rulings


def revoked(number: int, upto: int) -> Notice:
    return rule(authority, NAME, identity(number).peer_id, upto=upto)


def test_a_revoked_author_keeps_what_was_known_and_nothing_after():
    one, two, three = replica(1), replica(2), replica(3)
    for value in (ONE, TWO, THREE):
        write(one, "k", value)
    sync(one, two)
    assert two.learn([revoked(1, 2)])
    assert read(two) == {"k": TWO}
    sync(two, three)
    sync(one, three)
    assert equal(one, two, three)
    with pytest.raises(GrantError, match="revoked"):
        write(one, "k", ONE)


def test_a_revocation_takes_out_what_came_between_it_and_its_arrival():
    one, two, three = replica(1), replica(2), replica(3)
    receive(two, write(one, "k", ONE))
    late = write(one, "k", TWO)
    three.learn([revoked(1, 1)])
    sync(two, three)
    with pytest.raises(RefusedError) as caught:
        receive(two, late)
    assert caught.value.reason == "revoked"
    assert read(two) == read(three) == {"k": ONE}


def test_a_grant_in_the_document_lets_a_reader_write():
    one, two = replica(1, grants.CALL), replica(2)
    with pytest.raises(GrantError, match="authority"):
        write(one, "k", ONE)
    given = membership(identity(1), grants.WRITE + NAME)
    one.learn([rule(authority, NAME, identity(1).peer_id, membership=given)])
    receive(two, write(one, "k", ONE))
    assert read(two) == {"k": ONE}
    with pytest.raises(GrantError, match="expired"):
        write(one, "k", ONE, now=NOW + 2 * HOUR)


def test_a_later_grant_replaces_an_earlier_one_and_not_the_other_way():
    two = replica(2)
    subject = identity(1).peer_id
    soon = membership(identity(1), grants.WRITE + NAME)
    late = membership(identity(1), grants.WRITE + NAME, expires=NOW + 9 * HOUR)
    assert two.learn([rule(authority, NAME, subject, membership=late)])
    assert not two.learn([rule(authority, NAME, subject, membership=soon)])
    assert two.notices.granted(subject) == late


# ---------------------------------------------------------------------------- schedules


def change(rng: random.Random, one: Document) -> None:
    """Something in any kind of content."""
    kind = rng.randrange(5)
    if kind == 0:
        one.map("m")[rng.choice("abc")] = rng.random()
    elif kind == 1:
        one.counter("c").add(rng.choice((-1, 2)))
    elif kind == 2:
        array = one.array("a")
        if len(array) and rng.random() < 0.4:
            del array[rng.randrange(len(array))]
        else:
            array.insert(rng.randint(0, len(array)), rng.random())
    else:
        text = one.text("t")
        if len(text) and rng.random() < 0.4:
            start = rng.randrange(len(text))
            text.delete(start, rng.randint(start + 1, min(len(text), start + 4)))
        else:
            text.insert(rng.randint(0, len(text)), rng.choice(("word", "\N{ROCKET}", "ab")))


@pytest.mark.parametrize("seed", range(60))
def test_honest_replicas_converge_beside_forking_and_revoked_authors(seed):
    """Two keys fork, each in two or three copies; now and then one is revoked."""
    rng = random.Random(seed)
    honest = [document(number) for number in range(1, rng.randint(3, 6) + 1)]
    everyone = [*honest, *(document(number) for number in (8, 8, 9, 9, 9))]
    for _ in range(120):
        act, one = rng.random(), rng.choice(everyone)
        if act < 0.5:
            with contextlib.suppress(DocumentError, GrantError):
                change(rng, one)
        elif act < 0.9:
            other = rng.choice(everyone)
            if other is not one:
                rng.choice((sync, tell))(one._replica, other._replica)
        elif act < 0.92:
            subject = rng.choice((8, 9))
            chain = one._replica.chains.get(identity(subject).peer_id)
            one._replica.learn([revoked(subject, 0 if chain is None else chain.head)])
    replicas = [one._replica for one in honest]
    heads = {one: one.chains[me].head for me, one in own_chains(replicas)}
    for _ in range(2):
        for one, other in itertools.pairwise(replicas):
            sync(one, other)
        for one, other in reversed(list(itertools.pairwise(replicas))):
            sync(one, other)
    assert equal(*replicas)
    assert len({tuple(sorted(r.notices.marks(), key=lambda m: m.author)) for r in replicas}) == 1
    for me, one in own_chains(replicas):
        assert one.chains[me].head == heads[one]
        assert {each.chains[me].head for each in replicas} == {heads[one]}, "no write is lost"


def own_chains(replicas: list[Replica]) -> list[tuple[PeerId, Replica]]:
    """The replicas that have written, with their keys."""
    pairs = [(identity(number).peer_id, one) for number, one in enumerate(replicas, 1)]
    return [(me, one) for me, one in pairs if me in one.chains]
