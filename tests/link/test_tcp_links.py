"""Links over TCP connections: the fallback where UDP does not get through."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest
from anyio.abc import Process

from lattica.config import LinkConfig
from lattica.errors import UnreachableError
from lattica.path.combined import CombinedPath
from lattica.path.tcp import TcpPath
from lattica.path.tcp_frames import MAX_FRAME
from lattica.path.udp import UdpPath
from tests.link.helpers import ALICE, BOB, CAROL, Peer, eventually, exchange, peer

pytestmark = pytest.mark.anyio


def both() -> CombinedPath:
    """UDP and TCP, both on loopback."""
    return CombinedPath({"udp:": UdpPath.bind("127.0.0.1:0"), "tcp:": TcpPath.bind("127.0.0.1:0")})


def tcp_only(peer: Peer) -> list[str]:
    return [address for address in peer.endpoint.addresses if address.startswith("tcp:")]


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Peer, Peer]]:
    """Alice has dialled Bob over TCP."""
    async with (
        peer(ALICE, both(), config=LinkConfig()) as alice,
        peer(BOB, both(), config=LinkConfig()) as bob,
    ):
        await alice.endpoint.connect(bob.id, tcp_only(bob))
        await bob.until_linked(alice)
        yield alice, bob


@asynccontextmanager
async def bob_process() -> AsyncIterator[tuple[Process, str]]:
    """Bob as a process of its own, and his address."""
    async with await anyio.open_process(
        [sys.executable, "-m", "tests.link.udp_peer", "tcp"], stderr=sys.stderr
    ) as process:
        assert process.stdout is not None
        try:
            with anyio.fail_after(20):
                line = b""
                while not line.endswith(b"\n"):
                    line += await process.stdout.receive()
            yield process, line.decode().strip()
        finally:
            if process.returncode is None:
                process.kill()


async def test_bytes_both_ways_in_large_datagrams_without_a_loss() -> None:
    async with linked() as (alice, bob):
        here, there = alice.to(bob), bob.to(alice)
        payload = os.urandom(5_000_000)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange, here.link, there, payload)
            tasks.start_soon(exchange, there.link, here, payload)
        assert here.link.address == tcp_only(bob)[0]
        for one in (alice, bob):
            assert one.endpoint.path.counters["send_queue_full"] == 0
            link = one.endpoint.current()[0]
            assert link.statistics().datagram == MAX_FRAME


async def test_a_refused_udp_address_does_not_stand_in_the_way() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))  # takes every packet and answers none
        blocked = f"127.0.0.1:{silent.getsockname()[1]}"
        async with (
            peer(ALICE, both(), config=LinkConfig()) as alice,
            peer(BOB, both(), config=LinkConfig()) as bob,
        ):
            started = time.monotonic()
            link = await alice.endpoint.connect(bob.id, [blocked, *tcp_only(bob)])
            assert link.address == tcp_only(bob)[0]
            assert time.monotonic() - started < 2.0


async def test_udp_is_preferred_where_both_work() -> None:
    async with (
        peer(ALICE, both(), config=LinkConfig()) as alice,
        peer(BOB, both(), config=LinkConfig()) as bob,
    ):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        assert not link.address.startswith("tcp:")


async def test_a_killed_process_is_noticed_at_once() -> None:
    async with bob_process() as (process, address):
        async with peer(ALICE, both(), config=LinkConfig()) as alice:
            await alice.endpoint.connect(BOB.peer_id, [address])
            recorder = alice.handlers[0]
            process.send_signal(signal.SIGKILL)
            started = time.monotonic()
            await recorder.until(lambda: bool(recorder.lost), timeout=5)
            assert time.monotonic() - started < 1.0


async def test_a_frozen_process_is_noticed_within_seconds() -> None:
    async with bob_process() as (process, address):
        async with peer(ALICE, both(), config=LinkConfig()) as alice:
            await alice.endpoint.connect(BOB.peer_id, [address])
            recorder = alice.handlers[0]
            process.send_signal(signal.SIGSTOP)  # its kernel goes on acknowledging
            started = time.monotonic()
            await recorder.until(lambda: bool(recorder.lost), timeout=5)
            assert time.monotonic() - started < 3.0


async def test_a_port_where_nobody_listens_is_told_quickly() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with peer(ALICE, both(), config=LinkConfig()) as alice:
        started = time.monotonic()
        with pytest.raises(UnreachableError, match="nobody listens there"):
            await alice.endpoint.connect(CAROL.peer_id, [f"tcp:127.0.0.1:{port}"])
        assert time.monotonic() - started < 3.0


async def test_a_closed_link_frees_its_connection_and_another_can_be_made() -> None:
    async with linked() as (alice, bob):
        for _ in range(3):
            here, there = alice.to(bob), bob.to(alice)
            await exchange(here.link, there, b"once more")
            here.link.close("for now")
            await there.until(partial(bool, there.lost))
            assert "for now" in str(there.lost[0])
            await bob.until_linked(alice, False)
            await alice.endpoint.connect(bob.id, tcp_only(bob))
            await bob.until_linked(alice)
        carriers = [one.endpoint.path._carriers["tcp:"] for one in (alice, bob)]  # type: ignore[attr-defined]
        await eventually(lambda: [len(each._connections) for each in carriers] == [1, 1])


async def test_strangers_bytes_cost_only_their_own_connection() -> None:
    async with linked() as (alice, bob):
        host, port = tcp_only(bob)[0].removeprefix("tcp:").rsplit(":", 1)
        for sent in (os.urandom(5000), b"\x00\x00", b"\x00\x05\x40rand", b"\xff" * 9):
            async with await anyio.connect_tcp(host, int(port)) as stream:
                await stream.send(sent)
                await exchange(alice.to(bob).link, bob.to(alice), os.urandom(100_000))
        await eventually(lambda: bob.endpoint.path.counters.total() >= 4)


async def test_the_port_a_connection_came_from_is_not_an_address_to_dial() -> None:
    async with linked() as (alice, bob):
        here, there = alice.to(bob), bob.to(alice)
        here.link.close()
        await there.until(lambda: bool(there.lost))
        assert not any(each.startswith("tcp:") for each in bob.endpoint._dials.book.get(alice.id))
        assert tcp_only(bob)[0] in alice.endpoint._dials.book.get(bob.id)
