"""What strangers may send: every one of these costs the sender its connection, or a drop."""

from __future__ import annotations

import os

import anyio
import pytest
from aioquic.tls import Epoch

from lattica.config import LinkConfig
from lattica.identity import wire
from lattica.identity.grants import Membership
from lattica.link import header
from lattica.link.early import EARLY_LIMIT
from lattica.link.messages import Hello
from lattica.link.proof import Proof, Role
from lattica.link.quic_link import HANDSHAKE_LIMIT
from lattica.link.refusals import CloseCode
from lattica.path.memory import MemoryPath, PacketNetwork
from tests.link.helpers import ALICE, BOB, CAROL, MESH, QUICK, Cheat, Peer, eventually, peer

pytestmark = pytest.mark.anyio

STRANGER = Membership(MESH.peer_id)


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def honest(cheat: Cheat, to: object = BOB.peer_id) -> Proof:
    return Proof(
        CAROL,
        STRANGER,
        "carol",
        role=Role.DIALER,
        binding=cheat.binding,
        expected=to,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("said", "code", "reason"),
    [
        (b"\xff\xff\xff\xff", CloseCode.REFUSED, "a hello of 4294967295 bytes"),
        (bytes(4), CloseCode.REFUSED, "a hello of 0 bytes"),
        (frame(b"\xc1garbage"), CloseCode.REFUSED, "does not decode"),
        (frame(b"\x91" * 5000), CloseCode.REFUSED, "does not decode"),
        (frame(wire.encode([7])), CloseCode.VERSION, "version 7 meets version 1"),
        (frame(wire.encode([1, b"short"])), CloseCode.REFUSED, "does not decode"),
    ],
)
async def test_a_bad_hello_is_told_why(said: bytes, code: int, reason: str) -> None:
    network = PacketNetwork()
    async with peer(BOB, network.path("b")) as bob:
        cheat = Cheat(network.path("x"))
        await cheat.dial("b:1")
        cheat.say(said)
        await cheat.until_closed()
        assert cheat.code == code
        assert reason in cheat.reason
        assert not cheat.received  # an acceptor shows itself only to a proven dialer
        assert bob.handlers == []
        assert not bob.endpoint._links


async def test_a_replayed_hello_is_refused() -> None:
    network = PacketNetwork()
    async with peer(BOB, network.path("b")) as bob:
        first = Cheat(network.path("x"))
        await first.dial("b:1")
        hello = honest(first).hello()
        second = Cheat(network.path("y"))
        await second.dial("b:1")
        second.say(hello)
        await second.until_closed()
        assert second.code == CloseCode.PROOF
        assert bob.endpoint.counters["unproven:ProofError"] == 1


async def test_a_hello_signed_by_another_key_is_refused() -> None:
    network = PacketNetwork()
    async with peer(BOB, network.path("b")):
        cheat = Cheat(network.path("x"))
        await cheat.dial("b:1")
        own = wire.decode(honest(cheat).hello()[4:], Hello)
        claimed = Hello(1, ALICE.peer_id, own.to, STRANGER, "alice", own.signature)
        cheat.say(frame(wire.encode(claimed)))
        await cheat.until_closed()
        assert cheat.code == CloseCode.PROOF


async def test_silence_after_the_handshake_is_cut_off() -> None:
    network = PacketNetwork()
    async with peer(BOB, network.path("b")) as bob:
        cheat = Cheat(network.path("x"))
        await cheat.dial("b:1")
        await cheat.until_closed(timeout=QUICK.handshake_timeout + 2)
        assert "no valid hello within 1 s" in cheat.reason
        assert not bob.endpoint._links


async def test_a_proven_dialer_that_never_confirms_is_not_handed_on() -> None:
    network = PacketNetwork()
    async with peer(BOB, network.path("b")) as bob:
        cheat = Cheat(network.path("x"))
        await cheat.dial("b:1")
        cheat.say(honest(cheat).hello())
        await cheat.until_closed(timeout=QUICK.handshake_timeout + 2)
        assert cheat.received
        assert bob.handlers == []


