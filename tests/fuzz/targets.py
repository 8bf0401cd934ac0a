"""One function for each decoder of bytes from others: anything in, only typed errors out.

`TARGETS` are run by `tests.fuzz.__main__` with coverage to guide it, and by `test_fuzz.py`
wherever the tests run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Protocol, cast

import msgspec

from lattica.config import DhtConfig, StoreConfig
from lattica.dht.lease_book import LeaseBook, open_claim
from lattica.dht.merge import Merge
from lattica.dht.messages import CLAIM, clean_addresses
from lattica.dht.records import DOMAIN, Kinds, Record, Verifier
from lattica.errors import (
    DocumentError,
    FrameError,
    GrantError,
    LatticaError,
    LinkError,
    RecordError,
    SignatureError,
    StoreError,
)
from lattica.identity import grants, tickets, wire
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed
from lattica.link import beat, header, refusals, retry
from lattica.link.proof import Proof, Role
from lattica.path import tcp_frames as tcp
from lattica.path.interface import PROBE, PROBE_REPLY, RELAY, Path
from lattica.path.probes import ProbeKeys, Prober
from lattica.path.relay import HEADER, RelayPath
from lattica.reach.messages import Order
from lattica.reach.nat import Mapping, NatReport, Ports, decode_report
from lattica.reach.plan import guess_hosts, guesses, plan
from lattica.rpc import failures
from lattica.rpc import messages as rpc_messages
from lattica.rpc.framing import FrameReader
from lattica.store.blocks.manifest import Manifest
from lattica.store.blocks.tree import MAX_ENCODED, MAX_PART, decode_top
from lattica.store.chains import messages as store_messages
from lattica.store.chains.notices import Notices
from lattica.store.chains.proofs import Proofs
from lattica.store.chains.refusals import RefusedError
from lattica.store.crdt.quick import read_body
from lattica.store.crdt.state import State
from lattica.store.crdt.update import read_update
from lattica.store.crdt.values import decode_value, encode_value
from lattica.store.documents.document import plain
from lattica.store.documents.presence import PresenceBook
from tests.fuzz.session import SessionFuzz
from tests.fuzz.swarm import SwarmFuzz
from tests.reach.relay_bench import Bench, Link, place
from tests.store import raw

ONE = Identity(b"one".ljust(32))
OTHER = Identity(b"other".ljust(32))
BINDING = bytes(32)
RELAYED, ENDING = b"relayed.", b"end-here"  # names of sessions
DECODE = (msgspec.MsgspecError, ValueError, RecursionError)  # what callers of `decode` catch
Target = Callable[[bytes], None]


def link_header(data: bytes) -> None:
    """The part of a QUIC packet that is read before QUIC is."""
    if not data:
        return
    header.short_destination(data)
    parsed = header.parse_long(data)
    if parsed is not None:
        assert len(parsed.destination) <= 20 >= len(parsed.source)
        answer = header.parse_long(header.version_negotiation(parsed, [header.VERSION_1]))
        assert answer is not None
        assert (answer.destination, answer.source) == (parsed.source, parsed.destination)


def beats_and_tokens(data: bytes) -> None:
    """What strangers could try to forge beside QUIC."""
    forged = data[: beat.SIZE].ljust(beat.SIZE, b"\0")
    secret = os.urandom(32)  # a constant one would be learned from the comparison itself
    assert beat.Beats(secret, is_dialer=True).take(forged) is None
    assert retry.RetryTokens().check(data, "a:1", b"chosen", 0.0) is None


def path_probes(data: bytes) -> None:
    """Probes of a path and their replies, with the right kind and tag but forged."""
    prober = Prober(ProbeKeys.derive(os.urandom(32), is_dialer=True), Counter())
    for kind in (PROBE, PROBE_REPLY):
        for forged in (data, bytes((kind,)) + prober.tag + data):
            if forged:
                assert prober.receive(forged) is None


def relay_frames(data: bytes) -> None:
    """Frames at a peer that is the end of one session and the relay of another.

    Each step of the input is a place, a length, and so much of a frame.
    """
    bench = Bench(3)
    bench.relay.open(RELAYED, *_reserved(bench))
    end = RelayPath(cast(Path, bench))
    end.forward = bench.relay.forward
    ours = end.open(ENDING, Link(place(2)), "relay")
    came = []
    while len(data) >= 2:
        source, size = place(data[0] % 4), data[1]
        came.append((bytes((RELAY,)) + data[2 : 2 + size], source))
        data = data[2 + size :]
    packets, probes = end.received(came)
    for datagram, address in packets + probes:
        assert address == ours
        assert (bytes((RELAY,)) + ENDING + datagram, place(2)) in came
    for address, frame in bench.arrived():
        other = {place(0): place(1), place(1): place(0)}[address]
        assert (frame, other) in came
        assert frame[1:HEADER] == RELAYED
    bench.assert_adds_up()


def _reserved(bench: Bench) -> tuple[PeerId, PeerId]:
    source, target, _ = bench.peers
    bench.relay.reserve(target)
    return source, target


def proof(data: bytes) -> None:
    """The handshake on a link's own stream, from either end, in two pieces."""
    for role in Role:
        mesh = grants.Membership(ONE.peer_id)
        end = Proof(ONE, mesh, "one", role=role, binding=BINDING)
        half = len(data) // 2
        try:
            end.receive(data[:half], 1000.0)
            end.receive(data[half:], 1000.0)
        except LinkError:
            pass


