"""Runs of datagrams: how they are cut, sent, and what happens where a kernel refuses."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.path.sockets import Physical
from lattica.path.udp_offload import (
    MAX_RUN,
    MAX_SEGMENTS,
    BatchReader,
    BatchWriter,
    cut,
    run_end,
)
from lattica.path.udp_options import can_segment, coalesce_received

UNBOUNDED = 1 << 40
SOMEWHERE = ("192.0.2.1", 9)


class Socket:
    """Fails as told, and keeps what is sent."""

    def __init__(self, *, runs: int = 0, sends: Sequence[int] = (), limit: int = 65_507) -> None:
        self.runs = runs  # the errno of every run
        self.sends = list(sends)  # errnos of the next single sends
        self.limit = limit
        self.sent: list[bytes] = []
        self.calls = 0

    def sendmsg(self, parts: Sequence[bytes], ancillary: object, flags: int, to: Physical) -> int:
        self.calls += 1
        if self.runs:
            raise OSError(self.runs, os.strerror(self.runs))
        self.sent += parts
        return sum(map(len, parts))

    def sendto(self, data: bytes, to: Physical) -> int:
        self.calls += 1
        reason = self.sends.pop(0) if self.sends else 0
        if not reason and len(data) > self.limit:
            reason = errno.EMSGSIZE
        if reason:
            raise OSError(reason, os.strerror(reason))
        self.sent.append(data)
        return len(data)


class Failures:
    def __init__(self) -> None:
        self.seen: list[tuple[int | None, int]] = []

    def __call__(self, error: OSError, to: Physical, size: int) -> None:
        self.seen.append((error.errno, size))


def writer(sock: Socket, failures: Failures | None = None) -> BatchWriter:
    return BatchWriter(sock, segmented=True, failed=failures or Failures())  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 70_000), max_size=200))
def test_runs_cover_everything_and_keep_the_kernels_rules(sizes: list[int]) -> None:
    datagrams = [bytes(size) for size in sizes]
    position = 0
    while position < len(datagrams):
        end = run_end(datagrams, position)
        run = datagrams[position:end]
        assert run
        if len(run) > 1:
            assert len(run) <= MAX_SEGMENTS
            assert sum(map(len, run)) <= MAX_RUN
            assert {len(each) for each in run[:-1]} == {len(run[0])}
            assert 0 < len(run[-1]) <= len(run[0])
            # What the kernel does with them.
            assert cut(b"".join(run), len(run[0])) == run
        position = end


def test_equal_datagrams_leave_in_one_call_and_the_last_may_be_shorter() -> None:
    sock = Socket()
    batch = [b"a" * 1452, b"b" * 1452, b"c" * 700, b"d" * 1452, b"e" * 1453]
    assert writer(sock).write(batch, SOMEWHERE, UNBOUNDED) == 5
    assert sock.sent == batch
    assert sock.calls == 3  # a run of three, then two lone ones


@pytest.mark.parametrize("reason", [errno.EIO, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_kernel_that_refuses_is_asked_only_once_and_nothing_is_lost(reason: int) -> None:
    sock, failures = Socket(runs=reason), Failures()
    out = writer(sock, failures)
    batch = [bytes((index,)) * 100 for index in range(5)]
    assert out.write(batch, SOMEWHERE, UNBOUNDED) == 5
    assert sock.sent == batch
    assert not out.segmented
    calls = sock.calls
    assert out.write(batch, SOMEWHERE, UNBOUNDED) == 5
    assert sock.calls - calls == 5  # no more tries
    assert failures.seen == []


@pytest.mark.parametrize("reason", [errno.EINVAL, errno.EMSGSIZE])
def test_segments_too_large_for_the_path_are_told_and_the_option_stays(reason: int) -> None:
    sock, failures = Socket(runs=reason, limit=1200), Failures()
    out = writer(sock, failures)
    assert out.write([bytes(1452)] * 3, SOMEWHERE, UNBOUNDED) == 3
    assert failures.seen == [(errno.EMSGSIZE, 1452)] * 3
    assert out.segmented


def test_an_earlier_icmp_error_costs_no_datagram() -> None:
    sock, failures = Socket(sends=[errno.ECONNREFUSED, errno.EHOSTUNREACH]), Failures()
    assert writer(sock, failures).write([b"one"], SOMEWHERE, UNBOUNDED) == 1
    assert sock.sent == [b"one"]
    assert failures.seen == []


def test_an_unreachable_network_gives_the_datagram_up_and_says_so() -> None:
    sock, failures = Socket(sends=[errno.ENETUNREACH] * 3), Failures()
    assert writer(sock, failures).write([b"one", b"other"], SOMEWHERE, UNBOUNDED) == 2
    assert failures.seen == [(errno.ENETUNREACH, 3)]
    assert sock.sent == [b"other"]


def test_what_the_device_drops_is_lost_and_does_not_hold_up_the_rest() -> None:
    """With IP_RECVERR Linux tells of it; the socket is writable, so waiting would be a loop."""
    sock, failures = Socket(runs=errno.ENOBUFS, sends=[errno.ENOBUFS]), Failures()
    out = writer(sock, failures)
    batch = [b"a" * 10, b"b" * 10, b"c" * 11, b"d" * 12]
    assert out.write(batch, SOMEWHERE, UNBOUNDED) == 4
    assert failures.seen == [(errno.ENOBUFS, 10), (errno.ENOBUFS, 10), (errno.ENOBUFS, 11)]
    assert sock.sent == [b"d" * 12]
    assert out.segmented


def test_a_full_buffer_ends_the_write() -> None:
    sock = Socket(runs=errno.EAGAIN)
    assert writer(sock).write([b"x" * 10] * 3, SOMEWHERE, UNBOUNDED) == 0
    sock = Socket(sends=[0, errno.EAGAIN])
    out = BatchWriter(sock, segmented=False, failed=Failures())  # type: ignore[arg-type]
    assert out.write([b"x" * 10] * 3, SOMEWHERE, UNBOUNDED) == 1


def test_the_budget_ends_the_write() -> None:
    out = BatchWriter(Socket(), segmented=False, failed=Failures())  # type: ignore[arg-type]
    assert out.write([b"x" * 10] * 9, SOMEWHERE, 25) == 3


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        for each in (one, other):
            each.setblocking(False)
            each.bind(("127.0.0.1", 0))
        yield one, other


@pytest.mark.parametrize("size", [1, 100, 1452, 16_384])
@pytest.mark.parametrize("coalesced", [False, True])
@pytest.mark.parametrize("segmented", [False, True])
def test_over_a_real_socket_the_same_datagrams_arrive(
    pair: tuple[socket.socket, socket.socket], size: int, coalesced: bool, segmented: bool
) -> None:
    sender, receiver = pair
    if segmented and not can_segment(sender):
        pytest.skip("the kernel has no UDP_SEGMENT")
    if coalesced and not coalesce_received(receiver):
        pytest.skip("the kernel has no UDP_GRO")
    failures = Failures()
    out = BatchWriter(sender, segmented=segmented, failed=failures)
    source = BatchReader(receiver, coalesced=coalesced)
    batch = [bytes((index,)) * size for index in range(9)] + [b"\xff" * max(1, size // 2), b""]
    assert out.write(batch, receiver.getsockname(), UNBOUNDED) == len(batch)
    received: list[bytes] = []
    while len(received) < len(batch):
        datagrams, physical = source.read()
        assert physical == sender.getsockname()
        received += datagrams
    assert received == batch
    assert failures.seen == []
    assert out.datagrams == source.datagrams == len(batch)
    assert out.segmented == segmented
    if segmented and coalesced and size < 16_384:
        assert out.writes <= 3
        assert source.reads <= 3
    with pytest.raises(BlockingIOError):
        source.read()