async def test_early_data_is_kept_for_the_handler_within_a_bound() -> None:
    network = PacketNetwork()
    async with peer(BOB, network.path("b")) as bob:
        cheat = Cheat(network.path("x"))
        await cheat.dial("b:1")
        stream_id = cheat.new_stream(unidirectional=True)
        cheat.say(b"early", stream_id)
        proof = honest(cheat)
        cheat.say(proof.hello())
        await eventually(lambda: cheat.received)
        cheat.say(proof.confirm())
        cheat.say(b" bird", stream_id, end=True)
        await eventually(lambda: bob.handlers)
        await bob.handlers[0].until(lambda: bob.handlers[0].ended == [stream_id])
        assert bob.handlers[0].data[stream_id] == b"early bird"


async def test_too_much_data_before_the_proof_is_refused() -> None:
    network = PacketNetwork()
    async with peer(BOB, network.path("b")) as bob:
        cheat = Cheat(network.path("x"))
        await cheat.dial("b:1")
        cheat.say(bytes(2 * EARLY_LIMIT), cheat.new_stream(unidirectional=True))
        await cheat.until_closed()
        assert "too much data before the proof" in cheat.reason
        assert not bob.endpoint._links


async def test_bytes_on_the_links_own_stream_end_an_open_link() -> None:
    network = PacketNetwork()
    async with peer(BOB, network.path("b")) as bob:
        cheat = Cheat(network.path("x"))
        await cheat.dial("b:1")
        proof = honest(cheat)
        cheat.say(proof.hello())
        await eventually(lambda: cheat.received)
        cheat.say(proof.confirm())
        cheat.say(b"and more")
        await cheat.until_closed()
        assert "unexpected bytes" in cheat.reason
        if bob.handlers:
            await bob.handlers[0].until(lambda: bool(bob.handlers[0].lost))


class Sender:
    """Sends raw datagrams and keeps what comes back."""

    def __init__(self, path: MemoryPath) -> None:
        self.path = path
        self.got: list[bytes] = []
        path.start(self)

    def packets_received(self, packets: object) -> None:
        self.got += [data for data, _ in packets]  # type: ignore[attr-defined]

    def path_refused(self, address: object) -> None: ...

    def path_too_big(self, address: object, size: int) -> None: ...

    def probes_received(self, probes: object) -> None: ...

    async def send(self, *datagrams: bytes) -> None:
        self.path.send(datagrams, await self.path.resolve("b:1"))
        await anyio.sleep(0.05)


def long_packet(version: int, *, size: int = 1200, kind: int = 0xC0) -> bytes:
    start = bytes((kind,)) + version.to_bytes(4, "big") + b"\x08" + b"d" * 8 + b"\x08" + b"s" * 8
    return start.ljust(size, b"\0")


async def check_alive(network: PacketNetwork, bob: Peer) -> None:
    async with peer(ALICE, network.path("a")) as alice:
        assert (await alice.endpoint.connect(bob.id, bob.endpoint.addresses)).is_open


async def test_garbage_datagrams_are_counted_and_dropped() -> None:
    network = PacketNetwork()
    async with peer(BOB, network.path("b")) as bob:
        sender = Sender(network.path("x"))
        await sender.send(
            b"",
            b"\x00",
            b"plain text",
            b"\x40",
            b"\x40" + bytes(30),
            b"\xc0",
            b"\xc0\0\0\0\1\xff",
            long_packet(1, kind=0xE0),  # a handshake packet of no connection
            long_packet(1, size=1199),  # an initial too small to answer
        )
        counters = bob.endpoint.counters
        assert bob.endpoint.path.counters["garbage"] >= 2
        assert counters["malformed"] == 2
        assert counters["unknown_connection"] >= 3
        assert sender.got == []
        await check_alive(network, bob)