def close_reasons(data: bytes) -> None:
    """What the other end gives as its reason."""
    text = data[2:].decode(errors="replace")
    for code in (None, int.from_bytes(data[:2], "big")):
        for is_open in (True, False):
            assert str(refusals.error_of(code, text, is_open=is_open)).isprintable()


def frames(data: bytes) -> None:
    """Any chunking of a stream gives the same frames, or the same error."""
    _any_chunking(lambda: FrameReader(100), data)


def tcp_frames(data: bytes) -> None:
    """The same of datagrams in a TCP connection."""
    _any_chunking(tcp.FrameReader, data)


class _Reads(Protocol):
    def feed(self, data: bytes) -> list[bytes]: ...


def _any_chunking(make: Callable[[], _Reads], data: bytes) -> None:
    def read(chunks: list[bytes]) -> tuple[list[bytes], bool]:
        reader, got = make(), list[bytes]()
        try:
            for chunk in chunks:
                got += map(bytes, reader.feed(chunk))
        except (FrameError, tcp.FrameError):
            return got, False
        return got, True

    size = 1 + (data[0] if data else 0) % 7
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    whole, is_whole = read([data])
    cut, is_cut = read(pieces)
    assert is_whole is is_cut
    assert whole == cut or not is_whole  # before an error fewer may have come


def control_messages(data: bytes) -> None:
    """One frame of control messages, and the errors that failures become."""
    try:
        messages = msgspec.msgpack.decode(data, type=list[rpc_messages.Control])
    except DECODE:
        return
    for message in messages:
        if isinstance(message, rpc_messages.Failure):
            assert isinstance(failures.to_error(message, "peer"), LatticaError)
            str(failures.to_error(message, "peer"))


def signed(data: bytes) -> None:
    """Envelopes and what is read from them."""
    try:
        envelope = wire.decode(data, Signed)
    except DECODE:
        return
    for domain, kind in ((grants.DOMAIN, grants.Grant), (DOMAIN, Record)):
        try:
            envelope.open(domain, kind)
        except SignatureError:
            pass


def membership(data: bytes) -> None:
    """A chain of grants."""
    try:
        chain = wire.decode(data, grants.Membership)
        grants.verify_chain(chain.chain, mesh=chain.mesh, subject=ONE.peer_id, now=1000.0)
    except (*DECODE, GrantError):
        pass


def grant_in_a_chain(data: bytes) -> None:
    """A grant that says anything, well signed by a member."""
    step = _signed_by_one(grants.DOMAIN, data)
    try:
        grants.verify_chain((step,), mesh=ONE.peer_id, subject=OTHER.peer_id, now=1000.0)
    except GrantError:
        pass


