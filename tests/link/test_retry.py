"""Retries and the doorkeeper, by themselves and against floods on the packet network."""

from __future__ import annotations

import os
import tracemalloc

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.config import LinkConfig
from lattica.errors import UnreachableError
from lattica.link import header
from lattica.link.buckets import Buckets, source_of
from lattica.link.certificate import Certificate
from lattica.link.doorkeeper import Doorkeeper, Entry
from lattica.link.engine import EngineConfig
from lattica.link.engines import choose
from lattica.link.retry import LIFETIME, RetryTokens, integrity_tag, retry_packet
from lattica.path.interface import VirtualAddress
from lattica.path.memory import Conditions, PacketNetwork
from lattica.virtual_loop import VirtualLoop
from tests.link.helpers import ALICE, BOB, CAROL, exchange, peer

HOME = "192.0.2.7:4242"
FIRST = header.LongHeader(1, b"original", b"their id", True)


# ------------------------------------------------------------------ the tokens


def test_the_integrity_tag_is_that_of_the_rfcs_example() -> None:
    # RFC 9001 appendix A.4.
    packet = bytes.fromhex(
        "ff000000010008f067a5502a4262b5746f6b656e04a265ba2eff4d829058fb3f0f2496ba"
    )
    assert integrity_tag(packet[:-16], bytes.fromhex("8394c8f03e515708")) == packet[-16:]


def test_a_token_holds_for_its_source_its_id_and_its_time() -> None:
    tokens = RetryTokens()
    token = tokens.issue(HOME, b"original", b"chosen!!", 100.0)
    assert tokens.check(token, HOME, b"chosen!!", 100.0 + LIFETIME - 0.1) == b"original"
    assert tokens.check(token, HOME, b"chosen!!", 100.0 + LIFETIME) is None
    assert tokens.check(token, "192.0.2.8:4242", b"chosen!!", 101.0) is None
    assert tokens.check(token, "192.0.2.7:4243", b"chosen!!", 101.0) is None
    assert tokens.check(token, HOME, b"another!", 101.0) is None
    assert RetryTokens().check(token, HOME, b"chosen!!", 101.0) is None


@given(st.data())
def test_no_changed_token_holds(data: st.DataObject) -> None:
    tokens = RetryTokens()
    token = bytearray(tokens.issue(HOME, b"original", b"chosen!!", 100.0))
    position = data.draw(st.integers(0, len(token) - 1))
    token[position] ^= data.draw(st.integers(1, 255))
    assert tokens.check(bytes(token), HOME, b"chosen!!", 100.0) is None


@given(st.binary(max_size=80))
def test_no_invented_token_holds(token: bytes) -> None:
    assert RetryTokens().check(token, HOME, b"chosen!!", 100.0) is None


@given(st.binary(max_size=300))
def test_a_first_packets_token_is_read_back(token: bytes) -> None:
    length = (0x4000 | len(token)).to_bytes(2, "big")
    start = b"\xc0\0\0\0\1\x08original\x08their id"
    parsed = header.parse_long(start + length + token + b"rest")
    assert parsed is not None
    assert parsed.token == token
    assert header.parse_long((start + length + token)[:-1]) is None or not token


# -------------------------------------------------------------- the doorkeeper


def test_a_source_has_its_burst_and_its_rate() -> None:
    buckets = Buckets(2.0, 3.0)
    assert [buckets.take("one", 10.0) for _ in range(4)] == [True, True, True, False]
    assert buckets.take("other", 10.0)
    assert [buckets.take("one", 10.5) for _ in range(2)] == [True, False]
    assert sum(buckets.take("one", 100.0) for _ in range(9)) == 3


def test_the_table_of_sources_is_bounded() -> None:
    buckets = Buckets(1.0, 1.0, max_sources=10)
    for number in range(1000):
        buckets.take(f"source {number}", 0.0)
    assert len(buckets) == 10


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7:4242", "192.0.2.7"),
        ("[2001:db8:1:2300::5]:1", "2001:db8:1:2300::/56"),
        ("[2001:db8:1:23ff:1::]:9", "2001:db8:1:2300::/56"),
        ("[::ffff:192.0.2.7]:1", "192.0.2.7"),
        ("[fe80::1%eth0]:1", "fe80::/56"),
        ("tcp:192.0.2.7:4242", "192.0.2.7"),
        ("somewhere", "somewhere"),
        ("a:1", "a:1"),
    ],
)
def test_sources_are_hosts_or_homes(address: str, source: str) -> None:
    assert source_of(address) == source