async def test_random_datagrams_do_no_harm() -> None:
    network = PacketNetwork()
    async with peer(BOB, network.path("b")) as bob:
        sender = Sender(network.path("x"))
        await sender.send(*(os.urandom(length) for length in range(1, 1400, 7)))
        await sender.send(*(long_packet(1)[:40] + os.urandom(1300) for _ in range(5)))
        assert bob.handlers == []
        await eventually(lambda: not bob.endpoint._links, timeout=QUICK.handshake_timeout + 2)
        await check_alive(network, bob)


async def test_an_unknown_version_is_answered_with_less_than_was_sent() -> None:
    network = PacketNetwork()
    async with peer(BOB, network.path("b")) as bob:
        sender = Sender(network.path("x"))
        await sender.send(long_packet(0xFACE), long_packet(0xFACE, size=1199), long_packet(0))
        assert len(sender.got) == 1
        answer = header.parse_long(sender.got[0])
        assert answer is not None
        assert (answer.version, answer.destination, answer.source) == (0, b"s" * 8, b"d" * 8)
        assert len(sender.got[0]) < 100
        assert bob.endpoint.counters["version_negotiation"] == 1
        assert bob.endpoint.counters["unknown_version"] == 2


async def test_pending_handshakes_are_bounded() -> None:
    network = PacketNetwork()
    async with peer(BOB, network.path("b")) as bob:
        cheats = [Cheat(network.path(f"x{index}")) for index in range(QUICK.max_pending)]
        for cheat in cheats:
            await cheat.dial("b:1")
        async with peer(ALICE, network.path("a")) as alice:
            with anyio.move_on_after(0.3):
                await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
            assert bob.endpoint.counters["too_many_handshakes"] > 0
            assert len(bob.endpoint._links) <= QUICK.max_pending
            for cheat in cheats:  # room is made as they are cut off
                await cheat.until_closed()
            assert (await alice.endpoint.connect(bob.id, bob.endpoint.addresses)).is_open


async def test_data_far_ahead_of_a_gap_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream whose beginning never comes may not fill the memory."""
    monkeypatch.setattr("lattica.link.making.MAX_UNORDERED", 100_000)
    network = PacketNetwork()
    async with peer(BOB, network.path("b")) as bob:
        cheat = Cheat(network.path("x"), engine="aioquic")
        await cheat.dial("b:1")
        cheat.say(honest(cheat).hello())
        stream_id = cheat.new_stream(unidirectional=True)
        sender = cheat._engine._connection._get_or_create_stream_for_send(stream_id).sender
        sender.write(bytes(400_000))
        sender._pending.subtract(0, 200_000)  # leave the beginning out
        cheat.flush()
        await cheat.until_closed()
        assert "out of order" in cheat.reason or "sparse receive buffer" in cheat.reason
        assert not bob.endpoint._links


async def test_garbage_in_place_of_tls_messages_ends_its_own_link_only() -> None:
    network = PacketNetwork()
    async with peer(BOB, network.path("b")) as bob:
        for garbage in (b"\x04\0\0\x05trash", b"\x18\0\0\x01\x07", bytes(500)):
            cheat = Cheat(network.path(f"x{garbage[:5].hex()}"), engine="aioquic")
            await cheat.dial("b:1")
            connection = cheat._engine._connection  # type: ignore[attr-defined]
            connection._crypto_streams[Epoch.ONE_RTT].sender.write(garbage)
            cheat.flush()
            await cheat.until_closed()
            assert cheat.code is None  # a transport error, told at once
        await eventually(lambda: not bob.endpoint._links)
        await check_alive(network, bob)


async def test_a_handshake_that_never_gets_anywhere_is_cut_off() -> None:
    network = PacketNetwork()
    patient = LinkConfig(handshake_timeout=60.0)
    async with peer(BOB, network.path("b"), config=patient) as bob:
        sender = Sender(network.path("x"))
        first = long_packet(1)
        await sender.send(*[first] * (HANDSHAKE_LIMIT // len(first)))
        assert len(bob.endpoint._links) == 1
        await sender.send(first)
        assert not bob.endpoint._links
        assert bob.endpoint.counters["unproven:LinkRefusedError"] == 1