def ticket(data: bytes) -> None:
    """A ticket's text, and a ticket whose text has the right form."""
    for text in (data.decode(errors="replace"), _ticket_of(data)):
        try:
            tickets.parse(text).redeem(ONE.peer_id, now=1000.0)
        except (LatticaError, SignatureError):
            pass


def dht_replies(data: bytes) -> None:
    """What another peer answers to a look-up."""
    config, counters = DhtConfig(), Counter[str]()
    merge = Merge(bytes(20), "peer", Verifier(Kinds(), config), config, counters)
    merge.add_encoded(data, now=1000.0)
    clean_addresses(data.decode(errors="replace").split("\n"))


def dht_record(data: bytes) -> None:
    """A record that says anything, well signed by its author."""
    try:
        Verifier(Kinds(), DhtConfig()).open(_signed_by_one(DOMAIN, data), now=1000.0)
    except RecordError:
        pass


def dht_claim(data: bytes) -> None:
    """A claim to a key that says anything, well signed; what is granted is bounded."""
    config = DhtConfig()
    book = LeaseBook(config, Counter())
    envelope = _signed_by_one(CLAIM, data)
    try:
        claim = open_claim(envelope, time=1000.0, config=config)
    except RecordError:
        return
    lease = book.ask(envelope, claim, now=5.0)
    assert (lease is None) == (claim.length == 0.0)
    assert lease is None or 0.0 <= lease.left <= config.max_lease


def reach_news(data: bytes) -> None:
    """Where a peer says it is and what its network does, and what it asks for; the plan of it."""
    try:
        order = wire.decode(data, Order)
    except DECODE:
        return
    mine = NatReport(Mapping.DEPENDENT, Ports.RANDOM, public=("192.0.2.1:9",), latest=9)
    theirs = order.news.report
    for each in (order.punch, plan(mine, theirs), plan(theirs, mine)):
        for side in (each.dialer, each.acceptor):
            assert max(side.sockets, side.guesses, side.likely) <= 3000
    ports = list(islice(guesses(theirs, 1), 50))
    assert len(set(ports)) == 50
    assert 1024 <= min(ports) <= max(ports) <= 65_535
    assert not guess_hosts(theirs, ())
    assert decode_report(wire.encode(theirs)) == theirs


def store_update(data: bytes) -> None:
    """An update of a document, before pycrdt sees it."""
    try:
        facts = read_update(data)
    except DocumentError:
        try:
            read_body(data)
        except DocumentError:
            return
        raise AssertionError("read quickly, and refused otherwise") from None
    assert facts.end >= facts.start
    assert read_body(data) == facts


def store_state(data: bytes) -> None:
    """An update that fits a document, as pycrdt takes it in: no panic, and nothing lost."""
    state = State(9)
    state.apply(raw.FOUNDATION, read_update(raw.FOUNDATION))
    try:
        facts = read_update(data)
    except DocumentError:
        return
    follows = facts.client is None or facts.start == state.clocks.get(facts.client, 0)
    if not follows or not state.has(facts.needs):
        return  # a replica refuses it, or lets it wait
    try:
        state.apply(data, facts)
    except DocumentError as error:
        if "pycrdt" in str(error):  # it refuses, or panics over, what was let through
            raise
        return
    for root in state.roots():
        plain(root.kind, state.raw(root))
    copy = State(9)
    copy.restore(state.snapshot())
    assert copy.digest() == state.digest()
    assert state_vector(state) == state_vector(copy) == state.clocks


def state_vector(state: State) -> dict[int, int]:
    """How far each client's units go, as pycrdt has it."""
    numbers, value, shift = [], 0, 0
    for byte in state._doc.get_state():
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
    return dict(zip(numbers[1::2], numbers[2::2], strict=True))


def store_value(data: bytes) -> None:
    """A value of a document has one form only."""
    try:
        assert encode_value(decode_value(data)) == data
    except DocumentError:
        pass


def store_manifest(data: bytes) -> None:
    """A manifest of files, or the root of a large one, as a provider sends it."""
    try:
        found = decode_top(data)
    except StoreError:
        return
    if not isinstance(found, Manifest):
        assert sum(part.size for part in found.parts) == found.size <= MAX_ENCODED
        assert all(0 < part.size <= MAX_PART for part in found.parts)
        return
    for file in found.files:
        assert not file.path.startswith("/")
        assert ".." not in file.path.split("/")