def test_a_dialer_comes_in_after_a_retry() -> None:
    keeper = Doorkeeper(LinkConfig(retry_above=2))
    assert keeper.decide(FIRST, HOME, 1, 5.0).entry is Entry.ACCEPT
    asked = keeper.decide(FIRST, HOME, 2, 5.0)
    assert asked.entry is Entry.RETRY
    assert len(asked.answer) < 150  # nobody is sent more than has come from there
    answer = header.parse_long(asked.answer)
    assert answer is not None
    assert answer.destination == FIRST.source
    start = 7 + len(answer.destination) + len(answer.source)
    again = header.LongHeader(1, answer.source, b"their id", True, asked.answer[start:-16])
    assert keeper.decide(again, "192.0.2.8:4242", 2, 5.1).entry is Entry.BAD_TOKEN
    decision = keeper.decide(again, HOME, 2, 5.1)
    assert decision.entry is Entry.ACCEPT
    assert (decision.original_destination, decision.retry_source) == (b"original", answer.source)
    assert keeper.decide(again, HOME, LinkConfig().max_pending, 5.1).entry is Entry.BUSY


def test_a_source_that_has_shown_where_it_is_has_a_share_of_the_handshakes() -> None:
    config = LinkConfig(retry_above=0, max_pending_per_source=3)
    keeper = Doorkeeper(config)
    asked = keeper.decide(FIRST, HOME, 1, 5.0)
    answer = header.parse_long(asked.answer)
    assert answer is not None
    start = 7 + len(answer.destination) + len(answer.source)
    again = header.LongHeader(1, answer.source, b"their id", True, asked.answer[start:-16])
    assert keeper.decide(again, HOME, 100, 5.1, shown=2).entry is Entry.ACCEPT
    assert keeper.decide(again, HOME, 100, 5.1, shown=3).entry is Entry.LIMITED


def test_forged_packets_do_not_use_up_the_handshakes_of_their_source() -> None:
    keeper = Doorkeeper(LinkConfig(handshake_rate=1.0, handshake_burst=5.0))
    entries = [keeper.decide(FIRST, HOME, 0, 5.0).entry for _ in range(100)]
    assert entries == [Entry.ACCEPT] * 5 + [Entry.RETRY] * 95
    token = keeper._tokens.issue(HOME, b"original", b"chosen!!", 5.0)
    honest = header.LongHeader(1, b"chosen!!", b"their id", True, token)
    shown = [keeper.decide(honest, HOME, 0, 5.0).entry for _ in range(7)]
    assert shown == [Entry.ACCEPT] * 5 + [Entry.LIMITED] * 2


def test_this_machine_itself_is_not_limited() -> None:
    keeper = Doorkeeper(LinkConfig(handshake_rate=1.0, handshake_burst=1.0))
    for _ in range(100):
        assert keeper.decide(FIRST, "127.0.0.1:4242", 0, 5.0).entry is Entry.ACCEPT


def test_a_made_up_id_that_is_too_short_is_refused() -> None:
    short = header.LongHeader(1, b"short", b"their id", True)
    assert Doorkeeper(LinkConfig()).decide(short, HOME, 0, 5.0).entry is Entry.MALFORMED


# ---------------------------------------------------------------- the engines


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


STRICT = LinkConfig(retry_above=0, backoff_base=0.01)


@pytest.mark.anyio
@pytest.mark.parametrize("acceptor", ["aioquic", "qh3"])
async def test_both_engines_follow_a_retry(engine: str, acceptor: str) -> None:
    network = PacketNetwork(Conditions(latency=0.01))
    served = LinkConfig(engine=acceptor, retry_above=0)
    async with (
        peer(BOB, network.path("b"), config=served) as bob,
        peer(ALICE, network.path("a"), config=LinkConfig(engine=engine)) as alice,
    ):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        assert bob.endpoint.counters["retried"] in (1, 2)  # qh3's hello takes two packets
        await exchange(link, bob.to(alice), bytes(100_000))
        await exchange(bob.to(alice).link, alice.to(bob), b"and back")


@pytest.mark.anyio
async def test_a_retry_is_followed_over_a_lossy_network(engine: str) -> None:
    network = PacketNetwork(Conditions(latency=0.01, loss=0.2, duplicate=0.1), seed=3)
    async with (
        peer(BOB, network.path("b"), config=STRICT) as bob,
        peer(ALICE, network.path("a"), config=LinkConfig(connect_timeout=20.0)) as alice,
    ):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        await exchange(link, bob.to(alice), bytes(10_000))


