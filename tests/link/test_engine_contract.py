"""What `lattica.link.engine` promises, of each engine against each."""

from __future__ import annotations

import os

import pytest
from aioquic.quic.stream import QuicStream

from lattica.link.streams import SeenStreams
from tests.link.pairs import ADDRESS, EnginePair, config

NAMES = ("aioquic", "qh3")
both = pytest.mark.parametrize("server", NAMES)


@pytest.fixture(params=NAMES)
def client(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@both
def test_both_ends_derive_the_same_binding_once(client: str, server: str) -> None:
    one, other = EnginePair(client, server).connect().ends
    binding = one.engine.binding()
    assert len(binding) == 32
    assert other.engine.binding() == binding
    with pytest.raises(ValueError, match="not there"):
        one.engine.binding()
    third = EnginePair(client, server).connect().client.engine.binding()
    assert third != binding


@both
def test_streams_beyond_the_limit_wait_for_others_to_end(client: str, server: str) -> None:
    pair = EnginePair(client, server, server_config=config(is_client=False, max_streams=4))
    one, other = pair.connect().ends
    ids = [one.open() for _ in range(50)]
    given_up = ids[20]
    for stream_id in ids:
        assert one.engine.send(stream_id, b"%d" % stream_id, True)
    one.engine.reset_stream(given_up, 9)
    assert not one.engine.send(given_up, b"more", True)
    assert one.engine.unsent() > 0
    asked = [one.open(unidirectional=False) for _ in range(20)]
    for stream_id in asked:
        one.engine.send(stream_id, b"an answer, please", True)
    one.engine.stop_stream(asked[15], 5)
    rest = [stream_id for stream_id in ids if stream_id != given_up]
    pair.run_until(lambda: len(other.sink.ended) >= len(rest) + 4)
    for stream_id in asked:
        pair.run_until(lambda wanted=stream_id: wanted in other.sink.ended)
        other.engine.send(stream_id, b"here", True)
    pair.run_until(lambda: len(one.sink.ended) >= 19)
    assert other.sink.stops == [(asked[15], 5)]
    assert {key: bytes(other.sink.data[key]) for key in rest} == {key: b"%d" % key for key in rest}
    pair.run(1.0)
    assert one.engine.unsent() == 0


@both
def test_no_more_is_in_flight_than_the_window(client: str, server: str) -> None:
    window = 50_000
    pair = EnginePair(client, server, client_config=config(is_client=True, window=window))
    one, other = pair.connect().ends
    stream_id = one.open()
    one.engine.send(stream_id, bytes(3_000_000), True)
    most = 0

    def arrived() -> bool:
        nonlocal most
        most = max(most, one.engine.statistics().in_flight)
        return stream_id in other.sink.ended

    pair.run_until(arrived)
    assert 20_000 < most <= window + 3 * 1452
    assert len(other.sink.data[stream_id]) == 3_000_000


@both
def test_statistics_tell_how_it_went(client: str, server: str) -> None:
    pair = EnginePair(client, server, delay=0.02).connect()
    one, other = pair.ends
    lose = iter(range(10_000))
    pair.keep = lambda _: next(lose) % 10 != 0
    stream_id = one.open()
    one.engine.send(stream_id, bytes(500_000), True)
    assert one.engine.unsent() == one.engine.statistics().unsent == 500_000
    pair.run_until(lambda: stream_id in other.sink.ended)
    stats = one.engine.statistics()
    assert stats.packets_lost > 10
    assert stats.rtt_min == pytest.approx(0.04, abs=0.001)
    assert 0.039 < stats.rtt < 0.3
    assert stats.rtt_latest > 0.039
    assert stats.window >= 2 * 1200
    assert stats.datagram == 1452
    assert stats.unsent == 0


@both
def test_a_path_that_shrinks_in_mid_transfer_is_survived(client: str, server: str) -> None:
    pair = EnginePair(client, server).connect()
    one, other = pair.ends
    stream_id, back = one.open(), other.open()
    one.engine.send(stream_id, bytes(1_000_000), True)
    other.engine.send(back, bytes(1_000_000), True)
    pair.run(0.05)
    assert max(one.sizes[-5:]) > 1300
    for end in (one, other):
        end.engine.set_datagram(1200)
    pair.run(1.0)  # both the old and the new size pass
    one.sizes.clear()
    other.sizes.clear()
    pair.keep = lambda datagram: len(datagram) <= 1200
    more = one.open()
    one.engine.send(more, bytes(300_000), True)
    pair.run_until(lambda: more in other.sink.ended and back in one.sink.ended)
    assert max(one.sizes + other.sizes) <= 1200
    assert one.engine.statistics().datagram == other.engine.statistics().datagram == 1200


@both
def test_a_lost_first_packet_does_not_make_small_datagrams(client: str, server: str) -> None:
    large = 16_384
    pair = EnginePair(
        client,
        server,
        client_config=config(is_client=True, datagram=large),
        server_config=config(is_client=False, datagram=large),
    )
    pair.keep = lambda _: pair.now > 101.0
    one, other = pair.connect().ends
    stream_id, back = one.open(), other.open()
    one.engine.send(stream_id, bytes(1_000_000), True)
    other.engine.send(back, bytes(1_000_000), True)
    pair.run_until(lambda: stream_id in other.sink.ended and back in one.sink.ended)
    assert max(one.sizes) > 16_000
    assert max(other.sizes) > 16_000
    assert len(other.sink.data[stream_id]) == len(one.sink.data[back]) == 1_000_000


@both
def test_a_usual_datagram_size_comes_back_after_lost_first_packets(
    client: str, server: str
) -> None:
    pair = EnginePair(client, server)
    pair.keep = lambda _: pair.now > 101.0
    one, other = pair.connect().ends
    for _ in range(8):
        pair.run(0.5)
        one.engine.ping()
    stream_id = one.open()
    one.engine.send(stream_id, bytes(100_000), True)
    pair.run_until(lambda: stream_id in other.sink.ended)
    assert one.engine.statistics().datagram == 1452


def test_a_narrow_path_still_gets_a_handshake_of_qh3_through() -> None:
    # aioquic sends its handshake at full size whatever becomes of it.
    pair = EnginePair("qh3", "qh3")
    pair.keep = lambda datagram: len(datagram) <= 1280
    one, other = pair.connect().ends
    stream_id = one.open()
    one.engine.send(stream_id, b"through", True)
    pair.run_until(lambda: stream_id in other.sink.ended)


@both
def test_bytes_that_anybody_can_make_do_no_harm(client: str, server: str) -> None:
    pair = EnginePair(client, server).connect()
    one, other = pair.ends
    for end in pair.ends:
        known = next(iter(end.engine.connection_ids))
        for size in (0, 1, 7, 20, 21, 40, 1200, 1452, 16_000):
            noise = os.urandom(size)
            for start in (b"\x40", b"\x5f", b"\x43"):
                assert not end.engine.receive(start + known + noise, ADDRESS, pair.now)
            for start in (b"\xc0", b"\xd3", b"\xe1", b"\xf0"):
                head = start + b"\0\0\0\1\x08" + known + b"\x08" + os.urandom(8)
                assert not end.engine.receive(head + noise, ADDRESS, pair.now)
        end.engine.drain(end.sink)
        assert end.sink.over is None
    stream_id = one.open()
    one.engine.send(stream_id, b"unharmed", True)
    pair.run_until(lambda: stream_id in other.sink.ended)


@both
def test_a_close_is_told_with_code_and_reason(client: str, server: str) -> None:
    for closer in (0, 1):
        pair = EnginePair(client, server).connect()
        pair.run(0.1)
        ends = pair.ends
        ends[closer].engine.close(7, "x" * 500)
        pair.run(0.02)
        over = ends[1 - closer].sink.over
        assert over is not None
        assert over[0] == 7
        assert over[1].startswith("x" * 100)


@both
def test_nothing_queued_after_the_end_is_an_error(client: str, server: str) -> None:
    pair = EnginePair(client, server).connect()
    one, other = pair.ends
    stream_id = one.open(unidirectional=False)
    one.engine.send(stream_id, b"all", True)
    pair.run_until(lambda: stream_id in other.sink.ended)
    assert not one.engine.send(stream_id, b"more", False)
    other.engine.send(stream_id, b"answer", True)
    pair.run_until(lambda: stream_id in one.sink.ended)
    pair.run(0.2)
    for end in pair.ends:
        assert not end.engine.send(stream_id, b"more", False)
        end.engine.reset_stream(stream_id, 1)
        end.engine.stop_stream(stream_id, 1)
    pair.run(0.2)
    assert one.sink.over is other.sink.over is None
    assert not one.sink.resets
    assert not other.sink.resets


@both
def test_a_stream_that_is_over_cannot_begin_again(server: str) -> None:
    """qh3's core forgets a finished stream after 1,024 more."""
    pair = EnginePair("aioquic", server).connect()
    one, other = pair.ends
    first = one.open()
    one.engine.send(first, b"once", True)
    for _ in range(3):
        for stream_id in [one.open() for _ in range(600)]:
            one.engine.send(stream_id, b"x", True)
        pair.run_until(lambda wanted=stream_id: wanted in other.sink.ended)
        pair.run(0.2)
    connection = one.engine._connection  # type: ignore[attr-defined]
    again = QuicStream(stream_id=first, max_stream_data_remote=1000, readable=False)
    again.sender.write(b"again", True)
    connection._streams[first] = again
    connection._streams_queue.append(again)
    pair.run(0.2)
    assert other.sink.ended.count(first) == 1
    assert other.sink.data[first] == b"once"


# -------------------------------------------------------------------- seen streams


def test_frames_of_finished_streams_are_told_from_new_ones() -> None:
    seen = SeenStreams(is_client=False)  # theirs are 0, 4, 8 ... and 2, 6, 10 ...
    assert seen.check(8)
    assert seen.check(8)
    assert seen.check(0)
    for stream_id in (0, 8):
        seen.finish(stream_id)
        assert not seen.check(stream_id)
    assert seen.check(4)  # skipped so far
    assert seen.check(2)
    assert not seen.check(1)  # ours, not begun
    seen.add(1)
    assert seen.check(1)
    seen.finish(1)
    assert not seen.check(1)


def test_what_is_remembered_of_streams_is_bounded_by_the_live_ones() -> None:
    seen = SeenStreams(is_client=True)
    for number in range(10_000):
        assert seen.check(1 + 4 * number)
        seen.finish(1 + 4 * number)
    assert len(seen) == 0
    assert not seen.check(1)