def store_swarm(data: bytes) -> None:
    """What a peer says in a fetch: frames of a kind's number and a message."""
    _swarm().play(data)


def store_presence(data: bytes) -> None:
    """What a peer says of itself, well signed by it, to another that has the document open."""
    mesh = grants.Membership(ONE.peer_id)
    book = PresenceBook("notes", OTHER, mesh, StoreConfig())
    try:
        book.receive(_signed_by_one(store_messages.PRESENCE, data), wall=1000.0, now=0.0)
    except DocumentError:
        pass
    assert all(encode_value(value) for value in book.others().values())


def store_exchange(data: bytes) -> None:
    """What replicas tell each other, and what a well-signed update proves to others."""
    Proofs(ONE.peer_id, "notes", 1 << 20).read(
        [_signed_by_one(store_messages.DOMAIN, data)], [(ONE.peer_id, membership_of_one())]
    )
    for kind in (store_messages.Exchange, store_messages.Update):
        try:
            wire.decode(data, kind)
        except DECODE:
            pass


def store_notice(data: bytes) -> None:
    """What proves a fork or is ruled: well signed by the mesh's authority, or just bytes."""
    half = len(data) // 2
    payloads = data, data[:half], data[half:]
    ruling, one, other = (
        _signed_by_one(domain, payload)
        for domain, payload in zip(
            (store_messages.RULING, store_messages.DOMAIN, store_messages.DOMAIN),
            payloads,
            strict=True,
        )
    )
    found = [
        store_messages.Notice((ruling,)),
        store_messages.Notice((one,), (other,), membership_of_one()),
    ]
    try:
        found.append(wire.decode(data, store_messages.Notice))
    except DECODE:
        pass
    known = Notices(ONE.peer_id, "notes")
    for notice in found:
        try:
            verdict = known.add(notice)
        except RefusedError:
            continue
        assert verdict is None or known.lacking(())
        if verdict is not None and verdict.upto is not None:
            assert known.cut(verdict.author) is not None


@functools.cache
def membership_of_one() -> grants.Membership:
    """What lets ONE write, by the mesh that ONE is."""
    step = grants.issue(
        ONE, mesh=ONE.peer_id, subject=ONE.peer_id, scopes=grants.MEMBER, expires=2000.0
    )
    return grants.Membership(ONE.peer_id, (step,))


@functools.cache
def _swarm() -> SwarmFuzz:
    return SwarmFuzz()


@functools.cache
def _sessions() -> SessionFuzz:
    return SessionFuzz()


def session_of_a_caller(data: bytes) -> None:
    """All that a caller may send: control, headers, bodies; the serving end plays on."""
    _sessions().serve(data)


def session_of_a_server(data: bytes) -> None:
    """All that a server may answer: results, failures, bodies, items."""
    _sessions().call(data)


def _signed_by_one(domain: str, payload: bytes) -> Signed:
    """`Signed.seal` for a payload that is not the encoding of anything."""
    tag = domain.encode()
    message = b"lattica-signed-v1\x00" + len(tag).to_bytes(2, "big") + tag + payload
    return Signed(ONE.peer_id, domain, payload, ONE.sign_bytes(message))


def _ticket_of(data: bytes) -> str:
    body = base64.urlsafe_b64encode(data).decode().rstrip("=")
    checksum = hashlib.blake2s(body.encode(), digest_size=4, person=b"ticket").hexdigest()
    return f"{tickets.PREFIX}{body}.{checksum}"


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        link_header,
        beats_and_tokens,
        path_probes,
        relay_frames,
        proof,
        close_reasons,
        frames,
        tcp_frames,
        control_messages,
        session_of_a_caller,
        session_of_a_server,
        signed,
        membership,
        grant_in_a_chain,
        ticket,
        dht_replies,
        dht_record,
        dht_claim,
        reach_news,
        store_update,
        store_state,
        store_value,
        store_manifest,
        store_swarm,
        store_exchange,
        store_presence,
        store_notice,
    )
}