@pytest.mark.anyio
async def test_a_damaged_or_foreign_retry_is_ignored(engine: str) -> None:
    address = VirtualAddress("test", 1)
    config = EngineConfig(is_client=True, certificate=Certificate.generate(), datagram=1452)
    client = choose().near(config)
    client.connect(address, 1.0)
    first = header.parse_long(client.datagrams(1.0)[0])
    assert first is not None
    good = retry_packet(first, b"chosen!!", b"token")
    other = header.LongHeader(1, b"another!", first.source, True)
    for bad in (good[:-1] + bytes((good[-1] ^ 1,)), retry_packet(other, b"chosen!!", b"token")):
        client.receive(bad, address, 1.1)
        assert client.datagrams(1.1) == []
    client.receive(good, address, 1.2)
    again = header.parse_long(client.datagrams(1.2)[0])
    assert again is not None
    assert (again.destination, again.token) == (b"chosen!!", b"token")
    client.receive(retry_packet(again, b"another!", b"more"), address, 1.3)
    assert client.datagrams(1.3) == []  # one Retry is all that a dialer follows


# ------------------------------------------------------------------ the floods


def flood_packet() -> bytes:
    """A first packet as anybody can make it, whose content does not decrypt."""
    start = b"\xc0\0\0\0\1\x08" + os.urandom(8) + b"\x08" + os.urandom(8) + b"\0\x44\x80"
    return start + os.urandom(1200 - len(start))


class Forger:
    """Sends first packets from ever new addresses, and never reads an answer."""

    def __init__(self, network: PacketNetwork) -> None:
        self._network = network
        self.sent = 0

    async def run(self, seconds: float, *, each: float, batch: int) -> None:
        for _ in range(round(seconds / each)):
            for _ in range(batch):
                self.sent += 1
                source = f"198.{self.sent >> 16 & 255}.{self.sent >> 8 & 255}.{self.sent & 255}:9"
                self._network.carry(flood_packet(), source, "b:1")
            await anyio.sleep(each)


@pytest.mark.anyio
async def test_a_forged_flood_stops_no_honest_dialer_and_costs_no_memory(engine: str) -> None:
    network = PacketNetwork(Conditions(latency=0.01))
    config = LinkConfig(retry_above=16, max_pending=64)
    async with peer(BOB, network.path("b"), config=config) as bob:
        forger = Forger(network)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: forger.run(6.0, each=0.01, batch=5))
            await anyio.sleep(1.0)
            tracemalloc.start()
            for identity, host in ((ALICE, "a"), (CAROL, "c")):
                async with peer(identity, network.path(host)) as honest:
                    link = await honest.endpoint.connect(bob.id, bob.endpoint.addresses)
                    await bob.until_linked(honest)
                    await exchange(link, bob.to(honest), bytes(10_000))
                await anyio.sleep(1.0)
            kept = tracemalloc.take_snapshot().filter_traces(
                [tracemalloc.Filter(True, "*/lattica/link/*")]
            )
            tracemalloc.stop()
            assert len(bob.endpoint._links) <= config.retry_above + 1
        counters = bob.endpoint.counters
        assert forger.sent == 3000
        assert counters["retried"] > 2500
        assert counters["too_many_handshakes"] == 0
        assert sum(trace.size for trace in kept.traces) < 200_000
        await anyio.sleep(2 * config.handshake_timeout)
        assert not bob.endpoint._links
        assert not bob.endpoint._reception


@pytest.mark.anyio
async def test_a_real_source_gets_no_more_than_its_share(engine: str) -> None:
    network = PacketNetwork(Conditions(latency=0.01))
    config = LinkConfig(handshake_rate=0.2, handshake_burst=3.0)
    quick = LinkConfig(connect_timeout=1.0)
    async with peer(BOB, network.path("b"), config=config) as bob:

        async def dial(port: int) -> bool:
            async with peer(ALICE, network.path("192.0.2.1", port), config=quick) as alice:
                try:
                    await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
                except UnreachableError:
                    return False
                return True

        came = [await dial(1000 + number) for number in range(9)]
        # Three as they come, three more after a Retry, and one or so for each five seconds.
        assert came[:6] == [True] * 6
        assert not all(came)
        assert bob.endpoint.counters["source_limited"] > 0
        async with peer(CAROL, network.path("192.0.2.2")) as carol:
            await carol.endpoint.connect(bob.id, bob.endpoint.addresses)
        await anyio.sleep(10.0)
        assert await dial(2000)
